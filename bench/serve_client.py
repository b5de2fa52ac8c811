"""Clients of a server under load: good ones, slow ones, ones that leave and ones that are wrong."""

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

KEY = "bench"
PROMPTS = ("Once upon a time", "There was a little dog", "Tim and Sue", "One day, in the rain,")
#: Kind of client → how often it comes, and the statuses that are right for it.
KINDS = {
    "reader": (12, {200, 429}),
    "slow reader": (2, {200, 429}),
    "vanishing": (2, {200, 429}),
    "malformed JSON": (1, {400}),
    "10 MB body": (1, {413}),
    "wrong key": (1, {401}),
    "too long a prompt": (1, {400}),
}


@dataclass
class Outcome:
    """What one client saw: a status (0: none), when events came (seconds) and its tokens."""

    kind: str
    status: int = 0
    began: float = 0.0
    events: list[float] = field(default_factory=list)
    tokens: int = 0
    done: bool = False

    @property
    def right(self) -> bool:
        """Whether the server did what it should."""
        whole = self.done or self.status != 200 or self.kind == "vanishing"
        return self.status in KINDS[self.kind][1] and whole


async def ask(port: int, kind: str, tokens: int) -> Outcome:
    """One request of a kind; a stream is read to its end, or as its kind does."""
    outcome = Outcome(kind, began=time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        with suppress(ConnectionError):
            writer.write(_request(kind, tokens))
            await writer.drain()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await _read(reader, outcome)
    finally:
        writer.close()
    return outcome


def _request(kind: str, tokens: int) -> bytes:
    asked: dict[str, Any] = {"prompt": random.choice(PROMPTS), "max_tokens": tokens}
    asked |= {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
    if kind == "too long a prompt":
        asked["prompt"] = "word " * 5000
    body = json.dumps(asked).encode()
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
    leaves = random.randrange(1, 20) if outcome.kind == "vanishing" else None
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        outcome.events.append(time.perf_counter())
        if line.startswith(b"data: [DONE]"):
            outcome.done = True
        elif b'"usage":{' in line:
            outcome.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            outcome.events.pop()  # it holds no token
        if len(outcome.events) == leaves:
            return
        if outcome.kind == "slow reader":
            await asyncio.sleep(0.05)
    if outcome.done:
        outcome.events.pop()


async def crowd(
    port: int, streams: int, seconds: float, tokens: int, mixed: bool
) -> tuple[list[Outcome], float]:
    """So many clients at once, each asking again and again; outcomes, and seconds in all."""
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]

    async def client() -> None:
        while time.perf_counter() - began < seconds:
            kind = random.choices(kinds, weights)[0] if mixed else "reader"
            outcomes.append(await ask(port, kind, tokens))

    await asyncio.gather(*(client() for _ in range(streams)))
    return outcomes, time.perf_counter() - began
