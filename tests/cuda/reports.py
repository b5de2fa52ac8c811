"""What went wrong in a launch, in words."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.cuda.memory import Copy

#: Addresses below are those of no object.
NULL_END = 1 << 20
#: Files of functions that kernels only call.
CALLED = {"on_cpu.h", "arithmetic.h"}


class EmulationError(Exception):
    """A kernel that does not compile, or a launch that a GPU would not run right.

    block, thread: where it was found, or None.
    """

    def __init__(
        self,
        kernel: str,
        what: str,
        block: tuple[int, ...] | None = None,
        thread: int | None = None,
    ) -> None:
        place = f", block {block}" if block is not None else ""
        place += f", thread {thread}" if thread is not None else ""
        super().__init__(f"{kernel}{place}: {what}")
        self.kernel, self.block, self.thread = kernel, block, thread


class Report(ctypes.Structure):
    """`Report` of emulator.h."""

    _fields_ = (
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_int),
        ("line", ctypes.c_int),
        ("address", ctypes.c_ulonglong),
        ("pc", ctypes.c_ulonglong),
        ("library", ctypes.c_char * 512),
        ("file", ctypes.c_char * 256),
        ("what", ctypes.c_char * 512),
    )


class Given(NamedTuple):
    """An argument of a launch: its parameter's name; what the kernel is given, for a tensor an

    address; and the copy that this is in.
    """

    name: str
    value: int | float | None
    copy: Copy | None


def failure(kernel: str, report: Report, given: Sequence[Given]) -> EmulationError:
    """The report as an error."""
    what = report.what.decode(errors="replace")
    if report.address:
        what += f": {_describe(report.address, given)}"
    if place := _place(report):
        what += f", at {place}"
    thread = report.thread if report.thread >= 0 else None
    return EmulationError(kernel, what, tuple(report.block), thread)


def trespass(given: Sequence[Given]) -> str | None:
    """What a launch that ended well wrote though it must not, if anything."""
    for i, one in enumerate(given):
        if one.copy is None:
            continue
        touched = one.copy.touched()
        if touched is not None:
            return f"writes {_in_argument(one.copy.at + touched, i, one)}"
        if not one.copy.written and one.copy.changed:
            return f"writes what argument {i} ({one.name}) points to, which is const"
    return None


def _describe(address: int, given: Sequence[Given]) -> str:
    """Where an address is."""
    if address < NULL_END:
        nulls = [f"argument {i} ({one.name})" for i, one in enumerate(given) if one.value is None]
        return f"byte {address} of a null pointer; null: {', '.join(nulls) or 'no argument'}"
    for i, one in enumerate(given):
        if one.copy is not None and one.copy.is_near(address):
            return _in_argument(address, i, one)
    return f"{address:#x}, which is far from all arguments"


def _in_argument(address: int, i: int, one: Given) -> str:
    assert one.copy is not None
    assert isinstance(one.value, int)
    first = one.copy.at - one.value
    return (
        f"byte {address - one.value} of argument {i} ({one.name}), "
        f"whose storage has bytes {first} to {first + one.copy.size - 1}"
    )


def _place(report: Report) -> str:
    """The line of the kernel, as far as it can be known."""
    known = f"{Path(report.file.decode()).name}:{report.line}" if report.line else ""
    program = shutil.which("addr2line")
    if program is None or not report.pc:
        return known
    command = [program, "-i", "-e", report.library.decode(), hex(report.pc)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for file, line in re.findall(r"([^/\n]+):(\d+)", done.stdout):
        if file not in CALLED:
            return f"{file}:{line}"
    return known
