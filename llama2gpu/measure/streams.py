"""Which arguments a kernel's loads read, how wide, and how many lanes read the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llama2gpu.measure.listing import Listing

#: Bits of LLVM's scalar types.
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}
_POINTER = re.compile(r"ptr(?: addrspace\(\d+\))?(?: [a-z]\w*(?:\(\d+\))?)* (%[\w.$-]+)")
_GLOBAL = re.compile(r"ptr addrspace\([18]\)(?: [a-z]\w*(?:\(\d+\))?)* (%[\w.$-]+)")


@dataclass(frozen=True)
class Load:
    """A load from global memory by one lane. at: its instruction; arguments: where it may read."""

    at: int
    bits: int
    arguments: frozenset[str]


def find_loads(llir: str, listing: Listing, parameters: Sequence[str]) -> list[Load]:
    """All loads of a kernel, each traced back to the kernel's parameters, named in order."""
    named = dict(zip(_parameters(llir), parameters, strict=False))  # Triton appends its own
    origins: dict[str, list[str]] = {}
    for made in listing.instructions:
        if name := re.match(r"\s+(%[\w.$-]+) = ", made.text):
            origins[name[1]] = _sources(made.opcode, made.text)
    found = []
    for at, made in enumerate(listing.instructions):
        bits = _load_bits(made.opcode, made.text)
        pointers = _GLOBAL.findall(made.text) if bits else []
        if pointers:
            names = _origin(pointers, origins)
            reads = frozenset(named[name] for name in names if name in named)
            found.append(Load(at, bits, reads))
    return found


def _parameters(llir: str) -> list[str]:
    """The kernel's arguments, in order."""
    head = re.search(r"^define \w*kernel .*$", llir, re.MULTILINE)
    inner = head[0].partition("(")[2] if head else ""
    parts = re.split(r", (?=ptr|i\d|float|double|half|bfloat)", inner)
    return [name[0] for part in parts if (name := re.findall(r"%[\w.$-]+", part))]


def _sources(opcode: str, line: str) -> list[str]:
    """The pointers that a pointer is made of."""
    if opcode == "phi":
        return re.findall(r"\[ (%[\w.$-]+),", line)
    return _POINTER.findall(line)


def _origin(names: list[str], origins: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += origins.get(name, [])
    return seen


def _load_bits(opcode: str, line: str) -> int:
    """Bits that one lane loads from global memory by an instruction; 0 where it loads none."""
    if opcode == "load" and (found := re.search(r" load (?:volatile )?(.*?), ptr", line)):
        return _type_bits(found[1])
    if opcode != "call":
        return 0
    if found := re.search(r"ld\.(?:volatile\.)?global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+) ", line):
        return int(found[1] or 1) * int(found[2])
    if found := re.search(r"cp\.async\.c[ag]\.shared\.global[^;]*?, 0x([0-9a-f]+)", line):
        return 8 * int(found[1], 16)
    if found := re.search(r"load\.(?:async\.to\.)?lds\S*\(.*?, ptr.*?, i32 (\d+)", line):
        return 8 * int(found[1])
    if found := re.search(r"call (.*?) @llvm\.amdgcn\.\S*?load", line):
        return _type_bits(found[1])
    return 0


def _type_bits(name: str) -> int:
    """Bits of a type, scalar or vector."""
    if found := re.search(r"<(\d+) x (\w+)>", name):
        return int(found[1]) * _type_bits(found[2])
    word = name.split()[-1]
    return int(word[1:]) if re.fullmatch(r"i\d+", word) else _BITS.get(word, 0)


def repeats(ttgir: str, argument: str) -> int:
    """How many lanes of a block load each element of an argument, from the tensors' layouts.

    1 where each is loaded once, or where the layout is of a kind that no load has.
    """
    origins: dict[str, list[str]] = {}
    for name, operation in re.findall(r"(%[\w$-]+)(?::\d+)? = (.*)", ttgir):
        if "addptr" in operation or re.search(r"splat|broadcast|expand_dims|convert_layout|bitcast",
                                              operation):  # fmt: skip
            origins[name] = re.findall(r"%[\w$-]+", operation)[:1]
    for name, start in re.findall(r"(%[\w$-]+) = (%[\w$-]+)[,)#]", ttgir):
        origins.setdefault(name, []).append(start)
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<\{.*\}>)", ttgir, re.MULTILINE))
    found = [1]
    for pointer, shape, layout in re.findall(
        r"(?:tt\.load|buffer_load\w*|async_copy_global_to_local) (%[\w$-]+).*?"
        r"tensor<([\dx]+)x[^,]+, (#\w+)>",
        ttgir,
    ):
        if f"%{argument}" in _origin([pointer], origins):
            sizes = [int(size) for size in shape.split("x")]
            found.append(_layout_repeats(layouts.get(layout, ""), sizes))
    return max(found)


def _layout_repeats(layout: str, shape: list[int]) -> int:
    """The same for one tensor."""
    if layout.startswith("#ttg.linear"):
        fields = re.search(r"lane = (\[.*?\]), warp = (\[.*?\]), block", layout)
        bases = re.findall(r"\[([\d, ]+)\]", " ".join(fields.groups())) if fields else []
        return 1 << sum(not any(map(int, basis.split(","))) for basis in bases)
    names = ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
    found = [re.search(rf"{name} = \[([\d, ]+)\]", layout) for name in names]
    if None in found or not layout.startswith("#ttg.blocked"):
        return 1
    axes = zip(*([int(x) for x in f[1].split(",")] for f in found if f), strict=True)
    return prod(max(1, prod(axis) // size) for axis, size in zip(axes, shape, strict=True))
