"""`serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_left_out


@dataclass(frozen=True)
class _ServeWords:
    """Answer for a model: a page to try it on photos, and a JSON endpoint (POST /predict, described at /openapi.json).

    For this machine alone, unless --host says otherwise. Pictures that arrive together are computed together. SIGTERM and
    Ctrl-C finish what is under way.
    """

    model: tyro.conf.Positional[Path]
    """Model folder (RUN_DIR/model), or an exported file."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 = every address of this machine, which needs a token."""
    port: int = 8000
    """Port; 0 = one that is free."""
    token: str | None = None
    """What clients have to show; auto = one is made and printed once. Better set as ACCEL_FLOWERS_TOKEN, for a command line can be seen by others on this machine."""
    allow_host: tuple[str, ...] = ()
    """More names by which the server may be called, as they stand in the Host header: those of a reverse proxy."""
    proxy: tuple[str, ...] = ()
    """Addresses of reverse proxies before the server, whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    max_batch: int = 32
    """Most pictures in one forward pass."""
    max_wait_ms: float = 4.0
    """How long a batch that has room waits for pictures that are still being decoded, in milliseconds."""
    max_queue: int = 256
    """Most pictures under way; beyond, requests are answered with 429."""
    max_mb: float = 32.0
    """Largest body of a request, in MiB; beyond, 413."""
    max_files: int = 16
    """Most pictures in a request; beyond, 413."""
    rate: float | None = None
    """Requests a second that a client may send; beyond, 429. None = 20 where others can reach the server, else any number."""
    header_seconds: float = 10.0
    """Until the head of a request must be there."""
    body_seconds: float = 20.0
    """Until the body of a request must be there; beyond, 408."""
    answer_seconds: float = 30.0
    """Until an answer is given up; beyond, 503."""
    drain_seconds: float = 20.0
    """For what is under way when the server is told to stop."""
    max_connections: int = 256
    """Most connections at once; beyond, 503."""
    num_workers: int | None = None
    """Threads that decode pictures; None = the cores of this machine."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or for programs."""


_ANSWERS = {
    "--data": "photos come to the server over HTTP; accel-flowers predict MODEL_DIR PATH... is for files",
    "--model": "the model comes first: accel-flowers serve RUN_DIR/model",
    "--batch-size": "--max-batch N bounds how many pictures are computed together",
    "--reload": "start the server again when the model has changed",
    "--ssl": "the server speaks plain HTTP: put a proxy with TLS before it (docs/serving.md)",
}
_RATE_OF_OTHERS = 20.0


def serve_command(words: Sequence[str]) -> int:
    asked = parse_words(_ServeWords, words, "serve", answers=_ANSWERS)
    if is_left_out():
        return 0  # one server is enough: started on several processes, the first does it
    from accel_flowers.serving.command import serve_model
    from accel_flowers.serving.limits import Limits
    from accel_flowers.serving.security import is_loopback

    if not 0 < asked.max_mb <= 1024:
        raise UserError(f"--max-mb {asked.max_mb:g} is not allowed: it is more than 0 and at most 1024.")
    if not 0 <= asked.max_wait_ms <= 1000:
        raise UserError(f"--max-wait-ms {asked.max_wait_ms:g} is not allowed: it is 0 to 1000.")
    rate = asked.rate
    if rate is None and not is_loopback(asked.host):
        rate = _RATE_OF_OTHERS
    limits = Limits(
        max_bytes=round(asked.max_mb * (1 << 20)),
        max_files=asked.max_files,
        max_queue=asked.max_queue,
        max_batch=asked.max_batch,
        batch_seconds=asked.max_wait_ms / 1000,
        rate=rate,
        header_seconds=asked.header_seconds,
        body_seconds=asked.body_seconds,
        answer_seconds=asked.answer_seconds,
        drain_seconds=asked.drain_seconds,
        max_connections=asked.max_connections,
    )
    return serve_model(
        asked.model,
        limits,
        host=asked.host,
        port=asked.port,
        token=asked.token,
        allow_hosts=asked.allow_host,
        proxies=asked.proxy,
        num_workers=asked.num_workers,
        json_log=asked.log_format == "json",
    )
