"""The load script, for a few seconds."""

import json
import subprocess
import sys
from pathlib import Path

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
    assert mixed["different_texts"] == mixed["wrong"] == mixed["pages_used_after"] == 0
    assert mixed["healthy_after"]
    assert shared["tokens_sent"] / shared["tokens_computed"] > 4  # of eight that begin alike


def test_a_wrong_text_is_seen() -> None:
    from bench.serve_client import Asked, Outcome

    asked = Asked("a", 4)
    for kind in ("reader", "slow reader", "reader of whole answers"):
        whole = Outcome(kind, asked, status=200, text="one two", done=True)
        assert whole.right
        assert not whole.differs("one two")
        assert whole.differs("one two three")
        assert whole.differs("one")
        assert not Outcome(kind, asked, status=200, text="one two").right  # cut off
        assert not Outcome(kind, asked, status=500).right
    left = Outcome("vanishing", asked, status=200, text="one")
    assert left.right
    assert not left.differs("one two")
    assert left.differs("two")
