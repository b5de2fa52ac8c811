"""The kernels that a backend would launch for an op, and what each is made of."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from llama2gpu.backends import backend_class
from llama2gpu.errors import BackendError
from llama2gpu.kernels.arch import ARCHS, EVERY_ARCH, Arch
from llama2gpu.kernels.cuda import CudaLaunch
from llama2gpu.kernels.cuda_code import cuda_code
from llama2gpu.kernels.launch import Launch, recording
from llama2gpu.kernels.machine_code import machine_code, require_compiler
from llama2gpu.measure.binary import Binary, Stream, read_binary
from llama2gpu.measure.cards import bandwidth_bound
from llama2gpu.measure.cuda_binary import read_cuda_binary
from llama2gpu.measure.kernel_work import VALUE_BITS, Work, meta_arguments

#: Ways of the Triton backend, by name: the keywords that make it; the first needs no switch.
VARIANTS: dict[str, dict[str, Any]] = {"default": {}, "no-denormals": {"denormals": False}}
#: The CuPy backend's only way; on cards that Triton does not serve it needs no switch.
CUDA_C = "cuda-c"


@dataclass(frozen=True)
class Row:
    """One compiled kernel in one use, and what it is made of.

    n, k: outputs and inputs of the op for one token (`Work`). instr_per_weight, bandwidth_bound: of
    kernels that read the op's matrix or cache; the latter for each card, unless it is a prefill.
    """

    op: str
    kernel: str
    variant: str
    default: bool
    weight: str
    m: int
    n: int
    k: int | None
    case: str
    arch: str
    binary: Binary
    instr_per_weight: float | None
    bandwidth_bound: dict[str, float]

    def fields(self) -> dict[str, Any]:
        """What is told in JSON."""
        names = (
            "registers", "spill_bytes", "shared_bytes", "shared_limit", "load_bits",
            "barriers_in_loop", "matrix_op",
        )  # fmt: skip
        found = asdict(self)
        binary = found.pop("binary")
        last = {name: found.pop(name) for name in ("instr_per_weight", "bandwidth_bound")}
        return found | {name: binary[name] for name in names} | last


@dataclass(frozen=True)
class Job:
    """One op in one use, to be compiled for one architecture."""

    work: Work
    arch: str
    variant: str = "default"


def variants_for(arch: str, backends: Collection[str]) -> list[str]:
    """The ways to compile for an architecture, of the backends that know it."""
    found = [*VARIANTS] if "triton" in backends and arch in ARCHS else []
    return found + [CUDA_C] * ("cupy" in backends and EVERY_ARCH[arch].is_cuda)


def record(work: Work, arch: Arch, variant: str = "default") -> list[Launch]:
    """The launches of the Triton backend for an op, in order; nothing runs or is compiled."""
    make: Any = backend_class("triton")
    backend = make(torch.device("meta"), arch=arch, **VARIANTS[variant])
    arguments = meta_arguments(work, backend)
    with recording() as launches:
        getattr(backend, work.op)(**arguments)
    return launches


def record_cuda(work: Work) -> list[CudaLaunch]:
    """Those of the CuPy backend."""
    make: Any = backend_class("cupy")
    launches: list[CudaLaunch] = []
    backend = make(torch.device("meta"), run=launches.append)
    getattr(backend, work.op)(**meta_arguments(work, backend))
    return [launch for launch in launches if not launch.empty]


def inspect(job: Job) -> list[Row]:
    """Compiles what an op launches, and takes it apart. Raises `BackendError` where that fails."""
    work, arch = job.work, EVERY_ARCH[job.arch]
    rows = []
    if job.variant == CUDA_C:
        for made in record_cuda(work):
            main = _reads_matrix(made.arguments, work)
            binary = read_cuda_binary(cuda_code(made, arch), work.value_bits, main)
            rows.append(_row(job, made.kernel, binary, main))
        return rows
    for launch in record(work, arch, job.variant):
        try:
            code = machine_code(launch, arch)
        except BackendError:
            raise
        except Exception as error:  # of many kinds: the compiler's
            where = f"{launch.name} of {work.op} ({work.case}, {work.weight}) for {arch.name}"
            raise BackendError(f"{where} can't be compiled: {error}") from error
        binary = read_binary(code, _streams(launch, work), _share(launch, work))
        main = _reads_matrix(launch.arguments.values(), work)
        rows.append(_row(job, launch.name, binary, main))
    return rows


def inspect_all(
    jobs: Sequence[Job], told: Callable[[int, int, str], None] = lambda done, total, what: None
) -> Iterator[Row]:
    """The rows of many jobs, in order, compiled by as many processes as there are CPUs.

    told: hears how many jobs are done, of how many, and which is waited for.
    """
    if any(job.variant != CUDA_C for job in jobs):
        require_compiler()
    names = [f"{job.work.op} {job.work.weight} {job.arch}" for job in jobs]
    workers = min(os.cpu_count() or 1, len(jobs) // 2, 32)
    if workers < 2:
        for i, job in enumerate(jobs):
            told(i, len(jobs), names[i])
            yield from inspect(job)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks of running threads
    pool = ProcessPoolExecutor(workers, mp_context=spawn)
    try:
        waiting = [pool.submit(inspect, job) for job in jobs]
        for i, future in enumerate(waiting):
            told(i, len(jobs), names[i])
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row(job: Job, kernel: str, binary: Binary, main: bool) -> Row:
    work = job.work
    share = binary.instr_per_weight if main else None
    bound = {}
    if share is not None and not work.is_prefill:
        bound = bandwidth_bound(job.arch, share, work.bytes_per_value)
    return Row(
        op=work.op,
        kernel=kernel,
        variant=job.variant,
        default=job.variant == (next(iter(VARIANTS)) if job.arch in ARCHS else CUDA_C),
        weight=work.weight,
        m=work.m,
        n=work.n,
        k=work.k,
        case=work.case,
        arch=job.arch,
        binary=binary,
        instr_per_weight=share,
        bandwidth_bound=bound,
    )


def _streams(launch: Launch, work: Work) -> dict[str, Stream]:
    """The tensors among the arguments, by name."""
    return {
        name: Stream(value.nbytes, _bits(value, work))
        for name, value in launch.arguments.items()
        if isinstance(value, torch.Tensor)
    }


def _bits(tensor: torch.Tensor, work: Work) -> int:
    """Bits of one value in a tensor, which is the matrix if it has room for all of its values."""
    packed = VALUE_BITS.get(work.weight, 16)
    room = 8 * tensor.nbytes // packed
    if work.has_matrix and not tensor.is_floating_point() and room >= work.n * (work.k or 1):
        return packed
    return 8 * tensor.itemsize


def _reads_matrix(arguments: Iterable[Any], work: Work) -> bool:
    """Whether it is the kernel that reads the op's matrix or cache, and not one beside it."""
    sizes = [x.nbytes for x in arguments if isinstance(x, torch.Tensor)]
    return work.streamed_bytes > 0 and 2 * max(sizes, default=0) >= work.streamed_bytes


def _share(launch: Launch, work: Work) -> float | None:
    """Values of the matrix for each block, of one token: then no two blocks read the same."""
    if not work.has_matrix or work.m != 1 or not _reads_matrix(launch.arguments.values(), work):
        return None
    return work.n * (work.k or 1) / prod(launch.plan.grid)


def list_kernels(works: Sequence[Work]) -> list[dict[str, Any]]:
    """Kernels by op, in order: op, kernel, summary, and the weights and tokens that lead to it.

    Plans are made for the architecture of an H200; nothing is compiled.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for work in works:
        for launch in record(work, ARCHS["sm_90"]):
            doc = (launch.kernel.__doc__ or "").strip().partition("\n")[0]
            start: dict[str, Any] = {"op": work.op, "kernel": launch.name, "summary": doc}
            start |= {"weights": [], "tokens": []}
            entry = found.setdefault((work.op, launch.name), start)
            for key, value in (("weights", work.weight), ("tokens", work.m)):
                if value not in entry[key]:
                    entry[key].append(value)
    return list(found.values())
