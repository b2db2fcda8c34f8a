"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PATHS = ("/", "/predict", "/model", "/health", "/metrics", "/openapi.json")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("accel_flowers_requests", "Requests, by path and status.", ["path", "status"], **of)
        self._seconds = Histogram(
            "accel_flowers_request_seconds",
            "From the head of a request to the end of its answer, of /predict.",
            buckets=_SECONDS,
            **of,
        )
        self.batch_pictures = Histogram(
            "accel_flowers_batch_pictures", "Pictures in a forward pass.", buckets=_PICTURES, **of
        )
        self.batch_seconds = Histogram(
            "accel_flowers_batch_seconds", "Duration of a forward pass.", buckets=_SECONDS, **of
        )
        self._rejected = Counter("accel_flowers_rejected", "Requests that were refused, by reason.", ["reason"], **of)
        self._pictures = Counter(
            "accel_flowers_pictures", "Pictures: answered, unreadable, or abandoned by their client.", ["became"], **of
        )
        self._queue = Gauge("accel_flowers_queue_pictures", "Pictures that are decoded, wait or are computed.", **of)
        self._connections = Gauge("accel_flowers_connections", "Connections that are open.", **of)
        self._model = Gauge("accel_flowers_model_info", "The model that is served.", ["name", "digest"], **of)
        for became in ("answered", "unreadable", "abandoned"):
            self._pictures.labels(became)  # a rate of what has not happened yet is 0, not unknown

    def watch(self, *, queue: Callable[[], float], connections: Callable[[], float]) -> None:
        """Say where the numbers come from that rise and fall."""
        self._queue.set_function(queue)
        self._connections.set_function(connections)

    def serves(self, name: str, digest: str) -> None:
        """Note the model."""
        self._model.labels(name, digest).set(1)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(path if path in _PATHS else "other", str(status)).inc()
        if path == "/predict":
            self._seconds.observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a refusal."""
        self._rejected.labels(reason).inc()

    def picture(self, became: str, count: int = 1) -> None:
        """Count what became of pictures: "answered", "unreadable", "abandoned"."""
        self._pictures.labels(became).inc(count)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
