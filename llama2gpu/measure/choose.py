"""Which backend decodes fastest here: each that runs is measured on the same weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from llama2gpu.backends import auto_order, available, backend_class, probe
from llama2gpu.backends.chosen import Measured
from llama2gpu.build import weight_kind
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import Llama2GPUError
from llama2gpu.files import one_line
from llama2gpu.measure.decode import measure
from llama2gpu.measure.model_result import Case, ModelResult
from llama2gpu.measure.subject import Subject
from llama2gpu.quant.spec import parse_spec

#: Runs work, maybe in a process of its own, and returns its result.
Run = Callable[[Callable[[], list[ModelResult]]], list[ModelResult]]


@dataclass(frozen=True)
class Trial:
    """A backend with one kind of weights: its rate in tokens/s, or why it has none."""

    kind: str
    backend: str
    rate: float | None
    problem: str
    model: str
    date: str


def candidates(device: torch.device, asked: Sequence[str]) -> dict[str, str]:
    """The backends to measure on a device, and why one can't run ("" for one that does).

    asked: by name, or "all". Those that "auto" would try come first.
    Raises `BackendError` for a name that is not known.
    """
    known = dict.fromkeys([*auto_order(device), *available()])
    names = list(known) if list(asked) == ["all"] else list(asked) or [""]
    for name in names:
        backend_class(name)
    found = {name: probe(name, device) for name in names}
    return {name: "" if ok else detail for name, (ok, detail) in found.items()}


def trials(
    subject: Subject, quants: Sequence[str], backends: Sequence[str], case: Case, repeats: int,
    run: Run, told: Callable[[int, int, str], None],
) -> Iterator[Trial]:  # fmt: skip
    """Measures each backend with each kind of weights, of which none has a failure of another."""
    todo = [(replace(subject, quant=quant), name) for quant in quants for name in backends]
    for number, (form, name) in enumerate(todo):
        one = replace(form, backend=name)
        told(number, len(todo), f"{name} with {one.title}")
        yield _trial(one, case, repeats, run)


def _trial(subject: Subject, case: Case, repeats: int, run: Run) -> Trial:
    rate, problem, day = None, "", ""
    try:
        (result,) = run(partial(measure, subject, [case], repeats))
        rate, day = result.median("decode_rate"), result.machine["date"]
    except MemoryError:
        problem = "out of memory"
    except Exception as error:  # somebody else's code
        known = isinstance(error, Llama2GPUError | RuntimeError)
        problem = one_line(error if known else repr(error), 200)
    name = one_line(subject.name, 200)
    return Trial(kind_of(subject), subject.backend, rate, problem, name, day)


def kind_of(subject: Subject) -> str:
    """The kind of the subject's weights, as `choose_backend` takes it."""
    spec = None if subject.quant == "none" else parse_spec(subject.quant)
    if subject.is_shape:
        return "dense" if spec is None else spec.kind
    return weight_kind(open_checkpoint(subject.model), spec)


def measured(found: Sequence[Trial]) -> dict[str, Measured]:
    """What to remember, by kind of weights; the last of two trials of one kind and backend."""
    rated = [trial for trial in found if trial.rate is not None]
    return {
        trial.kind: Measured(
            {t.backend: t.rate for t in rated if t.kind == trial.kind and t.rate is not None},
            trial.model,
            trial.date,
        )
        for trial in rated
    }
