"""The paged key-value cache: memory in pages, and who holds which."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from llama2gpu.backends.base import LayerCache
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.pages import Pages

PAGE = 64
#: Bytes that begin with a multiple of their number: a line of a CPU's cache.
LINE = 64


class KVCache:
    """Keys and values of all layers, `[layers, pages, kv_heads, page, head_dim]` each.

    dtype: int8 is a quantized cache, with scales `[layers, pages, kv_heads, page]`.
    parts: keys and values and, where it is quantized, their scales; `grow` replaces them.
    book: who holds which page. Pages are handed out lowest first, so that one sequence in a fresh
    cache is one run of pages.
    """

    def __init__(
        self,
        config: Config,
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        page: int = PAGE,
    ) -> None:
        self.page, self.book = page, Pages(page)
        shape = (config.layers, 0, config.kv_heads, page)
        codes = torch.zeros((*shape, config.head_dim), dtype=dtype, device=device)
        scales = [torch.zeros(shape, device=device)] * 2 if dtype == torch.int8 else []
        self.parts = [codes, codes, *scales]  # k, v and their scales
        self.grow(pages)

    @property
    def layers(self) -> Iterator[LayerCache]:
        """The cache of each layer in turn."""
        return map(LayerCache, *self.parts)

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values; int8 where they are quantized."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(part.nbytes for part in self.parts)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes, in all layers."""
        shapes = [(x.shape[0], *x.shape[2:], x.itemsize) for x in self.parts]
        return sum(map(math.prod, shapes)) // self.page

    @property
    def pages(self) -> int:
        """Pages in all."""
        return len(self.book.holders)

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self.book.free

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page)

    def grow(self, pages: int) -> None:
        """Adds free pages; what is cached stays. Raises `RequestError` without the memory."""
        try:
            for i, part in enumerate(self.parts):  # one by one: each frees its old memory
                self.parts[i] = self._widened(part, self.pages + pages)
        except (MemoryError, RuntimeError, ValueError) as error:  # no narrower ones
            tokens, place = (self.pages + pages) * self.page, self.parts[0].device
            gib = tokens * self.token_bytes / 2**30
            raise RequestError(
                f"the cache of {tokens} tokens takes {gib:.1f} GiB, which {place} doesn't "
                "have: ask for fewer tokens (--max-tokens, --ctx) or fewer requests at once"
            ) from error
        self.book.add(pages)

    def take(self, count: int) -> list[int]:
        """`count` free pages; `free_pages` says how many there are."""
        return self.book.take(count)

    def give_back(self, pages: list[int]) -> None:
        """Frees pages that `take` handed out."""
        self.book.give_back(pages)

    def wipe(self, pages: list[int], first: int = 0) -> None:
        """Makes pages finite whose numbers may be none: what is masked is multiplied by 0.

        first: the slot of each page from which on.
        """
        for part in self.parts:
            part[:, pages, :, first:] = 0

    def copy(self, page: int, to: int, count: int) -> None:
        """Copies the first `count` tokens of a page to another one."""
        for part in self.parts:
            part[:, to, :, :count] = part[:, page, :, :count]

    def _widened(self, x: torch.Tensor, pages: int) -> torch.Tensor:
        layers, old, *rest = x.shape
        if old >= pages:
            return x
        # zeros, not empty: masked slots must hold finite values
        wider = _zeros((layers, pages, *rest), x)
        wider[:, :old] = x
        return wider


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros; on a CPU they take memory once they are written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    count = math.prod(shape) * like.itemsize
    space = torch.from_numpy(np.zeros(count + LINE, np.uint8))
    skip = -space.data_ptr() % LINE
    return space[skip : skip + count].view(like.dtype).view(shape)
