"""Refusals in the form of OpenAI's API: a status and an error object."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from llama2gpu.errors import ContextError, RequestError
from llama2gpu.files import one_line

#: OpenAI's type of error by status; 4xx that are not here are invalid requests.
_TYPES = {429: "requests", 500: "server_error", 503: "server_error", 504: "server_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


class APIError(Exception):
    """A request that is refused or failed.

    status: of HTTP. param: the field that is wrong. code: a word for programs.
    headers: of the answer. Where it comes in the middle of a stream, `body` is its last event.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.error = {
            "message": one_line(message),
            "type": _TYPES.get(status, "invalid_request_error"),
            "param": param,
            "code": code or _CODES.get(status),
        }

    @property
    def body(self) -> dict[str, Any]:
        """The object that a client gets."""
        return {"error": self.error}

    @property
    def response(self) -> Response:
        """The whole answer."""
        return answer(self.body, self.status, self.headers)


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of JSON, in ASCII: whatever a text holds, it can be sent."""
    text = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


def too_busy(seconds: int = 1) -> APIError:
    """The refusal of what finds the queue full."""
    message = "the server's queue is full: try again later"
    return APIError(429, message, headers={"Retry-After": str(seconds)})


def stopping() -> APIError:
    """The refusal of a server that is about to end."""
    return APIError(503, "the server is stopping", code="stopping")


def explain(errors: Sequence[Any]) -> APIError:
    """The first of pydantic's complaints as an error object."""
    error = errors[0]
    where = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    if not where:
        return APIError(400, "the body is no JSON object: send one, as application/json")
    field = where[0]
    # a field of several types has a complaint of each
    found = dict.fromkeys(e["msg"] for e in errors if field in e["loc"])
    return APIError(400, f"{field}: {', or: '.join(found)}", param=field)


def install(app: FastAPI) -> None:
    """Gives every refusal of an application the form of OpenAI's."""

    @app.exception_handler(APIError)
    async def api_error(request: Request, error: APIError) -> Response:
        return error.response

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        code = "context_length_exceeded" if isinstance(error, ContextError) else None
        return APIError(400, str(error), code=code).response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return explain(error.errors()).response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return APIError(error.status_code, str(error.detail), headers=headers).response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return APIError(500, "an error of the server: its log says more").response
