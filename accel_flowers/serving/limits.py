"""What a server takes from strangers: how many bytes, pictures and requests, how slowly, and how many connections.

Nothing here knows of HTTP's libraries: numbers, and counters that are asked before work is done.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from accel_flowers.core.errors import UserError

MOST_CLIENTS = 10_000
"""Addresses whose rate is remembered; the one that was quiet for the longest makes room."""
_BODIES_AT_ONCE = 16
"""Largest bodies whose bytes fit into the memory that all requests share."""


@dataclass(frozen=True)
class Limits:
    """The bounds of a server. Sizes in bytes, times in seconds."""

    max_bytes: int = 32 << 20
    """Of a request's body."""
    max_files: int = 16
    """Pictures in a request."""
    max_queue: int = 256
    """Pictures that are being decoded, wait, or are in the network."""
    max_batch: int = 32
    """Pictures in one forward pass."""
    batch_seconds: float = 0.004
    """How long a batch that has room waits for pictures that are still being decoded."""
    rate: float | None = None
    """Requests a second that one client may send; None = any number."""
    header_seconds: float = 10
    """Until the head of a request must be there."""
    body_seconds: float = 20
    """Until its body must be there."""
    answer_seconds: float = 30
    """Until its answer is given up."""
    send_seconds: float = 30
    """Until a client that does not read its answer is left."""
    drain_seconds: float = 20
    """For what is under way when the server is told to stop."""
    max_connections: int = 256
    """Clients at once."""

    def check(self) -> None:
        """See that they are numbers to serve by.

        Raises:
            UserError: which is none, by its flag.
        """
        wanted = {
            "--max-mb": self.max_bytes >= 1024,
            "--max-files": self.max_files >= 1,
            "--max-batch": 1 <= self.max_batch <= 4096,
            "--max-queue": self.max_queue >= self.max_files,
            "--rate": self.rate is None or 0 < self.rate < float("inf"),
            "--header-seconds": 0 < self.header_seconds < float("inf"),
            "--body-seconds": 0 < self.body_seconds < float("inf"),
            "--answer-seconds": 0 < self.answer_seconds < float("inf"),
            "--drain-seconds": 0 <= self.drain_seconds < float("inf"),
            "--max-connections": self.max_connections >= 1,
        }
        wrong = [flag for flag, fits in wanted.items() if not fits]
        if wrong:
            more = f" --max-queue is at least --max-files ({self.max_files})." if "--max-queue" in wrong else ""
            raise UserError(
                f"{', '.join(wrong)}: out of range. Sizes and times are more than 0, --max-batch at most 4096.{more}"
            )

    @property
    def max_held(self) -> int:
        """Bytes of bodies that all requests hold together."""
        return _BODIES_AT_ONCE * self.max_bytes


class TokenBuckets:
    """How often each client may come: its bucket fills at a rate up to a burst, and each request takes one from it.

    Args:
        rate: requests a second.
        burst: how many at once after a pause; None = as many as in two seconds, at least one.
        clock: seconds.
    """

    def __init__(self, rate: float, *, burst: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst = rate, max(1.0, 2 * rate if burst is None else burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Client → what was in its bucket, and when."""

    def __len__(self) -> int:
        return len(self._buckets)

    def left(self, client: str) -> float:
        """What is in the bucket of a client."""
        level, seen = self._buckets.get(client, (self._burst, 0.0))
        return min(self._burst, level + (self._clock() - seen) * self._rate)

    def take(self, client: str) -> bool:
        """Take one; whether there was one."""
        level = self.left(client)
        had_one = level >= 1
        self._buckets[client] = (level - had_one, self._clock())
        self._buckets.move_to_end(client)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return had_one


def client_key(address: str) -> str:
    """What counts as one client: an IPv4 address, or a network of IPv6, in which one client has as many as it likes."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return address


class HeldBytes:
    """Bytes of bodies in memory, over all requests.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    def take(self, count: int) -> bool:
        """Hold so many more; whether there was room."""
        if self.held + count > self._most:
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        """Hold so many fewer."""
        self.held -= count
