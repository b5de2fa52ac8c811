"""llama.go's jobs over HTTP, and that an accepted one survives a kill."""

import os
import sqlite3
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any
from uuid import uuid1, uuid4

import pytest

from llama2gpu.api import Llama
from llama2gpu.server.job_store import FINISHED, PROCESSING, QUEUED, JobsError, JobStore

if TYPE_CHECKING:
    from tests.server.running import Server


def await_job(server: "Server", id: str) -> dict[str, Any]:
    """The job once it is finished; what it says until then is checked on the way."""
    order = [QUEUED, PROCESSING, FINISHED]
    seen, output = QUEUED, ""
    for _ in range(1200):
        job: dict[str, Any] = server.get(f"/jobs/{id}").json()
        assert order.index(job["status"]) >= order.index(seen)
        assert job["output"].startswith(output)
        assert bool(job["started"]) == (job["status"] != QUEUED)
        assert bool(job["finished"]) == (job["status"] == FINISHED)
        seen, output = job["status"], job["output"]
        if seen == FINISHED:
            return job
        sleep(0.1)
    raise AssertionError(f"job {id} is {seen}")


def test_job(server: "Server", alone: Llama) -> None:
    id, prompt = str(uuid4()), "Once upon a time"
    accepted = server.post("/jobs/", {"id": id, "prompt": prompt})
    assert accepted.status_code == 200
    assert {key: accepted.json()[key] for key in ("id", "prompt", "status")} == {
        "id": id, "prompt": prompt, "status": QUEUED,
    }  # fmt: skip
    job = await_job(server, id)
    assert list(job) == [
        "id", "prompt", "output", "created", "started", "finished", "model", "status",
    ]  # fmt: skip
    assert job["output"] == alone.generate(prompt, temperature=0, top_p=1).text
    assert job["model"] == "stories"
    assert 0 < job["created"] <= job["started"] <= job["finished"]
    assert server.get(f"/jobs/status/{id}").json() == {"status": FINISHED}
    again = server.post("/jobs/", {"id": id, "prompt": prompt})
    assert again.status_code == 400
    assert "exists" in again.json()["error"]["message"]


@pytest.mark.parametrize("id", ["", "x", str(uuid1()), str(uuid4()).replace("-", ""), "0" * 200])
def test_id_must_be_a_uuid4(server: "Server", id: str) -> None:
    assert server.post("/jobs/", {"id": id, "prompt": "x"}).status_code == 400
    if id:
        assert server.get(f"/jobs/{id}").status_code == 400
        assert server.get(f"/jobs/status/{id}").status_code == 400


def test_unknown_job(server: "Server") -> None:
    assert server.get(f"/jobs/{uuid4()}").status_code == 400
    assert server.get(f"/jobs/status/{uuid4()}").status_code == 400


def test_prompt_that_is_too_long(server: "Server") -> None:
    answer = server.post("/jobs/", {"id": str(uuid4()), "prompt": "word " * 1000})
    assert answer.status_code == 400
    assert "context" in answer.json()["error"]["message"]


def test_accepted_jobs_survive_a_kill(
    tmp_path: Path, alone: Llama, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("server")  # or skips
    from tests.server.running import serving

    prompts = {str(uuid4()): f"{start} and then" for start in ("One", "Two", "Three", "Four")}
    options = "--no-kv-cache", "--max-batch", "2", "--predict", "80"
    with serving(tmp_path, *options) as server:
        for id, prompt in prompts.items():
            assert server.post("/jobs/", {"id": id, "prompt": prompt}).status_code == 200
        server.wait_for("jobs_waiting", 3)  # one at a time, as jobs take half of the batch
        server.kill()
        server.restart()
        for id, prompt in prompts.items():
            job = await_job(server, id)
            assert job["output"] == alone.generate(prompt, temperature=0, max_tokens=80).text


def test_a_full_disk_holds_jobs_up_and_loses_none(
    tmp_path: Path, alone: Llama, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("server")  # or skips
    from tests.server.running import serving

    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no limit can be set for another process here")
    prompts = {str(uuid4()): f"{start} and then" for start in ("One", "Two", "Three")}
    options = "--no-kv-cache", "--max-batch", "2", "--predict", "80"
    with serving(tmp_path, *options) as server:
        for id, prompt in prompts.items():
            assert server.post("/jobs/", {"id": id, "prompt": prompt}).status_code == 200
        pid, what = server.process.pid, resource.RLIMIT_FSIZE
        _, most = resource.prlimit(pid, what)
        resource.prlimit(pid, what, ((tmp_path / "jobs.sqlite-wal").stat().st_size, most))
        refused = server.post("/jobs/", {"id": str(uuid4()), "prompt": "x"})
        assert refused.status_code == 503
        assert str(tmp_path) not in refused.text
        for _ in range(600):
            if "jobs wait for their file" in server.log.read_text():
                break
            sleep(0.1)
        resource.prlimit(pid, what, (most, most))
        for id, prompt in prompts.items():
            job = await_job(server, id)
            assert job["output"] == alone.generate(prompt, temperature=0, max_tokens=80).text
        assert "Traceback" not in server.log.read_text()


def test_store_that_is_full(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    pages = store._db.execute("pragma page_count").fetchone()[0]
    store._db.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(JobsError, match="full"):
        store.add(str(uuid4()), "x" * 20_000, 10)
    assert store.waiting() == 0
    assert store.add(str(uuid4()), "x", 10) is not None
    store._db.execute(f"pragma max_page_count = {pages + 100}")
    assert store.add(str(uuid4()), "x" * 20_000, 10) is not None
    assert store.waiting() == 2
    store.close()


def test_store_queues_anew_what_was_under_way(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    ids = [str(uuid4()) for _ in range(3)]
    for id in ids:
        assert store.add(id, "x", limit=3) is not None
    assert store.add(str(uuid4()), "x", limit=3) is None
    first, second = store.start(2, "stories")
    store.finish(first, "done")
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite")
    found = [store.get(id) for id in ids]
    assert [job and job.status for job in found] == [FINISHED, QUEUED, QUEUED]
    assert [job.id for job in store.start(5, "stories")] == [second.id, ids[2]]
    store.close()


def test_store_is_of_one_server(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    with pytest.raises(JobsError, match="in use by another server"):
        JobStore(path)
    store.close()
    assert path.stat().st_mode & 0o077 == 0


def test_store_leaves_other_files_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("not a database, but long enough to be read as one " * 100)
    with sqlite3.connect(other) as database:
        database.execute("create table jobs (x)")
    database.close()
    os.mkfifo(tmp_path / "pipe")
    for path in (text, other, tmp_path, tmp_path / "pipe"):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(JobsError, match="--jobs"):
            JobStore(path)
        assert (path.read_bytes() if path.is_file() else b"") == before
