"""Whole models in turns: ours, transformers' on the same weights, and llama.cpp's of the shape."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from llama2gpu.backends import resolve_device
from llama2gpu.engine import Engine
from llama2gpu.errors import BackendError
from llama2gpu.measure.decode import Clock, answer, machine, prompts, randomize
from llama2gpu.measure.llama_cpp import LlamaBench, llama_bench
from llama2gpu.measure.model_result import Case
from llama2gpu.measure.peers import Compared, PeerRow, present, ratio, reason, turns
from llama2gpu.measure.subject import Subject
from llama2gpu.measure.transformers_llama import (
    Compile,
    Greedy,
    compiler,
    shared_tensors,
    transformers_llama,
)
from llama2gpu.request import Request, Token
from llama2gpu.sampling import SamplingParams
from llama2gpu.weights import dtype_name

#: Tokens after a prompt whose log-probabilities are compared, and how many likeliest of each.
CHECKED, TOP = 8, 20
#: How far log-probabilities on the same weights may lie apart by the weights' type, in standard
#: deviations of the logits: the likeliest token is about four above the mean.
APART = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}

Told = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """One that takes part. dtype, quant: of its weights. rates: of prefill and decode, by seed."""

    name: str
    dtype: str
    quant: str
    rates: Callable[[int], tuple[float, float]]


def measure_models(
    subject: Subject,
    depth: int,
    tokens: int,
    repeats: int,
    names: Sequence[str],
    *,
    compile: Compile | None = None,
    clock: Clock = time.perf_counter,
    told: Told = lambda what: None,
) -> Compared:
    """Rounds of one prompt of `depth` tokens and `tokens` after it, ours first in the rows.

    names: of `PEERS`. compile: instead of torch.compile. told: before each contender is set up and
    before each round. A peer whose results differ from ours is not timed; llama.cpp's, which takes
    other random weights, are not compared.
    """
    case, device = Case("decode", depth, 1, tokens), resolve_device(subject.device)
    peers, found = present(names, "models", device)
    told(f"llama2gpu on {subject.title}")
    model = subject.open(depth + tokens + 1)
    engine, dtype = Engine(model, share=False), dtype_name(model.dtype)
    versions = {peer.name: peer.version for peer in peers}
    with ExitStack() as stack:
        own = partial(_own_rates, engine, case, clock)
        own(0)
        randomize(engine)
        contenders = [Contender(f"llama2gpu {model.backend.name}", dtype, subject.quant, own)]
        for peer in peers:
            told(peer.name)
            if peer.name == "transformers":
                build = compile or compiler(device)
                contenders += _transformers(engine, subject, case, build, clock, found)
                continue
            try:
                kind, bench = stack.enter_context(llama_bench(peer.path, subject, depth, tokens))
                bench()
            except BackendError as error:
                found.absent[peer.name] = str(error)
                continue
            contenders.append(Contender(peer.name, kind, kind, partial(_same, bench)))
        own(0)  # another way of sampling has run since
        rounds: dict[str, list[dict[str, float]]] = {one.name: [] for one in contenders}
        for number in range(repeats):
            told(f"round {number + 1} of {repeats}")
            for one in turns(contenders, number):
                rates = zip(("prefill_rate", "decode_rate"), one.rates(number + 1), strict=True)
                rounds[one.name].append(dict(rates))
    place = machine(device) | versions
    found.rows = list(_rows(contenders, rounds, subject.name, case, place))
    return found


def _rows(
    contenders: Sequence[Contender],
    rounds: dict[str, list[dict[str, float]]],
    model: str,
    case: Case,
    place: dict[str, str],
) -> Iterator[PeerRow]:
    ours = rounds[contenders[0].name]
    for one in contenders:
        theirs = rounds[one.name]
        ratios = {
            figure: ratio([r[figure] for r in ours], [r[figure] for r in theirs])
            for figure in ours[0]
        }
        yield PeerRow(
            "peers", model, one.name, one.dtype, one.quant, case.depth, 1, case.tokens, None, None,
            theirs, {} if theirs is ours else ratios, place,
        )  # fmt: skip


def _same(bench: LlamaBench, seed: int) -> tuple[float, float]:
    return bench()


def _own_rates(engine: Engine, case: Case, clock: Clock, seed: int) -> tuple[float, float]:
    first, rest = answer(engine, case, seed, clock)
    return case.prompt / first, case.tokens / rest


def _transformers(
    engine: Engine, subject: Subject, case: Case, build: Compile, clock: Clock, found: Compared
) -> Iterator[Contender]:
    """transformers' Llama with its growing cache, and with a static one and a compiled step."""
    own = engine.model
    form = "none" if subject.quant == "none" else f"{subject.quant} as {dtype_name(own.dtype)}"
    vocab, checkpoint = own.config.vocab, subject.random(engine.device)
    try:
        model = transformers_llama(checkpoint, own.dtype, engine.device, shared_tensors(own))
    except Exception as error:  # another version's
        found.absent["transformers"] = reason(error)
        return
    (prompt,) = prompts(vocab, case, 0)
    tokens = drawn(engine, prompt, min(CHECKED, case.tokens + 1))
    for name, way in (("transformers", None), ("transformers compiled", build)):
        try:
            greedy = Greedy(model, case.prompt + case.tokens + CHECKED, way)
            logits = greedy.logits(prompt, [token.id for token in tokens[:-1]])
        except Exception as error:  # of many kinds: the compiler's, or another version's
            found.absent[name] = reason(error)
            continue
        if wrong := difference(tokens, logits, APART[own.dtype]):
            found.wrong[name] = wrong
            continue

        def rates(seed: int, greedy: Greedy = greedy) -> tuple[float, float]:
            (ids,) = prompts(vocab, case, seed)
            first, rest = greedy.answer(ids, case.tokens, clock)
            return case.prompt / first, case.tokens / rest

        rates(0)
        yield Contender(name, dtype_name(own.dtype), form, rates)


def drawn(engine: Engine, prompt: Sequence[int], count: int) -> list[Token]:
    """The likeliest tokens behind a prompt, each with the log-probabilities of `TOP`."""
    params = SamplingParams(
        temperature=0, max_tokens=count, logprobs=min(TOP, engine.model.config.vocab)
    )
    sequence = engine.add(Request(list(prompt), params))
    while engine.busy:
        engine.step()
    if sequence.error is not None:
        raise sequence.error
    return sequence.output


def difference(tokens: Sequence[Token], logits: torch.Tensor, most: float) -> str:
    """What is wrong with another's logits [n, vocab] behind the same tokens; "" where they agree.

    most: standard deviations of the logits by which log-probabilities may differ; the token that is
    likeliest here may be less likely there than another by twice that.
    """
    theirs = logits.double().log_softmax(dim=-1)
    for place, (token, row) in enumerate(zip(tokens, theirs, strict=True), 1):
        ids, ours = zip(*token.top, strict=True)
        one = float(row.std())
        differ = row[list(ids)] - torch.tensor(ours, dtype=torch.float64)
        apart, behind = float(differ.abs().max()) / one, float(row.max() - row[token.id]) / one
        if not (apart <= most and behind <= 2 * most):
            return (
                f"log-probabilities of token {place} differ by {apart:.2g} deviations, and its "
                f"likeliest by {behind:.2g}; {most:g} and {2 * most:g} are allowed"
            )
    return ""
