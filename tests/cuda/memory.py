"""Copies of tensors' storages that end, or begin, at memory that cannot be touched."""

import ctypes
import mmap
from typing import Literal

import torch

#: The side of a copy at which nothing can be touched from the first byte on.
Edge = Literal["end", "start"]

PAGE = mmap.PAGESIZE
#: Bytes before and behind a copy's pages that cannot be touched.
GUARD = 16 << 20
#: Over a page: no number in any type of float, and no likely integer.
POISON = bytes((0xFD, 0x7F)) * (PAGE // 2)
#: Bytes of pages that are kept for later launches.
KEPT = 256 << 20

_c = ctypes.CDLL(None, use_errno=True)
_c.mmap.restype = ctypes.c_void_p
_c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_c.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Pages:
    """Runs of pages between guards, which later launches take again."""

    def __init__(self) -> None:
        self._free: dict[int, list[int]] = {}
        self._kept = 0

    def take(self, size: int) -> int:
        """The address of `size` bytes, a multiple of a page's."""
        if free := self._free.get(size):
            self._kept -= size
            return free.pop()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        found = _c.mmap(None, size + 2 * GUARD, 0, flags, -1, 0)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "no memory for a copy of a tensor")
        address = int(found) + GUARD
        _c.mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE)
        return address

    def give(self, address: int, size: int) -> None:
        """Takes back what `take` gave."""
        if self._kept + size > KEPT:
            _c.munmap(address - GUARD, size + 2 * GUARD)
            return
        self._kept += size
        self._free.setdefault(size, []).append(address)


class Copy:
    """A storage's bytes for a launch. Bytes of its pages that are none of the storage's are poison.

    at: address of the first byte; the last is followed by a guard at once or, since `at` is a
    multiple of 16, after at most 15 bytes. edge "start": the first follows a guard instead.
    """

    def __init__(self, pages: Pages, storage: torch.UntypedStorage, edge: Edge) -> None:
        self.source, self.size = storage.data_ptr(), storage.nbytes()
        self.span = max(-(-self.size // PAGE), 1) * PAGE
        self.begin = pages.take(self.span)
        self.at = self.begin + (self.span - -(-self.size // 16) * 16 if edge == "end" else 0)
        self.written = False
        self._pages = pages
        ctypes.memmove(self.at, self.source, self.size)
        for begin, size in self._slack():
            ctypes.memmove(begin, POISON, size)

    def _slack(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What lies before and behind the bytes: addresses and sizes."""
        end = self.at + self.size
        return (self.begin, self.at - self.begin), (end, self.begin + self.span - end)

    def is_near(self, address: int) -> bool:
        """Whether the copy is what somebody missed who touched the address."""
        return self.begin - GUARD <= address < self.begin + self.span + GUARD

    def touched(self) -> int | None:
        """A byte that is none of the storage's and was written, counted from its first."""
        for begin, size in self._slack():
            found = ctypes.string_at(begin, size)
            if found != POISON[:size]:
                i = next(i for i in range(size) if found[i] != POISON[i])
                return begin + i - self.at
        return None

    @property
    def changed(self) -> bool:
        """Whether its bytes are no longer the storage's."""
        return bool(_c.memcmp(self.at, self.source, self.size))

    def read(self) -> bytes:
        """What a launch left."""
        return ctypes.string_at(self.at, self.size)

    def put_back(self) -> None:
        """The storage takes the bytes."""
        ctypes.memmove(self.source, self.at, self.size)

    def free(self) -> None:
        """To be called once."""
        self._pages.give(self.begin, self.span)
