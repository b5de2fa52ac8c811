"""A server from its start to its end."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llama2gpu.api import Llama
from llama2gpu.errors import Llama2GPUError
from llama2gpu.server.app import build_app
from llama2gpu.server.connection import Connection
from llama2gpu.server.job_store import JobStore
from llama2gpu.server.logs import log
from llama2gpu.server.service import Service
from llama2gpu.server.settings import Settings
from llama2gpu.server.stream import REST_SECONDS


class AddressError(Llama2GPUError):
    """The address can't be listened at."""


class Server(uvicorn.Server):
    """Listens; at SIGTERM or SIGINT it takes nothing new and lets what runs finish in time.

    The second SIGINT ends what runs with an error, the third one leaves it.
    """

    def __init__(self, app: FastAPI, service: Service) -> None:
        self.service, self._pressed = service, 0
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            ws="none",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=round(service.settings.grace + REST_SECONDS),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The begin, in the loop that all else runs in."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        self._pressed += sig == signal.SIGINT
        if self._pressed != 2 or self._loop is None:
            super().handle_exit(sig, frame)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.service.abort)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The end: streams finish, or get an event that says why they don't."""
        log("stopping", running=self.service.worker.load)
        self.service.drain(asyncio.get_running_loop())
        await super().shutdown(sockets)


def bound_memory() -> None:
    """Before anything is computed: lets oneDNN keep few of the programs it makes for each batch."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # by itself it keeps 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises `AddressError`."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as undo:
            found = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            undo.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{host} port {port}: {reason}: give another --host or --port"
        raise AddressError(message) from error
    return found


def serve(llama: Llama, settings: Settings, store: JobStore, found: socket.socket) -> None:
    """Serves a model at a socket until a signal ends it."""
    host, port = found.getsockname()[:2]
    settings = replace(settings, local=ip_address(host).is_loopback)
    service = Service(llama, settings)
    server = Server(build_app(service, store), service)
    if settings.api_key is None and not settings.local:
        log("whoever reaches this address may call: set a key", logging.WARNING)
    log("listening", host=host, port=port, model=settings.name, context=service.context)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it again once it has ended
        signal.signal(number, server.handle_exit)
    try:
        server.run([found])
    finally:
        service.worker.end()  # also where the application was left as it was
    log("stopped")
