"""The text of one running answer: whole characters, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """Turns tokens into text piece by piece (`tokenizer.StreamDecoder`)."""

    def push(self, token: int, /) -> str:
        """New whole characters."""

    def flush(self) -> str:
        """What is left at the end."""


class TextStream:
    """Text as it may be shown: what could still become a stop string is held back.

    text: all that was released. stopped: a stop string was met; it and the rest are dropped.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self.text, self.stopped = "", False
        self._decoder, self._stop, self._held = decoder, tuple(stop), ""

    def push(self, token: int) -> str:
        """The text that this token releases."""
        return self._advance(self._decoder.push(token), last=False)

    def flush(self) -> str:
        """The text that was held back, at the end."""
        return self._advance(self._decoder.flush(), last=True)

    def _advance(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._held) - (0 if last else self._overlap())
        released, self._held = self._held[:end], self._held[end:]
        self.text += released
        return released

    def _overlap(self) -> int:
        """Length of the longest end of the held text that starts a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
