"""HTTP over a connection, bounded: uvicorn's own gives a client all the time of the world for the head of its request, and to
take its answer."""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from accel_flowers.serving.limits import Limits
from accel_flowers.serving.metrics import Metrics

MAX_HEAD_BYTES = 32 << 10
"""Of a request, before its body."""
_CLOSING_SECONDS = 5.0
"""In which a connection that is closed must be gone: its client may not read what is still to be sent."""


class BoundedProtocol(H11Protocol):
    """One connection. `limits` and `metrics` are attributes of a subclass, for uvicorn makes the objects."""

    limits: Limits
    metrics: Metrics
    _head_since: float | None = None
    """When we began to wait for the head of a request; None = one is being answered, or the connection rests."""
    _stuck_since: float | None = None
    """When the client was first seen not to take its answer, or its end."""
    _turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.max_connections:
            self._turned_away = True
            self.transport = transport
            message = f"All {self.limits.max_connections} connections are taken: ask again in a second."
            self._end_with(503, "connections", message)
            return
        super().connection_made(transport)
        self._head_since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self._turned_away or self.transport.is_closing():
            return
        super().data_received(data)
        if not self._rests():
            self._head_since = None
        elif self._head_since is None:
            self._head_since = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._turned_away:
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stuck_since = None

    def send_400_response(self, msg: str) -> None:
        self._end_with(400, "not_http", msg)

    def _rests(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def look(self, now: float) -> None:
        """End the connection where it keeps us waiting; called about once a second.

        Args:
            now: monotonic seconds.
        """
        if self.transport.is_closing() or self.flow.write_paused:
            self._stuck_since = self._stuck_since or now
            most = _CLOSING_SECONDS if self.transport.is_closing() else self.limits.send_seconds
            if now - self._stuck_since > most:
                self.transport.abort()
            return
        self._stuck_since = None
        if self._head_since is not None and now - self._head_since > self.limits.header_seconds and self._rests():
            seconds = f"{self.limits.header_seconds:g} s"
            self._end_with(408, "head_too_slow", f"The head of a request did not arrive within {seconds}.")

    def _end_with(self, status: int, reason: str, message: str) -> None:
        """Answer without the application, and close."""
        self.metrics.rejected(reason)
        body = json.dumps({"error": reason, "message": message}).encode()
        retry = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{retry}"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def protocol_of(limits: Limits, metrics: Metrics) -> type[Any]:
    """The class of a server's connections."""
    return type("ServedConnection", (BoundedProtocol,), {"limits": limits, "metrics": metrics})
