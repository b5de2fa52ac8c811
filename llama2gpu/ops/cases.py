"""The one list of cases that tests, benchmarks, the diff tool and the inspector share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Sizes of a model and the tokens of one batch.

    cached, new: per sequence, tokens that lie in the cache and tokens that come now.
    """

    name: str
    cached: tuple[int, ...]
    new: tuple[int, ...]
    dim: int = 64
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 8
    hidden: int = 172
    vocab: int = 512
    page: int = 16

    @property
    def tokens(self) -> int:
        """New tokens T of the batch."""
        return sum(self.new)


#: Small, odd and edge cases; the first sizes are those of stories260K.
CASES = (
    Case("decode", cached=(20,), new=(1,)),
    Case("first token", cached=(0,), new=(1,)),
    Case("prefill", cached=(0,), new=(23,)),
    Case("chunk", cached=(13,), new=(9,)),
    Case("batched decode", cached=(3, 40, 15, 16), new=(1, 1, 1, 1)),
    Case("mixed", cached=(0, 31, 5, 16), new=(7, 1, 12, 1)),
    Case("page edges", cached=(15, 16, 17, 0, 0, 0), new=(1, 1, 1, 15, 16, 17)),
    Case("no tokens", cached=(), new=()),
    Case("a sequence without tokens", cached=(4, 9), new=(0, 2)),
    Case("no grouping", cached=(6,), new=(3,), heads=5, kv_heads=5, head_dim=12, dim=60),
    Case("one kv head", cached=(70,), new=(2,), heads=6, kv_heads=1, head_dim=16, dim=96),
    Case("wide heads", cached=(2, 5), new=(4, 1), heads=2, kv_heads=1, head_dim=256, dim=132),
    Case("odd sizes", cached=(1,), new=(5,), dim=131, hidden=77, vocab=1003, page=7),
    Case("llama-like", cached=(130,), new=(3,), dim=256, heads=4, kv_heads=2, head_dim=64,
         hidden=704, vocab=2048, page=64),
    Case("long rows", cached=(5, 0), new=(1, 2), heads=44, kv_heads=1, head_dim=128, hidden=100,
         vocab=515),
)  # fmt: skip
