"""Clients of a server under load: good ones, slow ones, ones that leave and ones that are wrong."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

KEY = "bench"
#: Kind of client → how often it comes, and the status that is right for it.
KINDS = {
    "reader": (10, 200),
    "reader of whole answers": (2, 200),
    "slow reader": (2, 200),
    "vanishing": (2, 200),
    "malformed JSON": (1, 400),
    "10 MB body": (1, 413),
    "wrong key": (1, 401),
    "too long a prompt": (1, 400),
}
#: Seconds that any answer may take; the server's own limit is less.
PATIENCE = 700
#: Tokens of each stream after which its pace is known.
SETTLED = 16


@dataclass(frozen=True)
class Asked:
    """A greedy request: its prompt, tokens of its answer, and a text that ends that, if any."""

    prompt: str
    tokens: int
    stop: str = ""

    def body(self, **more: object) -> bytes:
        """As the server takes it."""
        asked = {"prompt": self.prompt, "max_tokens": self.tokens, "temperature": 0}
        stop = {"stop": self.stop} if self.stop else {}
        return json.dumps({**asked, "ignore_eos": True, **stop, **more}).encode()


class Alone(NamedTuple):
    """What a request gives alone; tokens: None where a text ends it."""

    text: str
    prompt_tokens: int
    tokens: int | None


@dataclass
class Outcome:
    """What one client saw: a status (0: none), when text came (seconds), the text, its tokens.

    reason: why it ended, as the server says it.
    """

    kind: str
    asked: Asked
    status: int = 0
    began: float = 0.0
    events: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    reason: str | None = None
    done: bool = False

    @property
    def right(self) -> bool:
        """Whether the server did what it should."""
        whole = self.done or self.status != 200 or self.kind == "vanishing"
        return self.status == KINDS[self.kind][1] and whole

    def differs(self, alone: Alone) -> bool:
        """Whether what came is not this text, or its beginning for a client that left."""
        if self.status != 200:
            return False
        return self.text != alone.text if self.done else not alone.text.startswith(self.text)

    def miscounts(self, alone: Alone) -> bool:
        """Whether a whole answer tells other tokens or another reason than it has."""
        if self.status != 200 or not self.done:
            return False
        reason = "stop" if self.asked.stop else "length"
        told = self.prompt_tokens, self.tokens, self.reason
        tokens = self.tokens if alone.tokens is None else alone.tokens
        return told != (alone.prompt_tokens, tokens, reason)


class Prompts:
    """Prompts of these words, most of which are a token. size: words of the longest."""

    def __init__(self, vocabulary: Sequence[str], size: int, seed: int = 7) -> None:
        self.vocabulary, self.size, self._random = vocabulary, size, random.Random(seed)
        self._shared = self._drawn(size // 2)

    def one(self, size: int, *, shared: bool = False) -> str:
        """One of so many words; shared: behind half of the longest, which is the same for all."""
        return " ".join((self._shared if shared else []) + self._drawn(size))

    def assortment(self, tokens: int) -> list[Asked]:
        """Requests of many lengths, half of which begin alike; answers of `tokens` at most."""
        found = []
        for n in range(24):
            own = self._random.randrange(1, self.size // 2)
            count = self._random.choice((1, tokens // 8, tokens // 2, tokens))
            found.append(Asked(self.one(own, shared=n % 2 == 1), max(count, 1)))
        return found

    def _drawn(self, count: int) -> list[str]:
        return self._random.choices(self.vocabulary, k=count)


async def ask(port: int, kind: str, asked: Asked) -> Outcome:
    """One request of a kind; the answer is read to its end, or as its kind does."""
    outcome = Outcome(kind, asked)
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await _fill(outcome, port)
    return outcome


async def _fill(outcome: Outcome, port: int) -> None:
    outcome.began = time.perf_counter()
    reader, writer = await _connect(port, slow=outcome.kind == "slow reader")
    try:
        with suppress(ConnectionError):
            writer.write(_request(outcome.kind, outcome.asked))
            await writer.drain()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await _read(reader, outcome)
    finally:
        writer.close()


async def _connect(port: int, slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; that of a slow reader holds little here, though megabytes at the server."""
    found = socket.socket()
    if slow:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.setblocking(False)
    await asyncio.get_running_loop().sock_connect(found, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=found, limit=4096 if slow else 1 << 20)


def _request(kind: str, asked: Asked) -> bytes:
    stream = {} if kind == "reader of whole answers" else {"stream": True}
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    if kind == "slow reader":
        more["logprobs"] = 5  # more to read
    if kind == "too long a prompt":
        asked = replace(asked, prompt="word " * 100_000)
    body = asked.body(**stream, **more)
    if kind == "malformed JSON":
        body = body[: random.randrange(1, len(body))]
    if kind == "10 MB body":
        body = b'"' + b"x" * (10 << 20) + b'"'
    key = "nope" if kind == "wrong key" else KEY
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def _read(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    line = await reader.readline()
    outcome.status = int(line.split()[1]) if line else 0
    if outcome.kind == "reader of whole answers" and outcome.status == 200:
        data = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        outcome.done = True
        _take(outcome, data)
        return
    leaves = random.randrange(1, 20) if outcome.kind == "vanishing" else None
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            outcome.done = True
            continue
        _take(outcome, json.loads(line[6:]))
        if len(outcome.events) == leaves:
            return
        if outcome.kind == "slow reader":
            await asyncio.sleep(0.05)


def _take(outcome: Outcome, data: dict[str, Any]) -> None:
    """Takes a whole answer, or an event of a stream."""
    if used := data.get("usage"):
        outcome.prompt_tokens, outcome.tokens = used["prompt_tokens"], used["completion_tokens"]
    for choice in data.get("choices", ()):
        outcome.text += choice["text"]
        outcome.reason = choice["finish_reason"] or outcome.reason
        if choice["text"]:
            outcome.events.append(time.perf_counter())


async def crowd(
    port: int, streams: int, seconds: float, asked: Sequence[Asked], *, mixed: bool
) -> tuple[list[Outcome], float]:
    """So many clients at once, each asking again and again; outcomes, and seconds in all."""
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]

    async def client() -> None:
        while True:
            kind = random.choices(kinds, weights)[0] if mixed else "reader"
            outcomes.append(await ask(port, kind, random.choice(asked)))
            if outcomes[-1].status == 429:
                await asyncio.sleep(1)
            if time.perf_counter() - began >= seconds:
                return

    await asyncio.gather(*(client() for _ in range(streams)))
    return outcomes, time.perf_counter() - began


async def one_beside(port: int, streams: int, asked: Asked, long: Asked) -> tuple[float, Outcome]:
    """A long prompt arrives while others are read.

    Returns how many times as long the others' tokens took until its first one, and its outcome.
    """
    others = [Outcome("reader", asked) for _ in range(streams)]
    tasks = [asyncio.create_task(_fill(outcome, port)) for outcome in others]
    while min(len(o.events) for o in others) < SETTLED and not any(t.done() for t in tasks):
        await asyncio.sleep(0.01)
    arrived = time.perf_counter()
    outcome = await ask(port, "reader", long)
    ended = any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if ended or not outcome.events:
        raise RuntimeError("the others ended before the long prompt was taken: ask for more tokens")
    settled = max(o.events[SETTLED // 2] for o in others)
    before, during = _pace(others, settled, arrived), _pace(others, arrived, outcome.events[0])
    return during / before, outcome


def _pace(outcomes: Sequence[Outcome], begin: float, end: float) -> float:
    """Seconds a token between two moments."""
    count = sum(begin <= t < end for o in outcomes for t in o.events)
    return (end - begin) * len(outcomes) / max(count, 1)
