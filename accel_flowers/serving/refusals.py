"""A request that is not served, and why: the one error that the server's own modules raise for a client."""

from __future__ import annotations


class Refused(Exception):
    """A request is answered with an error.

    Args:
        status: HTTP's number.
        reason: a word for programs and for the metrics: "body_too_large".
        message: for people: what was given, what is allowed, what to do.
        retry_after: seconds after which the same request may succeed; None = it will not.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after

    def headers(self) -> dict[str, str]:
        """What the answer says beside its body."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            found["www-authenticate"] = 'Bearer realm="accel-flowers"'
        return found


NOT_AVAILABLE = "Where the network looked is not available for this file: it takes gradients, which only a model folder (RUN_DIR/model) gives."
