"""What stands before the routes: who may ask, how much at once, how slowly; the headers of every answer; a line for each request."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response

from accel_flowers.core.errors import printable
from accel_flowers.core.plural import number_of
from accel_flowers.serving.app import refusal
from accel_flowers.serving.limits import HeldBytes, Limits, TokenBuckets, client_key
from accel_flowers.serving.metrics import Metrics
from accel_flowers.serving.page import Page
from accel_flowers.serving.refusals import Refused
from accel_flowers.serving.security import ALWAYS, NO_CONTENT_POLICY, Door

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_LINGER = 2.0
"""Seconds in which the rest of a body that nobody wants is read and thrown away, so that its client, which is still
sending, gets to read why: a connection that is closed before may lose the answer on its way."""
_LINGER_BYTES = 256 << 20
_WRONG_TOKENS = (0.2, 10)
"""A second, and at once: how often a client may show a wrong token before it has to wait."""
_LONGEST_PATH = 200
_ESCAPED = "\N{HORIZONTAL ELLIPSIS}"


class Guard:
    """The application with all that guards it.

    Args:
        app: the routes.
        door: who may ask.
        limits: how much.
        metrics: where it is counted.
        login: the page of those who have no token.
        as_json: whether the lines of the log are JSON.
    """

    def __init__(
        self, app: App, door: Door, limits: Limits, metrics: Metrics, *, login: Page, as_json: bool = False
    ) -> None:
        self._app, self._door, self._limits, self._metrics, self._login = app, door, limits, metrics, login
        self._as_json = as_json
        self._rates = TokenBuckets(limits.rate) if limits.rate is not None else None
        self._wrong_tokens = TokenBuckets(_WRONG_TOKENS[0], burst=_WRONG_TOKENS[1])
        self._held = HeldBytes(limits.max_held)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits, self._held)
        try:
            try:
                answer = self._at_the_door(scope)
                if answer is None:
                    exchange.expect_body()
                    await self._app(scope, exchange.receive, exchange.send)
                else:
                    await answer(scope, receive, exchange.send)
            except Refused as error:  # before the routes
                await refusal(error, self._metrics)(scope, receive, exchange.send)
        except asyncio.CancelledError:  # the time to stop has passed
            if not exchange.status:
                cut_off = Refused(503, "stopping", "The server has stopped before it could answer.", retry_after=5)
                await refusal(cut_off, self._metrics)(scope, receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - a bug: told whole in the log, and the server goes on
            _log.error("".join(traceback.format_exception(error)).rstrip())
            if not exchange.status:
                failed = Refused(500, "internal", "The server failed; its log says why.")
                await refusal(failed, self._metrics)(scope, receive, exchange.send)
        finally:
            exchange.end()
            self._tell(scope, exchange)

    def _at_the_door(self, scope: MutableMapping[str, Any]) -> Response | None:
        """Another answer than that of the routes; None = the routes answer.

        Raises:
            Refused: the client may not ask, or not now.
        """
        headers, path = Headers(scope=scope), scope["path"]
        if not self._door.knows_host(headers.get("host")):
            named = printable(headers.get("host", "")[:100])
            raise Refused(
                421,
                "host",
                f"This server is not called '{named}'. If it should be, start it with --allow-host {named}.",
            )
        if scope["method"] not in ("GET", "HEAD") and not self._door.comes_from_here(headers):
            raise Refused(403, "origin", "A browser sent this from a page that is not this server's.")
        client = client_key((scope.get("client") or ("",))[0])
        if path == "/health":
            return None
        if path == "/predict" and self._rates is not None and not self._rates.take(client):
            raise Refused(429, "rate", f"More than {self._limits.rate:g} requests a second: slow down.", retry_after=1)
        return self._ask_for_token(scope, headers, client) if self._door.has_token else None

    def _ask_for_token(self, scope: MutableMapping[str, Any], headers: Headers, client: str) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if scope["path"] == "/" else ""
        guesses = bool(given) or "authorization" in headers  # the cookie of an earlier server is none
        if guesses and self._wrong_tokens.left(client) < 1:
            raise Refused(429, "wrong_tokens", "Too many wrong tokens: wait a minute.", retry_after=60)
        if given and self._door.is_token(given):
            return self._let_in(headers, secure=scope.get("scheme") == "https")
        if self._door.opens(headers):
            return None
        if guesses:
            self._wrong_tokens.take(client)
        error = Refused(
            401, "token", "This server needs its token: send it as the header 'Authorization: Bearer TOKEN'."
        )
        if scope["path"] == "/" and "text/html" in headers.get("accept", ""):
            self._metrics.rejected(error.reason)
            policy = {"content-security-policy": self._login.policy}
            return HTMLResponse(self._login.html, 401, headers={**error.headers(), **policy})
        raise error

    def _let_in(self, headers: Headers, *, secure: bool) -> Response:
        """Leave a cookie, and show the page without the token in its address."""
        cookie = {"set-cookie": self._door.cookie(secure=secure)}
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return RedirectResponse("/", 303, headers=cookie)
        # The browser followed another page's link: it would not send the cookie along with a redirection, so this page
        # itself leads on.
        return HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0; url=/">', headers=cookie)

    def _tell(self, scope: MutableMapping[str, Any], exchange: _Exchange) -> None:
        seconds, path = time.perf_counter() - exchange.begun, scope["path"]
        status = exchange.status or 499
        self._metrics.request(path, status, seconds)
        count = scope.get("state", {}).get("num_pictures")
        shown = path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + _ESCAPED
        if self._as_json:
            line = {"method": scope["method"], "path": shown, "status": status, "ms": round(1000 * seconds, 1)}
            _log.info("request", extra={"fields": {**line, **({} if count is None else {"pictures": count})}})
            return
        pictures = "" if count is None else f"  {number_of(count, 'picture')}"
        _log.info(f"{scope['method']} {printable(shown)}  {status}  {1000 * seconds:.0f} ms{pictures}")


class _Exchange:
    """A request and its answer, with their bounds.

    Args:
        scope: of the request.
        receive, send: the connection.
        limits: the bounds.
        held: what all requests hold.
    """

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limits: Limits, held: HeldBytes
    ) -> None:
        self._receive, self._send, self._limits, self._held = receive, send, limits, held
        headers = Headers(scope=scope)
        self._declared = headers.get("content-length")
        self._has_rest = "transfer-encoding" in headers or self._declared not in (None, "0")
        """Whether bytes of the body have not been read yet."""
        self._num_bytes = 0
        self.begun = time.perf_counter()
        self._body_until = time.monotonic() + limits.body_seconds
        self._lingers = True
        self.status = 0
        """Of the answer; 0 = there is none yet."""

    def expect_body(self) -> None:
        """See that the body may come.

        Raises:
            Refused: it says that it is too large.
        """
        if self._declared is not None and int(self._declared) > self._limits.max_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        most = f"{self._limits.max_bytes / (1 << 20):.3g} MiB"
        return Refused(413, "body_too_large", f"The body is larger than the {most} allowed.")

    async def receive(self) -> Message:
        """The next piece of the body, or that the client is gone.

        Raises:
            Refused: the body is too large, comes too slowly or not at all, or there is no room for it.
        """
        if not self._has_rest:
            return await self._receive()
        try:
            async with asyncio.timeout(self._body_until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self._lingers = False  # it would take its time again
            seconds = f"{self._limits.body_seconds:g} s"
            raise Refused(408, "body_too_slow", f"The body did not arrive within {seconds}.") from None
        if message["type"] != "http.request":
            self._has_rest = False
            raise Refused(499, "client_left", "The client closed the connection before its body was whole.")
        self._has_rest = message.get("more_body", False)
        count = len(message.get("body", b""))
        if self._num_bytes + count > self._limits.max_bytes:
            raise self._too_large()
        if not self._held.take(count):
            raise Refused(503, "memory", "Too many large requests are under way: ask again in a second.", retry_after=1)
        self._num_bytes += count
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in ALWAYS.items():
                headers[name] = value
            headers.setdefault("content-security-policy", NO_CONTENT_POLICY)
            if self._has_rest:
                headers["connection"] = "close"  # what is left of the body must not be taken for a request
        elif self._has_rest and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if self._lingers:
                await self._throw_away_rest()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _throw_away_rest(self) -> None:
        num_bytes = 0
        try:
            async with asyncio.timeout(_LINGER):
                while num_bytes < _LINGER_BYTES:
                    message = await self._receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def end(self) -> None:
        """Give back what was held."""
        self._held.give_back(self._num_bytes)
        self._num_bytes = 0
