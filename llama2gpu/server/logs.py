"""The log: an object of JSON a line, on stderr."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

#: Loggers whose records become lines; those of uvicorn's accesses are replaced by our own.
_NAMES = ("llama2gpu", "uvicorn.error")

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


@contextmanager
def json_lines(quiet: bool = False) -> Iterator[None]:
    """For as long as the block lasts, what is logged goes to stderr as JSON and nowhere else.

    quiet: errors alone.
    """
    level = logging.ERROR if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
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
