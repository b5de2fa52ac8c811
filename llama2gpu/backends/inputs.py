"""Arguments for one op on one case: random values on dirty pages, for tests and benchmarks."""

from collections.abc import Callable
from typing import Any

import torch

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Rope
from llama2gpu.config import Config
from llama2gpu.ops.cases import Case
from llama2gpu.ops.rope import rope_table
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Weight

#: What slots hold that no token was written to: finite, and large enough to show.
GARBAGE = 1e4


class Inputs:
    """One case's tensors under one seed, the same values for every backend and type.

    Values are drawn in float32 and rounded to `dtype`; `arguments(…, wide=True)` hands out the
    rounded values in float64, for the reference. kv_dtype: int8 for a quantized cache, which the
    reference reads as it is; the other tensors are the same with it and without. quantized: makes
    a matrix, float32 [N, K], the weight that all of them take; dense in `dtype` where not given.
    """

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype,
        seed: int,
        kv_dtype: torch.dtype | None = None,
        quantized: Callable[[torch.Tensor], Weight] | None = None,
    ) -> None:
        self.case, self.dtype, self.quantized = case, dtype, quantized
        self.config = Config(
            dim=case.dim,
            hidden=case.hidden,
            layers=1,
            heads=case.heads,
            kv_heads=case.kv_heads,
            head_dim=case.head_dim,
            vocab=case.vocab,
            context=max([n + c for n, c in zip(case.new, case.cached, strict=True)], default=1) + 1,
        )
        self._random = torch.Generator().manual_seed(seed)
        c, t = self.config, case.tokens
        self.x = self._values(t, c.dim)
        self.rows = self._values(len(case.new), c.dim)
        self.q = self._values(t, c.heads, c.head_dim)
        self.k, self.v = (self._values(t, c.kv_heads, c.head_dim) for _ in range(2))
        self.gates = self._values(t, 2 * c.hidden)
        self.a = self._values(t, c.q_rows)
        self.norm_weight = 1 + 0.1 * torch.randn(c.dim, generator=self._random)
        self.matrices = {
            "embed": self._matrix(c.vocab, c.dim),
            "linear": self._matrix(c.hidden, c.dim),
            "qkv": self._matrix(c.q_rows + 2 * c.kv_rows, c.dim),
            "project_add": self._matrix(c.dim, c.q_rows),
            "gate_up": self._matrix(2 * c.hidden, c.dim),
            "logits": self._matrix(c.vocab, c.dim),
        }
        self.tokens = torch.randint(c.vocab, (t,), generator=self._random)
        self.logits = 4 * torch.randn(len(case.new), c.vocab, generator=self._random)
        self.sampling = self._sampling()
        self._lay_out()
        if kv_dtype == torch.int8:
            self._quantize_cache()

    def arguments(self, op: str, backend: Backend, *, wide: bool = False) -> dict[str, Any]:
        """The op's arguments by name, on the backend's device, matrices prepared by it."""
        device = backend.device
        real = torch.float64 if wide else self.dtype

        def put(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, real)

        def matrix(name: str) -> Any:
            weight = self.matrices[name]
            if self.quantized is not None:
                return backend.prepare(self.quantized(weight.float()), name)
            return backend.prepare(Dense(weight.double() if wide else weight), name)

        norm = Norm(self.norm_weight.to(device), self.config.norm_eps)
        rope = Rope(*(x.to(device) for x in rope_table(self.config, self.config.context)))
        batch = self.batch(device)
        cache = self._copied_cache(device, real)
        table: dict[str, dict[str, Any]] = {
            "embed": {"tokens": self.tokens.to(device)},
            "rms_norm": {"x": put(self.x), "norm": norm},
            "linear": {"x": put(self.x)},
            "rope": {"x": put(self.q), "rope": rope, "positions": batch.positions},
            "silu_mul": {"x": put(self.gates)},
            "write_kv": {"k": put(self.k), "v": put(self.v), "batch": batch, "cache": cache},
            "attend": {"q": put(self.q), "batch": batch, "cache": cache},
            "attention": {"q": put(self.q), "batch": batch, "cache": cache},
            "qkv": {"x": put(self.x), "norm": norm, "rope": rope, "batch": batch, "cache": cache},
            "project_add": {"a": put(self.a), "x": put(self.x)},
            "gate_up": {"x": put(self.x), "norm": norm},
            "logits": {"x": put(self.rows), "norm": norm},
            "sample": {"logits": self.logits.to(device), "params": self._moved(device)},
        }
        arguments = table[op]
        if op in self.matrices:
            arguments["weight"] = matrix(op)
        return arguments

    def batch(self, device: torch.device) -> Batch:
        """The case's batch, its pages in shuffled order."""
        new, cached = self.case.new, self.case.cached
        lengths = tuple(n + c for n, c in zip(new, cached, strict=True))
        positions = [p for n, c in zip(new, cached, strict=True) for p in range(c, c + n)]
        owner = [s for s, n in enumerate(new) for _ in range(n)]
        page = self.case.page
        slots = [
            int(self.table[s, p // page]) * page + p % page
            for s, p in zip(owner, positions, strict=True)
        ]
        starts = [sum(new[:s]) for s in range(len(new) + 1)]
        return Batch(
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            starts=torch.tensor(starts, dtype=torch.int32, device=device),
            lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
            block_table=self.table.to(device),
            new_counts=new,
            cached_counts=lengths,
        )

    def _sampling(self) -> dict[str, torch.Tensor]:
        """Different parameters for each sequence, greedy ones among them, with penalties."""
        s, vocab = len(self.case.new), self.config.vocab
        every = torch.arange(s)
        often = torch.randint(-6, 3, (s, vocab), generator=self._random)
        return {
            "temperature": torch.tensor([0.0, 0.7, 1.0, 1.3])[every % 4],
            "top_k": torch.tensor([0, 40, 1, 0, 7])[every % 5],
            "top_p": torch.tensor([1.0, 0.9, 0.5])[every % 3],
            "min_p": torch.tensor([0.0, 0.05])[every % 2],
            "seed": every * 7919 + (every << 40),
            "draw": every * 3,
            "repetition": torch.tensor([1.0, 1.2])[every % 2],
            "presence": torch.tensor([0.0, 0.4, -0.2])[every % 3],
            "frequency": torch.tensor([0.3, 0.0])[every % 2],
            "bias": torch.randn(s, vocab, generator=self._random),
            "generated": often.clamp_min(0).int(),
            "prompted": torch.rand(s, vocab, generator=self._random) < 0.2,
        }

    def _moved(self, device: torch.device) -> SampleParams:
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.sampling.items()}
        return SampleParams(**moved)

    def _lay_out(self) -> None:
        """Shuffled pages, one spare, garbage wherever no token of the past lies."""
        case, c = self.case, self.config
        counts = [-(-(n + p) // case.page) for n, p in zip(case.new, case.cached, strict=True)]
        pages = sum(counts) + 1
        order = torch.randperm(pages, generator=self._random).int()
        self.table = torch.zeros(len(counts), max(counts, default=0), dtype=torch.int32)
        shape = (pages, c.kv_heads, case.page, c.head_dim)
        self.cache = LayerCache(*(torch.full(shape, GARBAGE, dtype=self.dtype) for _ in "kv"))
        self.written = torch.zeros(shape[:-1], dtype=torch.bool)
        for s, (count, past) in enumerate(zip(counts, case.cached, strict=True)):
            self.table[s, :count] = order[sum(counts[:s]) :][:count]
            for p in range(past + case.new[s]):
                # the batch's own keys too: `attend` is called after they are written
                at = (int(self.table[s, p // case.page]), slice(None), p % case.page)
                self.written[at] = True
                for stored in (self.cache.k, self.cache.v):
                    stored[at] = self._values(c.kv_heads, c.head_dim)

    def _quantize_cache(self) -> None:
        """Any codes everywhere, and scales by which what was written is as large as before."""
        shape = self.cache.k.shape
        codes = [
            torch.randint(-127, 128, shape, generator=self._random).to(torch.int8) for _ in "kv"
        ]
        drawn = [(0.5 + torch.rand(shape[:-1], generator=self._random)) / 73 for _ in "kv"]
        self.cache = LayerCache(*codes, *(torch.where(self.written, s, GARBAGE) for s in drawn))

    def _copied_cache(self, device: torch.device, real: torch.dtype) -> LayerCache:
        """The cache for an op to write to, where it is not quantized in the type `real`."""
        k, v, *scales = self.cache
        kind = real if k.is_floating_point() else k.dtype
        k, v = (x.to(device, kind, copy=True) for x in (k, v))
        return LayerCache(k, v, *(s if s is None else s.to(device, copy=True) for s in scales))

    def _values(self, *shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(shape, generator=self._random)
        return drawn.to(self.dtype)

    def _matrix(self, rows: int, columns: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn((rows, columns), generator=self._random)
        return drawn.mul_(columns**-0.5).to(self.dtype)
