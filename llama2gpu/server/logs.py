"""The log: an object of JSON a line, on stderr."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import Any

#: Loggers whose records become lines; those of uvicorn's accesses are replaced by our own.
_NAMES = ("llama2gpu", "uvicorn.error", "asyncio")
#: Seconds in which asyncio tells the same thing once.
_SPARSE_SECONDS = 1.0

logger = logging.getLogger("llama2gpu.server")


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Writes one event; no prompt, answer or key belongs into its fields."""
    logger.log(level, event, extra={"fields": fields})


class JSONLines(logging.Formatter):
    """A record as one line: time (ISO 8601), level, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Sparse(logging.Filter):
    """Lets asyncio's word pass once a second: out of files it has thousands of the same."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record becomes a line."""
        if record.name != "asyncio":
            return True
        key = str(record.msg)[:100]
        due = record.created - self._told.get(key, -inf) >= _SPARSE_SECONDS
        if due:
            self._told = {**self._told, key: record.created} if len(self._told) < 100 else {}
        return due


@contextmanager
def json_lines(quiet: bool = False) -> Iterator[None]:
    """For as long as the block lasts, what is logged goes to stderr as JSON and nowhere else.

    quiet: errors alone.
    """
    level = logging.ERROR if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    handler.addFilter(Sparse())
    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(found, found.handlers[:], found.level, found.propagate) for found in loggers]
    for found in loggers:
        found.handlers[:], found.propagate = [handler], False
        found.setLevel(level)
    try:
        yield
    finally:
        for found, handlers, old, propagate in before:
            found.handlers[:], found.propagate = handlers, propagate
            found.setLevel(old)
