"""`accel-flowers serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.runs import PROGRAM, PROJECT


@dataclass
class Served:
    """A server that answers."""

    url: str
    """Without a slash at its end."""
    process: subprocess.Popen[str]
    log: Path
    """Its standard error."""
    temporary: Path
    """Its TMPDIR."""
    token: str | None
    """That it has made and shown."""

    @property
    def port(self) -> int:
        found = urlsplit(self.url).port
        assert found is not None
        return found

    def lines(self) -> list[str]:
        """Of its log."""
        return self.log.read_text().splitlines()

    def connect(self, *, address: str = "127.0.0.1") -> socket.socket:
        """A plain connection from an address of this machine (127.0.0.2 is another client than 127.0.0.1)."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(address, 0))

    def client(self, *, address: str = "127.0.0.1", token: str | None = None) -> httpx.Client:
        """An HTTP client with an address of its own."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=self.url, transport=transport, headers=headers, timeout=60)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serve(model: Path, folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A server while the block lasts.

    Args:
        model: what it serves.
        folder: new; for its log and temporary files.
        words: after `serve MODEL`.
        environment: beside that of this process.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    log = folder / "log"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), **(environment or {})}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *PROGRAM, "serve", str(model), "--port", "0", *words],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=variables, cwd=PROJECT,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told, log.read_text()
        found = re.fullmatch(r"(http://\S+?)/(?:\?token=(\S+))?\n", told)
        assert found, told
        yield Served(found[1], process, log, temporary, found[2])
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def counted(text: str) -> dict[str, float]:
    """The numbers of /metrics by name and labels: 'accel_flowers_requests_total{path="/",status="200"}' → 1."""
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
