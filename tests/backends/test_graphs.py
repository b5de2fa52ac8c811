"""When work is captured, replayed and captured again, with a graph that a CPU can play."""

from weakref import ref

import pytest
import torch

from llama2gpu.backends.graphs import Graph, Replays, Work
from llama2gpu.ops.sample import Drawn


class Played:
    """A graph that does again what it saw, into the result that it gave."""

    def __init__(self, work: Work) -> None:
        self.work, self.replays = work, 0
        self.result = Drawn(*(torch.full_like(x, -1) for x in work()))

    def replay(self) -> None:
        self.replays += 1
        for to, found in zip(self.result, self.work(), strict=True):
            to.copy_(found)


class Capturing:
    def __init__(self) -> None:
        self.graphs: list[Played] = []

    def __call__(self, work: Work) -> tuple[Graph, Drawn]:
        graph = Played(work)
        self.graphs.append(graph)
        return graph, graph.result


class Memory:
    """Work that tells what it reads."""

    def __init__(self) -> None:
        self.held = (torch.zeros(3),)

    def work(self) -> Drawn:
        return Drawn(self.held[0].long(), self.held[0] * 2, self.held[0] * 3)


def test_captured_once_for_each_key() -> None:
    memory, capturing = Memory(), Capturing()
    run = Replays(lambda: memory.held, lambda: capturing)
    for n in range(5):
        memory.held[0].fill_(n)
        for key in ("a", "b"):
            assert run(key, memory.work).tokens.tolist() == [n, n, n]
    assert [graph.replays for graph in capturing.graphs] == [4, 4]


def test_memory_that_moves_is_captured_anew() -> None:
    memory, capturing = Memory(), Capturing()
    run = Replays(lambda: memory.held, lambda: capturing)
    for n in range(6):
        if n == 3:
            memory.held = (torch.zeros(3),)
        memory.held[0].fill_(n)
        assert run("a", memory.work).logits.tolist() == [3 * n] * 3
    assert [graph.replays for graph in capturing.graphs] == [2, 2]


def test_nothing_is_captured_where_nothing_can_be() -> None:
    memory = Memory()
    run = Replays(lambda: memory.held, None)
    results = [run("a", memory.work) for _ in range(3)]
    assert len({x.logits.data_ptr() for x in results}) == 3
    assert not run.graphs


def test_work_that_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    memory, tried = Memory(), []

    def failing(work: Work) -> tuple[Graph, Drawn]:
        tried.append(work)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    run = Replays(lambda: memory.held, lambda: failing)
    for n in range(5):
        memory.held[0].fill_(n)
        assert run("a", memory.work).tokens.tolist() == [n, n, n]
    assert len(tried) == 1
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing): it runs without" in record.message


def test_old_memory_is_not_kept() -> None:
    memory, capturing = Memory(), Capturing()
    run = Replays(lambda: memory.held, lambda: capturing)
    run("a", memory.work)
    old = ref(memory.held[0])
    memory.held = (torch.zeros(3),)
    assert old() is None
    assert run("a", memory.work).tokens.tolist() == [0, 0, 0]
