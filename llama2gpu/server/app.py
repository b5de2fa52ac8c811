"""The application: routes, what stands before them, and what starts and ends with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from llama2gpu.server import errors, jobs, openai_routes, page
from llama2gpu.server.errors import answer
from llama2gpu.server.job_store import JobStore
from llama2gpu.server.limits import Gate
from llama2gpu.server.schemas import DetokenizeBody, TokenizeBody
from llama2gpu.server.service import Service

#: What any route may answer besides, for the description of the API.
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    401: {"description": "The key is missing or wrong."},
    403: {"description": "The page of another origin may not call."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full: try again after Retry-After."},
    503: {"description": "The server is stopping, or can't write its jobs."},
}


def build_app(service: Service, store: JobStore) -> FastAPI:
    """The application over a service, with its jobs in `store`."""
    work = jobs.Jobs(service, store)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        work.start()
        yield
        await work.stop()
        await service.worker.stop()

    app = FastAPI(title="llama2gpu", lifespan=life, docs_url=None, redoc_url=None)
    errors.install(app)
    for router in (openai_routes.routes(service), jobs.routes(work)):
        app.include_router(router, responses=_REFUSALS)
    _plain_routes(app, service)
    app.include_router(page.routes())
    app.add_middleware(Gate, settings=service.settings, metrics=service.metrics)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends headers of its own
        )
    return app


def _plain_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"description": "The engine has failed."}})
    async def health() -> Response:
        """Whether the engine works."""
        alive = service.worker.alive
        return answer({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/ready", responses={503: {"description": "No request would be taken."}})
    async def ready() -> Response:
        """Whether a request would be taken."""
        status = "ready" if service.ready else "stopping" if service.draining else "failed"
        return answer({"status": status}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/tokenize", responses=_REFUSALS)
    async def tokenize(body: TokenizeBody) -> Response:
        """Ids of a text."""
        ids = await service.encode(body.prompt, bos=body.add_special_tokens)
        return answer({"tokens": ids, "count": len(ids), "max_model_len": service.context})

    @app.post("/detokenize", responses=_REFUSALS)
    async def detokenize(body: DetokenizeBody) -> Response:
        """Text of ids."""
        return answer({"prompt": await service.decode(body.tokens)})
