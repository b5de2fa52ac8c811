"""Jobs on disk: a SQLite file that one server at a time holds."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2gpu.errors import Llama2GPUError

QUEUED, PROCESSING, FINISHED = "queued", "processing", "finished"
#: Finished jobs that are kept; the oldest go first.
KEPT = 10_000
#: "l2gj": what tells the file from other programs' databases.
_APPLICATION = 0x6C32676A

_TABLE = """
create table if not exists jobs (
    number integer primary key,
    id text not null unique,
    prompt text not null,
    output text not null default '',
    created integer not null,
    started integer not null default 0,
    finished integer not null default 0,
    model text not null default '',
    status text not null
)
"""
#: Counting, and finding the oldest, read no prompts and no answers.
_INDEX = "create index if not exists jobs_by_status on jobs (status, number)"


class JobsError(Llama2GPUError):
    """The file of jobs can't be used."""


@dataclass
class Job:
    """A job, as llama.go's API shows it; times are Unix seconds, 0 until reached."""

    id: str
    prompt: str
    output: str = ""
    created: int = 0
    started: int = 0
    finished: int = 0
    model: str = ""
    status: str = QUEUED

    @property
    def public(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


_FIELDS = "id, prompt, output, created, started, finished, model, status"


class JobStore:
    """The jobs of one file; any thread may call, and each change is on disk when it returns.

    Jobs that were being processed when a server ended are queued again. Raises `JobsError`, also
    later where the file can't be read or written; then it is as it was before the call.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts are private
        except OSError as error:
            raise JobsError(f"{path}: {error.strerror}: give another file (--jobs)") from error
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=1)
        except sqlite3.Error as error:
            raise JobsError(_remedy(path, error)) from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise JobsError(_remedy(path, error)) from error

    def add(self, id: str, prompt: str, limit: int) -> Job | None:
        """A new job; None where `limit` of them wait already. Raises `KeyError` for a known id."""
        with self._using():
            if self._waiting() >= limit:
                return None
            job = Job(id, prompt, created=int(time.time()))
            try:
                self._db.execute(
                    "insert into jobs (id, prompt, created, status) values (?, ?, ?, ?)",
                    (job.id, job.prompt, job.created, job.status),
                )
            except sqlite3.IntegrityError:
                raise KeyError(id) from None
            return job

    def get(self, id: str) -> Job | None:
        """The job of an id."""
        found = self._select("where id = ?", (id,))
        return found[0] if found else None

    def waiting(self) -> int:
        """How many jobs are queued."""
        with self._using():
            return self._waiting()

    def start(self, count: int, model: str) -> list[Job]:
        """The oldest queued jobs, at most `count`, which are processed from now on."""
        jobs = self._select("where status = ? order by number limit ?", (QUEUED, count))
        now = int(time.time())
        with self._using():
            for job in jobs:
                job.status, job.started, job.model = PROCESSING, now, model
                self._db.execute(
                    "update jobs set status = ?, started = ?, model = ? where id = ?",
                    (job.status, job.started, job.model, job.id),
                )
        return jobs

    def finish(self, job: Job, output: str) -> None:
        """Writes a job's answer, and forgets the oldest of those that are finished."""
        job.status, job.finished, job.output = FINISHED, int(time.time()), output
        with self._using():
            self._db.execute(
                "update jobs set status = ?, finished = ?, output = ? where id = ?",
                (job.status, job.finished, job.output, job.id),
            )
            self._db.execute(
                "delete from jobs where status = ? and number <= (select number from jobs"
                " where status = ? order by number desc limit 1 offset ?)",
                (FINISHED, FINISHED, KEPT),
            )

    def queue_again(self, job: Job) -> None:
        """Lets a job that was started wait for its turn anew."""
        with self._using():
            self._requeue("where id = ?", (job.id,))

    def close(self) -> None:
        """Leaves the file to others."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """A transaction."""
        try:
            with self._lock, self._db:
                yield
        except sqlite3.Error as error:
            raise JobsError(f"{self.path} can't hold jobs now: {error}") from error

    def _open(self) -> None:
        with self._lock:
            self._db.execute("pragma locking_mode = exclusive")
            (kind,) = self._db.execute("pragma application_id").fetchone()
            (tables,) = self._db.execute("select count(*) from sqlite_master").fetchone()
            if tables and kind != _APPLICATION:
                raise sqlite3.DatabaseError("it belongs to another program")
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            with self._db:
                self._db.execute("begin immediate")
                self._db.execute(f"pragma application_id = {_APPLICATION}")
                self._db.execute(_TABLE)
                self._db.execute(_INDEX)
                self._requeue("where status = ?", (PROCESSING,))

    def _requeue(self, where: str, values: Sequence[object]) -> None:
        self._db.execute(
            f"update jobs set status = ?, started = 0, output = '' {where}", (QUEUED, *values)
        )

    def _waiting(self) -> int:
        query = "select count(*) from jobs where status = ?"
        return int(self._db.execute(query, (QUEUED,)).fetchone()[0])

    def _select(self, where: str, values: Sequence[object]) -> list[Job]:
        with self._using():
            rows = self._db.execute(f"select {_FIELDS} from jobs {where}", values).fetchall()
        return [Job(*row) for row in rows]


def _remedy(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path} is in use by another server: stop that one, or give another file (--jobs)"
    return f"{path} can't hold jobs: {error}: give another file (--jobs)"
