"""The server's life: a socket before the model is read, an end that finishes what is under way, signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.core.signals import handle_signals, restore_signals
from accel_flowers.serving.limits import Limits
from accel_flowers.serving.metrics import Metrics
from accel_flowers.serving.protocol import MAX_HEAD_BYTES, protocol_of
from accel_flowers.serving.security import is_loopback

_log = logging.getLogger(__name__)

_BACKLOG = 512
_KEEP_ALIVE = 15
"""Seconds for which a connection without a request is kept."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet.

    Raises:
        UserError: there is no such address here, it is taken, or not permitted.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} is not allowed: it is 1 to 65535, or 0 for one that is free.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host '{host}' is no address of this machine: {getattr(error, 'strerror', error)}."
        ) from None
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of one that has just ended, the address is free
        opened.bind(address)
    except OSError as error:
        opened.close()
        advice = "take another one with --port"
        if isinstance(error, PermissionError):
            advice = "ports below 1024 are for the system: take a higher one with --port"
        raise UserError(f"Port {port} of {host} cannot be had: {error.strerror}; {advice}.") from None
    return opened


def address_of(opened: socket.socket, *, host: str) -> str:
    """Where people reach it: "http://127.0.0.1:8000"; where it listens on every address, one by which others do.

    Args:
        opened: has its address.
        host: as it was asked for.
    """
    shown, port = opened.getsockname()[:2]
    if host == "localhost" or not is_loopback(shown):
        shown = host
    if shown in ("0.0.0.0", "::", ""):
        shown = _address_in_the_network() or socket.gethostname()
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def _address_in_the_network() -> str | None:
    """By which machines of the same network reach this one; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of nobody (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return None


class Server(uvicorn.Server):
    """uvicorn's, whose signals are those of this program, and which looks at its connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.num_cut_off = 0
        """Requests that were not answered when the time to stop had passed."""
        self.is_stopping = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = handle_signals(self._on_signal)
        try:
            yield
        finally:
            restore_signals(before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.is_stopping:
            os._exit(128 + number)
        self.is_stopping = self.should_exit = True
        name = signal.Signals(number).name
        count = len(self.server_state.tasks)
        rest = f"{number_of(count, 'request is', many='requests are')} finished first; " if count else ""
        _log.info(f"{name}: stopping. {rest}a second signal ends at once")

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                connection.look(now)  # type: ignore[union-attr]
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.num_cut_off = sum(not task.done() for task in self.server_state.tasks)


def build_server(app: Callable[..., object], limits: Limits, metrics: Metrics) -> Server:
    """A server of an application."""
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it tells of is counted, or told by us
    return Server(
        uvicorn.Config(
            app,
            http=protocol_of(limits, metrics),
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )


def run(server: Server, opened: socket.socket, *, before: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Serve until a signal comes.

    Args:
        server: of the application.
        opened: has its address.
        before: called in the event loop's thread before the first request.

    Raises:
        UserError: the address cannot be listened at.
    """

    async def serve() -> None:
        before(asyncio.get_running_loop())
        await server.serve([opened])

    try:
        opened.listen(_BACKLOG)
    except OSError as error:
        raise UserError(f"The address cannot be listened at: {error.strerror}; take another --port.") from None
    asyncio.run(serve())
