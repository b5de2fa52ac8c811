"""The ops as CUDA C kernels, run by CuPy: every CUDA card, also those before 8.0.

What a kernel is not made for goes to PyTorch: many tokens times a matrix to its matrix product, a
whole prompt to its fused attention.
"""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import torch
from torch import Tensor

from llama2gpu.backends.base import (
    CACHE_OPS,
    MATRIX_OPS,
    Batch,
    LayerCache,
    Norm,
    Prepared,
    Probe,
    Rope,
    Route,
)
from llama2gpu.backends.kernel_backend import KernelBackend
from llama2gpu.backends.torch import device_name
from llama2gpu.kernels import cuda_attention as attention
from llama2gpu.kernels import cuda_matrix as matrices
from llama2gpu.kernels import cuda_ops as small
from llama2gpu.kernels import cuda_sample as drawing
from llama2gpu.kernels.cuda import Runner
from llama2gpu.kernels.cuda_compile import nvrtc_error
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.splits import Tiles, Workspace
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Weight

#: Names of CuPy's wheels; two of them overwrite each other's files.
WHEELS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")


class CupyBackend(KernelBackend):
    """CUDA C kernels on a CUDA GPU. run: what runs launches; by default CuPy, on the device."""

    name: ClassVar[str] = "cupy"

    def __init__(self, device: torch.device, run: Runner | None = None) -> None:
        super().__init__(device, attention.MULTIPROCESSORS)
        self.run: Runner = run or import_module("llama2gpu.kernels.cuda_run").CupyRunner(device)

    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        """Runs a small kernel on the device, after what is known to go wrong."""
        if device.type != "cuda" or torch.version.hip:
            return Probe(False, f"CuPy needs a CUDA GPU, this is {device}: use --backend torch")
        wrong = missing_package()
        if wrong:
            return Probe(False, wrong)
        running = f"CuPy {import_module('cupy').__version__} on {device_name(device)}"
        return cls.try_kernel(device, running)

    @classmethod
    def on(cls, device: torch.device) -> "CupyBackend":
        """See `KernelBackend.on`."""
        return cls(device)

    def routes(self) -> dict[str, Route]:
        """See `Backend.routes`."""
        packed, dense = matrices.FEW_PACKED, matrices.FEW_DENSE
        matrix = Route(
            f"one kernel, with norm and epilogue, for {packed} tokens at most (dense {dense})",
            "more tokens: dequantized, then PyTorch's matrix product",
            "few tokens wait for memory, which the kernels read packed; many for arithmetic",
        )
        attend = Route(
            "flash-decoding: a sequence's tokens split over blocks",
            "tiles of queries, all sequences in one launch; one whole prompt: PyTorch's SDPA",
            "one query a sequence, or several; SDPA takes neither pages nor an int8 cache",
        )
        return {
            **dict.fromkeys(MATRIX_OPS, matrix),
            **dict.fromkeys(CACHE_OPS, attend),
        }

    def advance(
        self, drawn: Tensor, tokens: Tensor, batch: Batch, params: SampleParams, page: int
    ) -> None:
        """See `Backend.advance`."""
        small.advance(
            self.run, drawn, tokens, batch.positions, batch.lengths, params.draw, batch.slots,
            batch.block_table, page, params.generated,
        )  # fmt: skip

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        table: Weight = weight
        kind = table.data.dtype if isinstance(table, Dense) else torch.float32
        return small.embed(self.run, tokens, table, kind)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        return small.rms_norm(self.run, x, norm.weight, norm.eps)

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        return small.rope(self.run, x, rope.cos, rope.sin, positions)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        return small.silu_mul(self.run, x)

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        small.write_kv(self.run, k, v, batch.slots, cache)

    def sample(self, logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
        """See `Backend.sample`."""
        return drawing.sample(self.run, logits, params, self.zeros(len(logits)))

    def splits(self, reach: int, sequences: int, kv_heads: int) -> int:
        """See `KernelBackend.splits`."""
        return attention.splits_for(reach, sequences, kv_heads, self.multiprocessors)

    def attend_one(
        self, q: Tensor, batch: Batch, cache: LayerCache, splits: int, workspace: Workspace
    ) -> Tensor:
        """See `KernelBackend.attend_one`."""
        where = (batch.lengths, batch.block_table)
        return attention.decode_attention(
            self.run, q, cache, *where, splits=splits, workspace=workspace
        )

    def cut(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tiles:
        """See `KernelBackend.cut`."""
        counts = (batch.new_counts, batch.cached_counts)
        return attention.make_tiles(*counts, q.shape[1], cache.k.shape[1], q.device)

    def attend_many(self, q: Tensor, batch: Batch, cache: LayerCache, tiles: Tiles) -> Tensor:
        """See `KernelBackend.attend_many`."""
        where = (batch.starts, batch.lengths, batch.block_table)
        return attention.prefill_attention(self.run, q, cache, *where, tiles)

    def few(self, x: Tensor, matrix: Packed) -> bool:
        """See `KernelBackend.few`."""
        packed = matrix.bits <= 8
        return matrices.takes(matrix, len(x)) and (packed or matrix.data.dtype == x.dtype)

    def few_linear(
        self, x: Tensor, matrix: Packed, norm: Norm | None, residual: Tensor | None,
        kind: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """See `KernelBackend.few_linear`."""
        weights, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        return matrices.linear(
            self.run, x, matrix, norm=weights, eps=eps, residual=residual, out_dtype=kind
        )

    def few_gate_up(self, x: Tensor, matrix: Packed, norm: Norm) -> Tensor:
        """See `KernelBackend.few_gate_up`."""
        return matrices.gate_up(self.run, x, matrix, norm=norm.weight, eps=norm.eps)

    def few_qkv(
        self, x: Tensor, matrix: Packed, norm: Norm, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `KernelBackend.few_qkv`."""
        return matrices.qkv(
            self.run, x, matrix, norm=norm.weight, eps=norm.eps, rope=(rope.cos, rope.sin),
            positions=batch.positions, slots=batch.slots, cache=cache,
        )  # fmt: skip

    def rope_write(self, y: Tensor, rope: Rope, batch: Batch, cache: LayerCache) -> Tensor:
        """See `KernelBackend.rope_write`."""
        places = (batch.positions, batch.slots)
        return small.rope_write(self.run, y, rope.cos, rope.sin, *places, cache)

    def unpacked(self, matrix: Packed, dtype: torch.dtype) -> Tensor:
        """See `KernelBackend.unpacked`."""
        return matrices.dequantize(self.run, matrix, dtype)


def missing_package() -> str:
    """What keeps CuPy from working here and the `pip install` that mends it; "" for nothing."""
    major = "13" if str(torch.version.cuda or "12").startswith("13") else "12"
    mend = "pip install 'llama2gpu[cupy13]'" if major == "13" else "pip install 'llama2gpu[cupy]'"
    wheels = sorted(installed())
    if not wheels:
        return f"CuPy is not installed: {mend}"
    if len(wheels) > 1:
        both = " ".join(wheels)
        return f"two CuPy packages overwrite each other: pip uninstall -y {both}; {mend}"
    made_for = wheels[0].removeprefix("cupy").removeprefix("-cuda").removesuffix("x")
    if made_for and made_for != major:
        remove = f"pip uninstall -y {wheels[0]}"
        return f"{wheels[0]} is for CUDA {made_for}, PyTorch for CUDA {major}: {remove}; {mend}"
    try:
        import_module("cupy")
    except Exception as error:  # of many kinds: it looks for libraries
        return f"CuPy can't be imported ({_first_line(error)}): {mend}"
    if reason := nvrtc_error():
        package = "nvidia-cuda-nvrtc" if major == "13" else "nvidia-cuda-nvrtc-cu12"
        return f"CUDA's compiler NVRTC is missing ({reason}): pip install {package}"
    return ""


def installed() -> set[str]:
    """Which of CuPy's wheels are installed; asked by name, since a list of all takes long."""
    found = set()
    for name in WHEELS:
        with suppress(PackageNotFoundError):
            version(name)
            found.add(name)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
