"""When a decode step is captured, replayed and captured again, with a graph that a CPU can play."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama2gpu.backends.base import Batch
from llama2gpu.backends.graphs import Graph, GraphedStep
from llama2gpu.batch import Span, build_batch

PAGE = 16


class Played:
    """A graph that does again what it saw, into the result that it gave."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self.work, self.result, self.replays = work, torch.empty(0), 0

    def replay(self) -> None:
        self.replays += 1
        self.result.copy_(self.work())


class Capturing:
    def __init__(self) -> None:
        self.graphs: list[Played] = []

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        graph = Played(work)
        graph.result = torch.full_like(work(), torch.nan)
        self.graphs.append(graph)
        return graph, graph.result


class Model:
    """Logits that tell every number that a step reads, and memory that may move."""

    def __init__(self) -> None:
        self.memory = torch.arange(4096.0)
        self.calls = 0

    def step(self, tokens: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        self.calls += 1
        pages = -(-batch.lengths // PAGE)
        here = [
            int(row[:n].sum()) for row, n in zip(batch.block_table, pages.tolist(), strict=True)
        ]
        asked = tokens[rows] if len(rows) else tokens
        numbers = [asked, batch.positions, batch.slots, batch.lengths, torch.tensor(here)]
        return torch.stack([self.memory[x % 4096] for x in numbers], dim=1)


@pytest.fixture
def model() -> Model:
    return Model()


def inputs(*lengths: int) -> tuple[Tensor, Batch, Tensor]:
    spans = [Span(range(9 * i, 9 * i + 200), n - 1, 1) for i, n in enumerate(lengths)]
    batch = build_batch(spans, PAGE, torch.device("cpu"))
    return torch.arange(len(lengths)) + lengths[0], batch, torch.arange(len(lengths))


def graphed(model: Model, reach: int = 3000) -> tuple[GraphedStep, Capturing]:
    capturing = Capturing()
    return GraphedStep(model.step, lambda: (model.memory,), reach, PAGE, capturing), capturing


def test_the_same_as_the_step(model: Model) -> None:
    step, capturing = graphed(model)
    for length in (5, 6, 7, 16, 17, 18, 40):
        found, wanted = step(*inputs(length, 3)), model.step(*inputs(length, 3))
        assert torch.equal(found, wanted), length
    assert [graph.replays for graph in capturing.graphs] == [6]


def test_a_bucket_for_each_size(model: Model) -> None:
    step, capturing = graphed(model)
    for length in (512, 512, 513, 513, 1025, 1025, 2999, 3000):
        assert torch.equal(step(*inputs(length)), model.step(*inputs(length)))
    for _ in range(2):
        assert torch.equal(step(*inputs(9, 8, 7)), model.step(*inputs(9, 8, 7)))
    assert sorted(step.buckets) == [(1, 512), (1, 1024), (1, 2048), (1, 3000), (3, 512)]
    assert len(capturing.graphs) == 5


def test_memory_that_moves_is_captured_anew(model: Model) -> None:
    step, capturing = graphed(model)
    for _ in range(3):
        step(*inputs(20))
    model.memory = torch.arange(4096.0) * 3
    for _ in range(3):
        assert torch.equal(step(*inputs(21)), model.step(*inputs(21)))
    assert len(capturing.graphs) == 2


def test_prefill_and_nothing_run_as_they_are(model: Model) -> None:
    step, capturing = graphed(model)
    tokens, batch, rows = inputs(30)
    for _ in range(3):
        step(tokens, replace(batch, new_counts=(2,)), rows)
        step(tokens, batch, rows[:0])
    assert model.calls == 6
    assert not capturing.graphs
