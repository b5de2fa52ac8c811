"""PyTorch's zip files (`.pth`, `.bin`), opened without running or inflating anything in them."""

import math
import zipfile
from functools import partial
from pathlib import Path

import torch

from llama2gpu.checkpoints.files import HEADER_LIMIT, blamed_on, file_size, read_start
from llama2gpu.checkpoints.pickle_scan import scan
from llama2gpu.checkpoints.stored import Stored, header
from llama2gpu.errors import CheckpointError

_RESAVE = "download it again, or save it again with torch.save's defaults, or as safetensors"


def open_pickle(path: Path) -> dict[str, Stored]:
    """The named tensors of a state dict, mapped.

    Members must be stored, not deflated, and the pickle within may only rebuild plain tensors;
    then `torch.load` opens it with `weights_only=True`. Raises `CheckpointError` for all else.
    """
    size = file_size(path)
    if read_start(path, 4) != b"PK\x03\x04":
        raise CheckpointError(
            f"{path} is no PyTorch zip file (1.6 and later write them): {_RESAVE}"
        )
    with blamed_on(path, _RESAVE):
        scan(_pickle_of(path, size))
        values = _load(path)
        tensors = {
            name: value.detach()
            for name, value in values.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        _check_extent(tensors, size)
        return {name: _stored(name, tensor) for name, tensor in tensors.items()}


def _pickle_of(path: Path, size: int) -> bytes:
    """The archive's one pickle, after its directory is found honest about sizes."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename.casefold() for member in members}
        if len(names) < len(members) or min(m.header_offset for m in members):
            raise ValueError("its directory is ambiguous")
        if any(
            m.compress_type or m.flag_bits & 1 or m.file_size != m.compress_size for m in members
        ):
            raise ValueError("it holds compressed or encrypted members")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap")
        pickles = [m for m in members if m.filename.casefold().split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or pickles[0].file_size > HEADER_LIMIT:
            raise ValueError(f"it holds no data.pkl of at most {HEADER_LIMIT} bytes")
        return archive.read(pickles[0])


def _load(path: Path) -> dict[object, object]:
    """`torch.load`, but for its advice on failure, which is to run the file's code."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError("PyTorch can't open it") from error
    if not isinstance(values, dict):
        raise ValueError("it holds no dictionary of tensors")
    return values


def _check_extent(tensors: dict[str, torch.Tensor], size: int) -> None:
    """No tensor may claim more than its storage, nor all of them more than a file with ties."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} is no plain tensor")
        claimed = math.prod(tensor.shape) * tensor.itemsize
        total += claimed
        if claimed > tensor.untyped_storage().nbytes() or total > 2 * size:
            raise ValueError(f"{name} claims more bytes than the file holds")


def _stored(name: str, tensor: torch.Tensor) -> Stored:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return header(name, tuple(tensor.shape), dtype, partial(_itself, tensor))


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
