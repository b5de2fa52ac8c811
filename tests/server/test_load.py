"""The load script, for a few seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", [None, "stories260k"])
def test_every_client_gets_what_is_right(shape: str | None, tmp_path: Path) -> None:
    from tests.server.conftest import require

    require()
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "bench.serve", "--seconds", "2", "--repeats", "1"]
    command += ["--streams", "24", "--tokens", "16", "--scale-seconds", "0.2", "-o", str(file)]
    command += ["--dtype", "fp32", "--device", "cpu", *(["--shape", shape] if shape else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert [row["streams"] for row in found["scale"]] == [1, 4, 16, 64]
    assert all(row["tokens_per_second"] > 0 for row in found["scale"])
    mixed, shared = found["mixed"], found["shared_prompt"]
    assert mixed["texts_compared"] > 24
    assert mixed["different_texts"] == mixed["wrong"] == mixed["miscounted"] == 0
    assert mixed["pages_used_after"] == 0
    assert mixed["healthy_after"]
    assert found["failed"] == []
    assert shared["tokens_sent"] / shared["tokens_computed"] > 4  # of eight that begin alike


def test_a_wrong_answer_is_seen() -> None:
    from bench.serve_client import Alone, Asked, Outcome

    asked, alone = Asked("a", 4), Alone("one two", 1, 4)
    told: dict[str, Any] = {
        "status": 200,
        "done": True,
        "tokens": 4,
        "prompt_tokens": 1,
        "reason": "length",
    }
    for kind in ("reader", "slow reader", "reader of whole answers"):
        whole = Outcome(kind, asked, text="one two", **told)
        assert whole.right
        assert not whole.differs(alone)
        assert not whole.miscounts(alone)
        assert whole.differs(alone._replace(text="one two three"))
        assert whole.differs(alone._replace(text="one"))
        for wrong in ({"tokens": 5}, {"prompt_tokens": 2}, {"reason": "stop"}, {"reason": None}):
            assert Outcome(kind, asked, text="one two", **(told | wrong)).miscounts(alone)
        assert not Outcome(kind, asked, status=200, text="one two").right  # cut off
        assert not Outcome(kind, asked).right  # no answer
        assert not Outcome(kind, asked, status=429).right
        assert not Outcome(kind, asked, status=500).right
    ended = Outcome("reader", Asked("a", 4, "two"), text="one ", **(told | {"reason": "stop"}))
    assert not ended.miscounts(Alone("one ", 1, None))
    assert not ended.differs(Alone("one ", 1, None))
    left = Outcome("vanishing", asked, status=200, text="one")
    assert left.right
    assert not left.differs(alone)
    assert not left.miscounts(alone)
    assert left.differs(Alone("two", 1, 4))


def test_what_failed_is_named() -> None:
    pytest.importorskip("prometheus_client")
    from bench.serve import _failed

    mixed: dict[str, Any] = {
        "wrong": 0,
        "miscounted": 0,
        "different_texts": 0,
        "pages_used_after": 0.0,
    }
    mixed |= {"sequences_running_after": 0.0, "sequences_waiting_after": 0.0, "healthy_after": True}
    good: dict[str, Any] = {
        "dtype": "fp32",
        "scale": [{"wrong": 0}],
        "mixed": mixed,
        "exit_status": 0,
    }
    good["shared_prompt"] = {"tokens_sent": 800.0, "tokens_computed": 130.0}
    assert _failed(good) == []
    for name in mixed:
        bad = good | {"mixed": mixed | {name: False if name == "healthy_after" else 1}}
        assert _failed(bad) == [f"mixed.{name}"]
    assert _failed(good | {"scale": [{"wrong": 2}], "exit_status": 1}) == [
        "scale.wrong",
        "exit_status",
    ]
    anew = {"shared_prompt": {"tokens_sent": 800.0, "tokens_computed": 800.0}}
    assert _failed(good | anew) == ["shared_prompt.tokens_computed"]
    different: dict[str, Any] = {"mixed": mixed | {"different_texts": 3}, "dtype": "bf16"}
    assert _failed(good | different) == []  # they may differ there
