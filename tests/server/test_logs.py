"""The log: every record a line of JSON, also what others say, and asyncio's repeats once."""

import json
import logging
from itertools import pairwise

import pytest

from llama2gpu.server.logs import json_lines, log


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with json_lines():
        log("first", path="/\nx")
        for _ in range(1000):
            logging.getLogger("asyncio").error("socket.accept() out of\nsystem resource")
        logging.getLogger("asyncio").error("another")
        logging.getLogger("uvicorn.error").warning("third")
        logging.getLogger("uvicorn.error").warning("third")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "first"
    assert lines[0]["path"] == "/\nx"
    assert 1 <= sum("accept" in event for event in events) < 100
    assert events[-3:] == ["another", "third", "third"]
    assert all(a["time"] <= b["time"] for a, b in pairwise(lines))


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with json_lines(quiet=True):
        log("not told")
        log("told", logging.ERROR)
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["told"]
