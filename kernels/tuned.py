"""What `llama2gpu kernels tune` found: a file for each kind of device and version of Triton.

The file is JSON in the user's cache. It is good for the kernels that it was measured with alone,
and a damaged one is not used: whatever is read was checked.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.tiling import UNTUNED, Tile, Use, misfit
from llama2gpu.kernels.user_cache import cache_folder, warn_once, write_whole

FORMAT = 1
#: Bytes that a file may have.
LIMIT = 1 << 20
#: The sources whose tiles are tuned.
SOURCES = (
    "dot_tiles.py", "gate_up.py", "head.py", "linear.py", "overlap.py", "packed.py", "qkv.py",
    "tiles.py", "vector_tiles.py",
)  # fmt: skip


class Entry(NamedTuple):
    """A tile that beat the shipped one. shipped_us, tuned_us: microseconds. date: ISO."""

    use: Use
    tile: Tile
    shipped_us: float
    tuned_us: float
    date: str


@dataclass(frozen=True)
class Tuned:
    """Tiles by use, and in words where they are from."""

    tiles: Mapping[Use, Tile] = field(default_factory=lambda: UNTUNED)
    origin: str = "shipped"


class DamagedError(Exception):
    """A file can't be used; says why."""


def tuned_path(device: str) -> Path:
    """The file of a device of that name. Raises `RuntimeError` where the user has no home."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_folder() / "tuned" / f"{name}-triton-{triton.__version__}.json"


def load_tuned(device: str, arch: Arch) -> Tuned:
    """What serves a device of that name: its file, or nothing where there is none.

    A file that can't be used is told in one line on stderr, once.
    """
    try:
        path = tuned_path(device)
        entries = read_entries(path, arch.name) if path.exists() else []
    except RuntimeError:
        return Tuned()
    except (DamagedError, OSError) as error:
        warn_once(
            f"llama2gpu: {path} can't be used ({error}): delete it, or run `llama2gpu kernels tune`"
            " again; until then the shipped tiles serve"
        )
        return Tuned()
    if not entries:
        return Tuned()
    origin = f"tuned {max(entry.date for entry in entries)} ({len(entries)})"
    return Tuned({entry.use: entry.tile for entry in entries}, origin)


def read_entries(path: Path, arch: str) -> list[Entry]:
    """The entries of a file, checked. Raises `DamagedError` or `OSError`."""
    if not path.is_file():  # a pipe would be waited for
        raise DamagedError("it is no file")
    with path.open("rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise DamagedError("it is too large")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is no JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedError("it has another format")
    if content.get("kernels") != kernels_digest():
        raise DamagedError("it was measured with other kernels than these")
    if content.get("arch") != arch or not isinstance(content.get("entries"), list):
        raise DamagedError(f"it is not of {arch}")
    return [_entry(raw, arch) for raw in content["entries"]]


def write_entries(path: Path, device: str, arch: str, entries: Iterable[Entry]) -> None:
    """Writes a file, whole or not at all."""
    content = {
        "format": FORMAT,
        "device": device,
        "arch": arch,
        "versions": {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
        },
        "kernels": kernels_digest(),
        "entries": [_raw(entry) for entry in sorted(entries)],
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


@cache
def kernels_digest() -> str:
    """Tells these matrix kernels from others."""
    here = Path(__file__).resolve().parent
    sources = "\0".join((here / name).read_text(encoding="utf-8") for name in SOURCES)
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def _raw(entry: Entry) -> dict[str, Any]:
    use = entry.use._asdict()
    del use["arch"]  # of the whole file
    times = {"shipped_us": entry.shipped_us, "tuned_us": entry.tuned_us, "date": entry.date}
    return use | entry.tile._asdict() | times


def _entry(raw: Any, arch: str) -> Entry:
    if not isinstance(raw, dict):
        raise DamagedError("an entry is no object")
    use = Use(arch, *(_whole(raw, name) for name in Use._fields[1:]))
    tile = Tile(*(_whole(raw, name) for name in Tile._fields))
    times: list[Any] = [raw.get("shipped_us"), raw.get("tuned_us")]
    date = raw.get("date")
    if not all(isinstance(t, int | float) and 0 < t < 1e9 for t in times):
        raise DamagedError("an entry lacks its times")
    if not isinstance(date, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise DamagedError("an entry lacks its date")
    if use.bits not in (4, 8, 16, 32) or use.tokens not in (1, 16, 32, 64):
        raise DamagedError("an entry is of no kernel")
    if reason := misfit(use, tile):
        raise DamagedError(f"a tile does not fit its kernel: {reason}")
    return Entry(use, tile, float(times[0]), float(times[1]), date)


def _whole(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise DamagedError(f"{name} of an entry is no whole number above 0")
    return value
