"""What the requests of `bench.serve` give alone: no server, nobody beside, nothing shared."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bench.serve_client import Alone, Asked
from bench.serve_shape import open_shape
from llama2gpu.api import load
from llama2gpu.measure.subject import Subject

#: Characters of a text that ends an answer.
STOP = 3


def alone(subject: Subject, asked: Sequence[Asked]) -> dict[Asked, Alone]:
    """Each request with its answer, and each long answer once more, ended by a text within it.

    A process of its own computes them, so that its memory is free again.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        found = process.submit(_answers, subject, asked).result()
    ended = {}
    for one, answer in found.items():
        middle = len(answer.text) // 2
        if middle > STOP:
            stop = answer.text[middle : middle + STOP]
            text = answer.text.partition(stop)[0]
            ended[Asked(one.prompt, one.tokens, stop)] = answer._replace(text=text, tokens=None)
    return found | ended


def _answers(subject: Subject, asked: Sequence[Asked]) -> dict[Asked, Alone]:
    if subject.is_shape:
        llama = open_shape(subject)
    else:
        llama = load(
            subject.model, backend=subject.backend, device=subject.device, dtype=subject.dtype
        )
    llama.engine.scheduler.share = False
    found = {}
    for one in asked:
        made = llama.generate(one.prompt, max_tokens=one.tokens, temperature=0, ignore_eos=True)
        found[one] = Alone(made.text, made.prompt_tokens, len(made.tokens))
    return found
