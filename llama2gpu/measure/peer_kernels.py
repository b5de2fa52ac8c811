"""Single ops in turns: ours, and other software's kernels for them, each checked first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch

from llama2gpu.backends.base import Backend
from llama2gpu.config import Config
from llama2gpu.errors import BackendError
from llama2gpu.measure.decode import machine
from llama2gpu.measure.kernel_bench import Group, checked, same_matrix, settle
from llama2gpu.measure.kernel_check import problem
from llama2gpu.measure.kernel_timer import Call, Timer, Times
from llama2gpu.measure.kernel_work import Work, works
from llama2gpu.measure.peer_ways import WAYS, Maker, Way
from llama2gpu.measure.peers import Compared, PeerRow, present, ratio, reason, turns
from llama2gpu.weights import dtype_name

Told = Callable[[str], None]


def kernel_works(
    config: Config, names: Sequence[str], tokens: Sequence[int], context: int
) -> list[Work]:
    """Uses of the ops that any of the named peers has something for; matrices are int4."""
    ops = dict.fromkeys(op for name in names for op in WAYS.get(name, ()))
    found = works(config, list(ops), ("int4", "dense"), tokens, context)
    return [work for work in found if work.has_matrix == (work.weight == "int4")]


def measure_kernels(
    model: str,
    todo: Sequence[Work],
    backend: Backend,
    dtype: torch.dtype,
    names: Sequence[str],
    timer: Timer,
    repeats: int,
    *,
    told: Told = lambda what: None,
) -> Compared:
    """Rounds of each work, ours first in the rows of each.

    model: name of the works' shape. names: of `PEERS`. Matrices take turns, so that they come from
    memory. Of our fused ops a peer does the product alone, which is less. What is wrong is not
    timed, and a work that no peer can do isn't either.
    """
    peers, found = present(names, "kernels", backend.device)
    place = machine(backend.device) | {peer.name: peer.version for peer in peers if peer.package}
    makers = {peer.name: WAYS[peer.name] for peer in peers}
    todo = [work for work in todo if any(work.op in ways for ways in makers.values())]
    settle(backend, dtype)
    for _, same in groupby(todo, key=same_matrix):
        group: Group | None = None
        for work in same:
            told(f"{_title(work)} of {work.m} tokens")
            group = group or Group(backend, dtype, work, timer)
            calls = dict(_calls(group, work, makers, found))
            if len(calls) > 1:
                try:
                    found.add(_rounds(model, work, dtype, calls, timer, repeats, place))
                except Exception as error:  # of many kinds; the other works go on
                    found.wrong[f"timing {_title(work)} of {work.m} tokens"] = reason(error)
    return found


def _title(work: Work) -> str:
    """The op and its use, as rows are named."""
    return ", ".join([work.op, *work.case.split(", ")[1:]])


def _calls(
    group: Group, work: Work, makers: dict[str, Any], found: Compared
) -> Iterator[tuple[str, list[Call]]]:
    """What is timed of ours and of each peer whose results are right."""
    own, sets = f"llama2gpu {group.backend.name}", group.sets(work)
    try:
        wrong = group.wrong(work, sets)
    except Exception as error:  # of many kinds: the backend's
        wrong = reason(error)
    if wrong:
        found.wrong[f"{own} {_title(work)} of {work.m} tokens"] = wrong
        return
    op = getattr(group.backend, work.op)
    yield own, [partial(op, **arguments) for arguments in sets]
    for name, ways in makers.items():
        if work.op not in ways:
            continue
        title = f"{name} {_title(work)} of {work.m} tokens"
        try:
            made = _made(ways[work.op], group, work, sets)
            wrong = _wrong(made, group, work)
        except BackendError as error:
            found.absent[f"{name} {_title(work)}"] = str(error)
            continue
        except Exception as error:  # of many kinds: the peer's
            wrong = reason(error)
        if wrong:
            found.wrong[title] = wrong
        else:
            yield name, [way.call for way in made]


def _made(make: Maker, group: Group, work: Work, sets: list[dict[str, Any]]) -> list[Way]:
    return [make(work, arguments, group.matrix(i)) for i, arguments in enumerate(sets)]


def _wrong(made: list[Way], group: Group, work: Work) -> str:
    """What is wrong with some of a peer's results, by the bounds that ours are held to."""
    for i in checked(len(made)):
        way = made[i]
        stand_in: Any = SimpleNamespace(**{way.op: lambda result=way.result, **_: result()})
        same = replace(work, op=way.op)
        if wrong := problem(same, stand_in, way.arguments, group.matrix(i), seed=i):
            return wrong
    return ""


def _rounds(
    model: str, work: Work, dtype: torch.dtype, calls: dict[str, list[Call]], timer: Timer,
    repeats: int, place: dict[str, str],
) -> Compared:  # fmt: skip
    """A row for each that is timed as ours is; launching would tell in what is in no graph."""
    times: dict[str, list[Times]] = {name: [] for name in calls}
    for number in range(repeats):
        for name in turns(list(calls), number):
            times[name].append(timer.microseconds(calls[name]))
    own, found = next(iter(calls)), Compared()
    speeds = {name: [1 / one.median for one in taken] for name, taken in times.items()}
    for name, taken in times.items():
        if [one.graph for one in taken] != [one.graph for one in times[own]]:
            found.absent[f"{name} {_title(work)}"] = "only one of it and ours fits a CUDA graph"
            continue
        ratios = {} if name == own else {"us": ratio(speeds[own], speeds[name])}
        row = PeerRow(
            _title(work), model, name, dtype_name(dtype), work.weight, work.context, 1, work.m,
            work.n, work.k, [{"us": one.median} for one in taken], ratios, place,
        )  # fmt: skip
        found.rows.append(row)
    return found
