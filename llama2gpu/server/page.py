"""The web page: a few files of this folder's `page`, and what a browser may do with them."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

FOLDER = Path(__file__).resolve().parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Scripts, styles and connections of this server alone; nothing inline, no frames, no forms sent.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {f"/{path.name}": path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
#: The page's paths, which need no key: it is the API behind it that does.
PATHS = ("/", *FILES)


def routes() -> APIRouter:
    """A route for each file; `/` is index.html."""
    router = APIRouter(include_in_schema=False)
    for path in PATHS:
        file = FILES["/index.html" if path == "/" else path]
        router.add_api_route(path, _reader(file), methods=["GET", "HEAD"])
    return router


def _reader(path: Path) -> Callable[[], Awaitable[Response]]:
    data, headers = path.read_bytes(), HEADERS | {"Content-Type": TYPES[path.suffix]}

    async def read() -> Response:
        return Response(data, headers=headers)

    return read
