"""A conversation as it grows, and as a file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama2gpu.chat.messages import Message, check_messages
from llama2gpu.errors import RequestError
from llama2gpu.files import one_line, read_regular, write_whole

_LIMIT = 64 << 20
_REMEDY = "give a file that /save wrote"


class History:
    """A system prompt, None where there is none, and the turns of a user and a model.

    A turn is the user's message, and with it the answer where there is one.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[list[Message]] = []

    @property
    def messages(self) -> list[Message]:
        """All of it, as a chat template takes it."""
        return _joined(self.system, self.turns)

    def ask(self, text: str) -> None:
        """The user's next turn."""
        self.turns.append([{"role": "user", "content": text}])

    def reply(self, text: str) -> None:
        """The answer to it."""
        self.turns[-1].append({"role": "assistant", "content": text})

    def drop(self, fits: Callable[[list[Message]], bool]) -> int:
        """Drops as few of the oldest turns as it takes to fit, and says how many.

        The last turn stays in any case, and so does the system prompt.
        """
        low, high = 0, len(self.turns) - 1
        while low < high:
            middle = (low + high) // 2
            if fits(_joined(self.system, self.turns[middle:])):
                high = middle
            else:
                low = middle + 1
        self.turns = self.turns[low:]
        return low

    def save(self, path: Path) -> None:
        """Writes it as JSON, {"messages": […]}, whole or not at all.

        Raises `RequestError` where the system refuses, and where something lies there that is no
        conversation.
        """
        document = {"messages": check_messages(self.messages) if self.messages else []}
        data = json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
        try:
            if path.exists():
                _check_is_history(path)
            write_whole(path, data)
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"can't write {path}: {reason}; write elsewhere") from None


def _check_is_history(path: Path) -> None:
    try:
        read_history(path)
    except RequestError:
        raise RequestError(
            f"{path} is there and holds no conversation: give another name"
        ) from None


def read_history(path: Path) -> History:
    """The conversation in a file; raises `RequestError` where it holds none."""
    try:
        data = read_regular(path, _LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"can't read {path}: {reason}; {_REMEDY}") from None
    if len(data) > _LIMIT:
        raise RequestError(f"{path} is larger than {_LIMIT >> 20} MiB: {_REMEDY}")
    try:
        document = json.loads(data)
        messages = check_messages(document["messages"]) if document["messages"] else []
        return _parsed(messages)
    except RequestError as error:
        raise RequestError(f"{path} holds no conversation: {error}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = "it has no messages" if isinstance(error, KeyError | TypeError) else error
        raise RequestError(
            f"{path} holds no conversation ({one_line(reason, 200)}): {_REMEDY}"
        ) from None


def _parsed(messages: Sequence[dict[str, Any]]) -> History:
    """Messages as turns: a system prompt first if at all, then a user and a model in turn."""
    history, rest = History(), list(messages)
    if rest and rest[0]["role"] == "system":
        history.system = rest.pop(0)["content"]
    for n, message in enumerate(rest):
        if message["role"] != ("assistant" if n % 2 else "user") or "content" not in message:
            raise RequestError("after a system prompt, user and assistant must take turns")
        if n % 2:
            history.reply(message["content"])
        else:
            history.ask(message["content"])
    if len(rest) % 2:
        raise RequestError("its last message has no answer: leave it out")
    return history


def _joined(system: str | None, turns: Sequence[Sequence[Message]]) -> list[Message]:
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return first + [message for turn in turns for message in turn]
