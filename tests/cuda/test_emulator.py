"""The emulator sees the mistakes that it says it sees."""

import shutil
from pathlib import Path

import pytest
import torch

from llama2gpu.kernels.cuda import FOLDER, Argument, CudaLaunch
from tests.cuda.emulator import Emulator, EveryOrder, Order
from tests.cuda.memory import Edge
from tests.cuda.reports import EmulationError

COMMON = (FOLDER / "common.cuh").read_text(encoding="utf-8")
OWN = Path(__file__).with_name("planted.cu").read_text(encoding="utf-8")
TEXT = COMMON + '#line 1 "planted.cu"\n' + OWN.replace('#include "common.cuh"', "")
SOURCES = {"planted": TEXT}
ORDERS: tuple[Order, ...] = ("ascending", "descending", 5)
EDGES: tuple[Edge, ...] = ("end", "start")

pytestmark = pytest.mark.usefixtures("emulator")
in_orders = pytest.mark.parametrize("order", ORDERS)
at_edges = pytest.mark.parametrize("edge", EDGES)


def launch(
    kernel: str,
    *arguments: Argument,
    grid: tuple[int, int, int] = (1, 1, 1),
    threads: int = 64,
    shared: int = 0,
) -> CudaLaunch:
    return CudaLaunch("planted", kernel, grid, threads, arguments, {}, shared)


def line_of(text: str, after: str) -> int:
    """The first line of the planted kernels with a text that comes after another."""
    lines = OWN.splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return 1 + next(i for i in range(start, len(lines)) if text in lines[i])


def failure(made: CudaLaunch, order: Order = "ascending", edge: Edge = "end") -> EmulationError:
    """How a launch fails; it leaves its tensors as they were."""
    tensors = [one for one in made.arguments if isinstance(one, torch.Tensor)]
    before = [one.clone() for one in tensors]
    with pytest.raises(EmulationError) as caught:
        Emulator(order, edge, SOURCES, seconds=1)(made)
    assert str(caught.value).startswith(made.kernel)
    for one, old in zip(tensors, before, strict=True):
        assert torch.equal(one, old)
    return caught.value


def test_missing_barrier_shows() -> None:
    y = torch.zeros(128)
    Emulator("ascending", sources=SOURCES)(launch("reverse", y, 0, threads=128))
    assert y[:64].isnan().all()
    Emulator("descending", sources=SOURCES)(launch("reverse", y, 0, threads=128))
    assert y[64:].isnan().all()
    with pytest.raises(EmulationError, match=r"argument 0 \(y\) depends on order"):
        EveryOrder(SOURCES)(launch("reverse", y, 0, threads=128))
    EveryOrder(SOURCES)(launch("reverse", y, 1, threads=128))
    assert y.tolist() == [*range(127, -1, -1)]


@in_orders
def test_barriers_apart(order: Order) -> None:
    error = failure(launch("barriers_apart", torch.zeros(128), threads=128), order)
    first = line_of("__syncthreads", "barriers_apart")
    assert f"__syncthreads at planted.cu:{first}" in str(error)
    assert f"__syncthreads at planted.cu:{first + 2}" in str(error)


@in_orders
@pytest.mark.parametrize("n", [1, 63, 32])
def test_barrier_after_exit(n: int, order: Order) -> None:
    error = failure(launch("barrier_after_exit", torch.zeros(64), n), order)
    line = line_of("__syncthreads", "barrier_after_exit")
    assert error.thread == 0
    assert f"at planted.cu:{line} for thread {n}, which has left the kernel" in str(error)
    Emulator(order, sources=SOURCES)(launch("barrier_after_exit", torch.zeros(64), 64))


@in_orders
def test_shuffle_without_a_lane(order: Order) -> None:
    error = failure(launch("shuffle_without", torch.zeros(64), 5), order)
    assert "__shfl_xor_sync at planted.cu" in str(error)
    assert "for thread 5, which has left" in str(error)
    assert error.thread == 0
    Emulator(order, sources=SOURCES)(launch("shuffle_without", torch.zeros(64), 32))


@in_orders
@pytest.mark.parametrize(
    ("kernel", "threads", "text"),
    [
        ("shuffles_apart", 32, "which waits in __shfl_xor_sync at planted.cu"),
        ("shuffle_and_barrier", 64, "for thread 32, which waits in __syncthreads at planted.cu"),
        ("masks_apart", 32, "__ballot_sync at planted.cu"),
        ("short_warp", 20, "names lanes that a block of 20 threads does not have"),
    ],
)
def test_lanes_that_do_not_meet(kernel: str, threads: int, text: str, order: Order) -> None:
    assert text in str(failure(launch(kernel, torch.zeros(64), threads=threads), order))


@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize(
    ("n", "at", "edge"),
    [
        *((4, 4, "end"), (5, 8, "end"), (1024, 1024, "end"), (5000, 1000000, "end")),
        *((4, -1, "start"), (1024, -1, "start"), (5, -1000000, "start"), (4096, 4096, "start")),
    ],
)
def test_touch_outside_a_storage(n: int, at: int, edge: Edge, write: int) -> None:
    x, y = torch.zeros(n), torch.zeros(1)
    error = failure(launch("touch", x, y, at, write, grid=(2, 1, 1)), edge=edge)
    assert (error.block, error.thread) == ((1, 0, 0), 3)
    assert f"byte {4 * at} of argument 0 (x), whose storage has bytes 0 to {4 * n - 1}" in str(
        error
    )
    if shutil.which("addr2line"):
        line = line_of("x[at] = 1" if write else "= x[at]", "void touch")
        assert str(error).endswith(f"at planted.cu:{line}")


@pytest.mark.parametrize(
    ("n", "at", "edge"), [(5, 5, "end"), (7, 7, "end"), (4, -1, "end"), (4, 4, "start")]
)
def test_touch_beside_a_storage(n: int, at: int, edge: Edge) -> None:
    """On its own pages: a write is found, a read is of no number."""
    x, y = torch.zeros(n), torch.zeros(1)
    error = failure(launch("touch", x, y, at, 1, grid=(2, 1, 1)), edge=edge)
    assert f"writes byte {4 * at} of argument 0 (x)" in str(error)
    Emulator(edge=edge, sources=SOURCES)(launch("touch", x, y, at, 0, grid=(2, 1, 1)))
    assert y.isnan().all()


def test_touch_of_a_view() -> None:
    """It may touch all of its storage; offsets count from where it begins."""
    whole, y = torch.arange(32.0), torch.zeros(1)
    emulator = Emulator(sources=SOURCES)
    emulator(launch("touch", whole[16:20], y, -16 + 7, 0, grid=(2, 1, 1)))
    assert y == 7
    error = failure(launch("touch", whole[16:20], y, 16, 0, grid=(2, 1, 1)))
    assert "byte 64 of argument 0 (x), whose storage has bytes -64 to 63" in str(error)


def test_null_pointer() -> None:
    y = torch.zeros(1)
    error = failure(launch("touch", None, y, 0, 0, grid=(2, 1, 1)))
    assert "null pointer" in str(error)
    error = failure(launch("touch", None, y, 5, 1, grid=(2, 1, 1)))
    assert "byte 20 of a null pointer; null: argument 0 (x)" in str(error)
    empty = torch.zeros(0)
    assert "argument 0 (x)" in str(failure(launch("touch", empty, y, 0, 0, grid=(2, 1, 1))))


@pytest.mark.parametrize("once", [0, 1])
def test_misaligned_load(once: int) -> None:
    x, y = torch.arange(12.0), torch.zeros(4)
    error = failure(launch("load_16", x, y, 1, once, threads=1))
    assert "no multiple of its alignment" in str(error)
    Emulator(sources=SOURCES)(launch("load_16", x, y, 4, once, threads=1))
    assert y.tolist() == [4, 5, 6, 7]


def test_unwritten_shared_memory() -> None:
    """In every block, whatever the last one left; static, of templates, and dynamic."""
    y, z = torch.zeros(2), torch.zeros(2, dtype=torch.int32)
    emulator = Emulator(sources=SOURCES)
    emulator(launch("read_unwritten", y, z, 1, threads=1, shared=2))
    assert [*y.tolist()[:1], *z.tolist()] == [1, 1, 1]
    emulator(launch("read_unwritten", y, z, 0, threads=1, shared=2, grid=(3, 1, 1)))
    assert y.isnan().all()
    assert z[0] > 1 << 30


def test_dynamic_shared_memory() -> None:
    x, y = torch.arange(1.0, 1001.0), torch.zeros(1)
    for n in (0, 1, 5, 1000):
        EveryOrder(SOURCES)(launch("dynamic_sum", x, y, n, 0, shared=4 * n))
        assert y == n * (n + 1) / 2
    arguments = ("dynamic_sum", x, y, 5)
    error = failure(launch(*arguments, 8, shared=20))
    assert "touches byte 32 of dynamic shared memory, which has 20" in str(error)
    assert "writes behind the 20 bytes" in str(failure(launch(*arguments, 6, shared=20)))
    assert "writes before dynamic" in str(failure(launch(*arguments, -1, shared=20)))
    assert "cannot have" in str(failure(launch(*arguments, 0, shared=1 << 20)))


def test_last_block_combines() -> None:
    """Atomic operations across blocks."""
    x = torch.arange(40.0 * 64)
    parts, y, counter = torch.zeros(40), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    for order in ORDERS:
        made = launch("sum_blocks", x, parts, y.zero_(), counter, grid=(40, 1, 1))
        Emulator(order, sources=SOURCES)(made)
        assert y == x.sum()
        assert counter == 0


def test_grid() -> None:
    y = torch.full((4, 3, 2, 64, 4), -1, dtype=torch.int32)
    EveryOrder(SOURCES)(launch("places", y, grid=(2, 3, 4)))
    for z, row, x, thread in ((0, 0, 0, 0), (3, 2, 1, 63), (1, 2, 0, 7)):
        assert y[z, row, x, thread].tolist() == [x, row, z, thread]
    assert (y >= 0).all()
    Emulator(sources=SOURCES)(launch("places", y, grid=(2, 0, 4)))


def test_order_of_threads_and_blocks() -> None:
    found = []
    for order in (*ORDERS, 5, 6):
        y, counter = torch.zeros(256, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        Emulator(order, sources=SOURCES)(launch("come_in_order", y, counter, grid=(4, 1, 1)))
        assert sorted(y.tolist()) == [*range(256)]
        found.append(y.tolist())
    assert found[0] == [*range(256)]
    assert found[1] == found[0][::-1]
    assert found[2] == found[3] not in (found[0], found[1], found[4])


def test_tensors_of_one_storage() -> None:
    whole = torch.zeros(40)
    run = Emulator("ascending", sources=SOURCES)
    run(launch("add_one", whole[:39], whole[1:], 39))
    assert whole.tolist() == [*range(40)]
    whole.zero_()
    Emulator("descending", sources=SOURCES)(launch("add_one", whole[:39], whole[1:], 39))
    assert whole.tolist() == [0, *[1] * 39]
    with pytest.raises(EmulationError, match=r"argument 0 \(x\), 1 \(y\) depends on order"):
        EveryOrder(SOURCES)(launch("add_one", whole[:39], whole[1:], 39))


def test_tensors_of_other_types_and_counts() -> None:
    x, y = torch.zeros(4), torch.zeros(4)
    for arguments, text in (
        ((x, y), "takes 3 arguments, not 2"),
        ((x, y.half(), 4), r"argument 1 \(float\* y\) is torch.float16"),
        ((x, 4, 4), r"argument 1 \(float\* y\) is a pointer, not 4"),
        ((x, y, 4.0), r"argument 2 \(int n\) is an integer, not 4.0"),
        ((x, y, y), r"argument 2 \(int n\) is an integer"),
        ((x, y, 1 << 31), r"argument 2 \(int n\) cannot hold 2147483648"),
    ):
        with pytest.raises(EmulationError, match=text):
            Emulator(sources=SOURCES)(launch("add_one", *arguments))
    assert "cannot have 1025 threads" in str(failure(launch("add_one", x, y, 4, threads=1025)))
    assert "cannot have 0 threads" in str(failure(launch("add_one", x, y, 4, threads=0)))
    assert "is larger" in str(failure(launch("add_one", x, y, 4, grid=(1, 70000, 1))))
    assert 'is no extern "C" kernel' in str(failure(launch("add_two", x, y, 4)))


def test_write_through_const() -> None:
    error = failure(launch("write_const", torch.zeros(4), threads=1))
    assert "writes what argument 0 (x) points to, which is const" in str(error)


@pytest.mark.parametrize(
    ("what", "by", "fine", "text"),
    [
        (0, 4, 3, "takes an element that its array does not have"),
        (1, 1, 0, "adds beyond the range"),
        (2, 32, 31, "shifts by more bits"),
        (3, 0, 7, "divides an integer by zero"),
        (4, 3, 2, "casts a float that the integer cannot hold"),
    ],
)
def test_what_cpp_leaves_undefined(what: int, by: int, fine: int, text: str) -> None:
    y = torch.zeros(1, dtype=torch.int32)
    error = failure(launch("compute", y, what, by, threads=1))
    assert text in str(error)
    assert f"at planted.cu:{line_of(f'what == {what}', 'void compute')}" in str(error)
    Emulator(sources=SOURCES)(launch("compute", y, what, fine, threads=1))
    assert y != 0


def test_kernel_that_never_ends() -> None:
    y = torch.zeros(1, dtype=torch.int32)
    assert "still running" in str(failure(launch("never_end", y, threads=1)))


def test_recursion_without_end() -> None:
    assert "more than its stack" in str(failure(launch("recurse", torch.zeros(9), 1 << 20)))


def test_text_that_does_not_compile() -> None:
    with pytest.raises(EmulationError, match=r"(?s)wrong.cu:2:.*nonsense"):
        Emulator(sources={"wrong": "\nnonsense;"})(CudaLaunch("wrong", "k", (1, 1, 1), 1, ()))
