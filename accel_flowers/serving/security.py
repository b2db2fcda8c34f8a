"""Who may ask: the Host header, where a browser's request comes from, the token; and what browsers are told to forbid."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from accel_flowers.core.errors import UserError

TOKEN_VARIABLE = "ACCEL_FLOWERS_TOKEN"
"""Environment: the token, which then stands in no list of processes."""
AUTO = "auto"
_SHORTEST_TOKEN = 12
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer."""
NO_CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of answers that are no page."""


def page_policy(*, scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The Content-Security-Policy of a page with these scripts and styles in it, and no others.

    Args:
        scripts, styles: what stands between the tags, to the byte.
    """
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src", *(_hash(text) for text in scripts))) if scripts else "script-src 'none'",
            " ".join(("style-src", *(_hash(text) for text in styles))),
            "img-src blob: data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(asked: str | None, *, host: str) -> str | None:
    """The token of a server: as asked, made, or from the environment; None = it needs none.

    Raises:
        UserError: one that is easily guessed or cannot be sent, or none where others can reach the server.
    """
    given, where = asked, "--token"
    if given is None:
        given, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if given == AUTO:
        return secrets.token_urlsafe(24)
    if given is None:
        if not is_loopback(host):
            raise UserError(
                f"--host {host} lets others than this machine ask the model, so it needs a token: --token auto makes one, "
                f"or set the environment variable {TOKEN_VARIABLE}. Without --host the server is for this machine alone."
            )
        return None
    if len(given) < _SHORTEST_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        raise UserError(
            f"{where} is no good token: it has at least {_SHORTEST_TOKEN} characters, all of them ASCII and none a space. "
            f"--token {AUTO} makes one."
        )
    return given


class Door:
    """Lets in who may ask.

    Args:
        token: what has to be shown; None = nothing.
        hosts: names by which the server may be called, without port; empty = any.
        port: of the server; cookies are kept for a host whatever the port, so its name has it.
    """

    def __init__(self, token: str | None, *, hosts: Iterable[str], port: int) -> None:
        self.has_token = token is not None
        self._token = (token or "").encode()
        # The browser keeps something that opens this server, and does not tell the token.
        self._cookie_value = hmac.new(self._token, b"accel-flowers cookie", hashlib.sha256).hexdigest()
        self.cookie_name = f"accel_flowers_{port}"
        self._hosts = frozenset(name.lower().strip("[]") for name in hosts)

    def knows_host(self, header: str | None) -> bool:
        """Whether a request names this server. One from a page whose name was bound to this address after it was
        loaded (DNS rebinding) names that page's host, and would else be answered as if it came from here."""
        return not self._hosts or (header is not None and host_name(header) in self._hosts)

    def comes_from_here(self, headers: Mapping[str, str]) -> bool:
        """Whether a request is no browser's, or that of a page of this server: others' pages may not spend its time."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get("origin")
        return origin is None or host_name(urlsplit(origin).netloc) == host_name(headers.get("host", ""))

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in a time that tells nothing about it."""
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self._token)

    def opens(self, headers: Mapping[str, str]) -> bool:
        """Whether a request shows the token, or the cookie of one who did."""
        if not self.has_token:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        for pair in headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self.cookie_name and hmac.compare_digest(value.encode(), self._cookie_value.encode()):
                return True
        return False

    def cookie(self, *, secure: bool) -> str:
        """For the browser of one who has shown the token.

        Args:
            secure: whether it came over TLS, so that it is never sent without.
        """
        more = "; Secure" if secure else ""
        return f"{self.cookie_name}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict{more}"


def host_name(header: str) -> str:
    """Of a Host header, without the port and in small letters: "localhost", "::1"."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def allowed_hosts(host: str, more: Sequence[str]) -> tuple[str, ...]:
    """The names by which a server may be called: any where others can reach it, who need the token, unless some are given."""
    if is_loopback(host):
        return (*_LOOPBACK_NAMES, host, *more)
    return (*_LOOPBACK_NAMES, *more) if more else ()
