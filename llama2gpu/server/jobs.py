"""llama.go's jobs: prompts that are taken now and answered when there is room."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter
from fastapi.responses import Response

from llama2gpu.files import one_line
from llama2gpu.sampling import SamplingParams
from llama2gpu.server.errors import APIError, answer, stopping, too_busy
from llama2gpu.server.job_store import PROCESSING, Job, JobsError, JobStore
from llama2gpu.server.logs import log, logger
from llama2gpu.server.schemas import JobBody
from llama2gpu.server.service import Service
from llama2gpu.tokenizer import well_formed

#: Jobs that may wait.
WAITING = 10_000
#: Seconds between looks for room, where a job found none.
_PAUSE = 0.2
#: Seconds between tries, where the file can't be read or written: its disk may be full.
_RETRY = 2.0

Found = TypeVar("Found")


class Jobs:
    """Runs queued jobs on a service; they take half of its batch at most.

    What a job has written so far is in memory alone; its answer is on disk once it is whole, and a
    job that a stop interrupts begins anew at the next start.
    """

    def __init__(self, service: Service, store: JobStore) -> None:
        self.service, self.store = service, store
        self._outputs: dict[str, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        settings = service.settings
        self.params = SamplingParams(
            max_tokens=settings.predict, temperature=settings.temperature, top_p=1.0
        )

    def start(self) -> None:
        """Begins with what is queued."""
        self._wake.set()
        self._runner = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends; jobs under way stay accepted, for the next start."""
        tasks = [*self._tasks, *([] if self._runner is None else [self._runner])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.store.close)

    async def add(self, id: str, prompt: str) -> Job:
        """Accepts a job. Raises `APIError`, or `RequestError` for a prompt that is too long."""
        prompt = well_formed(prompt)
        ids = await self.service.encode(prompt)
        llama = self.service.llama
        llama.engine.check(llama.request(ids, self.params))
        try:
            job = await _ask(self.store.add, id, prompt, WAITING)
        except KeyError:
            raise APIError(400, f"job {id} exists already: give a new UUID4", param="id") from None
        if job is None:
            raise too_busy(10)
        self._wake.set()
        return job

    async def get(self, id: str) -> Job:
        """A job with its output so far. Raises `APIError` where there is none."""
        job = await _ask(self.store.get, id)
        if job is None:
            raise APIError(400, f"no job {id}", param="id")
        if job.status == PROCESSING:
            if id not in self._outputs:  # it has just ended
                job = await _ask(self.store.get, id) or job
            else:
                job.output = "".join(self._outputs[id])
        return job

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            room = max(self.service.settings.max_batch // 2, 1) - len(self._tasks)
            jobs = []
            if room > 0 and not self.service.draining:
                name = self.service.settings.name
                jobs = await _insist(self.store.start, room, name)
            for job in jobs:
                task = asyncio.create_task(self._process(job))
                self._tasks.add(task)
                task.add_done_callback(self._done)
            waiting = await _insist(self.store.waiting)
            self.service.metrics.jobs.set(waiting)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("job failed", exc_info=error)
        self._wake.set()

    async def _process(self, job: Job) -> None:
        output = self._outputs[job.id] = []
        try:
            ids = await self.service.encode(job.prompt)
            requests = self.service.requests(ids, self.params, 1)
            call = await self.service.begin(requests, streams=False)
            try:
                async for _, piece in call.pieces():
                    output.append(piece.text)
            finally:
                call.close()
            await _insist(self.store.finish, job, "".join(output))
        except Exception as error:
            await self._put_off(job, error)
        finally:
            del self._outputs[job.id]

    async def _put_off(self, job: Job, error: Exception) -> None:
        """A full queue or a stop puts a job off; one that fails ends with what it has."""
        busy = isinstance(error, APIError) and error.status == 429
        if busy or self.service.draining:
            await _insist(self.store.queue_again, job)
            await asyncio.sleep(_PAUSE)
            return
        log("job ended early", id=job.id, error=one_line(error))
        output = "".join(self._outputs[job.id])
        await _insist(self.store.finish, job, output)


async def _ask(function: Callable[..., Found], *values: object) -> Found:
    """What the store answers. Raises `APIError` where its file can't be read or written."""
    try:
        return await asyncio.to_thread(function, *values)
    except JobsError as error:
        log("job refused", logging.WARNING, reason=one_line(error))
        message = "the server can't read or write its jobs now: its log says more"
        raise APIError(503, message) from None


async def _insist(function: Callable[..., Found], *values: object) -> Found:
    """What the store answers, once its file can be read and written."""
    while True:
        try:
            return await asyncio.to_thread(function, *values)
        except JobsError as error:
            log("jobs wait for their file", logging.WARNING, reason=one_line(error))
            await asyncio.sleep(_RETRY)


def routes(jobs: Jobs) -> APIRouter:
    """The routes over the jobs."""
    router = APIRouter()

    @router.post("/jobs")
    @router.post("/jobs/", include_in_schema=False)
    async def add(body: JobBody) -> Response:
        """Accept a job: it is answered even if the server is killed and started again."""
        if jobs.service.draining:
            raise stopping()
        job = await jobs.add(_uuid4(body.id), body.prompt)
        return answer({key: job.public[key] for key in ("id", "prompt", "created", "status")})

    @router.get("/jobs/status/{id}")
    async def status(id: str) -> Response:
        """Queued, processing or finished."""
        return answer({"status": (await jobs.get(_uuid4(id))).status})

    @router.get("/jobs/{id}")
    async def get(id: str) -> Response:
        """A job and what it has written."""
        return answer((await jobs.get(_uuid4(id))).public)

    return router


def _uuid4(text: str) -> str:
    try:
        found = uuid.UUID(text)
    except ValueError:
        found = None
    if found is None or found.version != 4 or str(found) != text.lower():
        raise APIError(400, "id: give a UUID of version 4", param="id")
    return str(found)
