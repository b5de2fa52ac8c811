"""A look through a pickle before it is opened: only what `torch.save` writes for a state dict.

`weights_only=True` already keeps code from running, but not memory from growing: its list of safe
calls has `bytearray`, and copies of copies of dictionaries or shapes. Here the few opcodes are
followed on a stack of outlines, so that whatever passes opens in time and memory that are
proportional to its length.
"""

import pickletools
from typing import NamedTuple

#: Names that a state dict refers to, and how many arguments each may be called with.
_CALLS: dict[object, tuple[int, ...]] = {
    "collections OrderedDict": (0,),
    "torch._utils _rebuild_tensor_v2": (6, 7),
    "torch._utils _rebuild_parameter": (3,),
}
_NAMES = (
    {*_CALLS}
    | {
        f"torch {kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Char", "Byte", "Short", "Int", "Long")
    }
    | {"torch BoolStorage", "torch.storage UntypedStorage"}
)
_PUSHES = {
    "EMPTY_DICT",
    "EMPTY_LIST",
    "BINUNICODE",
    "SHORT_BINSTRING",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
}
_MARK = "("


class _Tuple(NamedTuple):
    length: int
    depth: int


def scan(pickle: bytes) -> None:
    """Raises `ValueError` or `LookupError` where a pickle is more than a dictionary of tensors."""
    walk = _Walk()
    for opcode, argument, _ in pickletools.genops(pickle):
        walk.step(opcode.name, argument)


class _Walk:
    """The unpickler's stack in outline: tuples by their size, globals by name, the rest None."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[object, object] = {}
        self.builds = 0

    def step(self, name: str, argument: object) -> None:
        stack = self.stack
        match name:
            case "PROTO":
                _require(argument == 2, "it is not of pickle protocol 2")
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._tuple(name)
            case "GLOBAL":
                _require(argument in _NAMES, f"it refers to {str(argument)!r}")
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "REDUCE":
                self._call()
            case _:
                self._fill(name)

    def _tuple(self, name: str) -> None:
        count = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}.get(name)
        items = self._above_mark() if count is None else [self.stack.pop() for _ in range(count)]
        depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        _require(len(items) <= 8 and depth <= 2, "it holds a tuple that no tensor needs")
        self.stack.append(_Tuple(len(items), depth))

    def _call(self) -> None:
        arguments, call = self.stack.pop(), self.stack.pop()
        allowed = isinstance(arguments, _Tuple) and arguments.length in _CALLS.get(call, ())
        _require(allowed, f"it calls {str(call)!r}")
        self.stack.append(None)

    def _fill(self, name: str) -> None:
        stack = self.stack
        match name:
            case "SETITEMS" | "APPENDS":
                self._above_mark()
            case "SETITEM":
                del stack[-2:]
            case "APPEND":
                stack.pop()
            case "BUILD":
                stack.pop()
                self.builds += 1
                _require(self.builds == 1, "it sets attributes of more than one object")
            case "BINPERSID":
                stack[-1] = None
            case "STOP":
                pass
            case _:
                _require(name in _PUSHES, f"it uses the opcode {name}")
                stack.append(None)

    def _above_mark(self) -> list[object]:
        """Takes everything above the last mark off the stack, and the mark."""
        items = []
        while (item := self.stack.pop()) != _MARK:
            items.append(item)
        return items


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
