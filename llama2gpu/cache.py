"""The paged key-value cache: memory in pages, and who holds which."""

from collections.abc import Iterator

import torch

from llama2gpu.backends.base import LayerCache
from llama2gpu.config import Config
from llama2gpu.errors import RequestError

PAGE = 64


class KVCache:
    """Keys and values of all layers, `[layers, pages, kv_heads, page, head_dim]` each.

    Pages are handed out lowest first, so that one sequence in a fresh cache is one run of pages.
    """

    def __init__(
        self,
        config: Config,
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        page: int = PAGE,
    ) -> None:
        self.page, self.pages = page, 0
        self._free: list[int] = []
        shape = (config.layers, 0, config.kv_heads, page, config.head_dim)
        self.k = self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.grow(pages)

    @property
    def layers(self) -> Iterator[LayerCache]:
        """The cache of each layer in turn."""
        return map(LayerCache, self.k, self.v)

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page)

    def grow(self, pages: int) -> None:
        """Adds free pages; what is cached stays. Raises `RequestError` without the memory."""
        try:
            self.k = self._widened(self.k, self.pages + pages)
            self.v = self._widened(self.v, self.pages + pages)
        except RuntimeError as error:  # PyTorch has no narrower one on the CPU
            layers, _, kv_heads, page, head_dim = self.k.shape
            tokens = (self.pages + pages) * page
            gib = 2 * layers * kv_heads * head_dim * tokens * self.k.itemsize / 2**30
            raise RequestError(
                f"the cache of {tokens} tokens takes {gib:.1f} GiB, which {self.k.device} doesn't "
                "have: ask for fewer tokens (--max-tokens, --ctx) or fewer requests at once"
            ) from error
        self.give_back(list(range(self.pages, self.pages + pages)))
        self.pages += pages

    def take(self, count: int) -> list[int]:
        """`count` free pages; `free_pages` says how many there are."""
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Frees pages that `take` handed out."""
        self._free += pages
        self._free.sort(reverse=True)

    def _widened(self, x: torch.Tensor, pages: int) -> torch.Tensor:
        layers, old, *rest = x.shape
        if old >= pages:
            return x
        # zeros, not empty: masked slots must hold finite values
        wider = x.new_zeros((layers, pages, *rest))
        wider[:, :old] = x
        return wider
