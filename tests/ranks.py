"""Processes of a run that no launcher ends, forked from one that has imported everything: seconds less for each.

Started as a program this is the process that forks: a line of JSON in, a line out.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.runs import PROJECT

PROGRAM_ENTRY = "accel_flowers.cli.main:main"


class Ranks:
    """The processes of one run; leaving kills what is left of them.

    Args:
        directory: where their logs go.
        words: of each process, what the program gets.
        variables: more of their environment.
        entry: module:function that gets the words; it ends the process.
    """

    def __init__(
        self,
        directory: Path,
        *words: Sequence[str | Path],
        variables: Mapping[str, str] | None = None,
        entry: str = PROGRAM_ENTRY,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._logs = [directory / f"rank-{rank}.log" for rank in range(len(words))]
        self.pids: list[int] = []
        several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": len(words)}
        for rank, (own, log) in enumerate(zip(words, self._logs, strict=True)):
            place = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": len(words)}
            ours = {**several, **place, "ACCELERATE_USE_CPU": "true"} if len(words) > 1 else {}
            order = {
                "words": [str(word) for word in own],
                "log": str(log),
                "entry": entry,
                "variables": {name: str(value) for name, value in {**ours, **(variables or {})}.items()},
            }
            self.pids.append(int(_ask(order)))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in range(len(self.pids)):
            self.signal(rank, signal.SIGKILL)
        self.codes(30)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send it to one process, where it still runs."""
        if self.code(rank) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def code(self, rank: int) -> int | None:
        """Exit code of a process; None while it runs."""
        code: int | None = _ask({"poll": self.pids[rank]})
        return code

    def codes(self, timeout: float) -> list[int]:
        """Exit code of each, once all have ended.

        Raises:
            TimeoutError: some did not; with what they said.
        """
        deadline = time.monotonic() + timeout
        while True:
            codes = [self.code(rank) for rank in range(len(self.pids))]
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return ended
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s: {codes}\n{self.output()}")
            time.sleep(0.01)

    def wait_for(self, path: Path, timeout: float = 60) -> None:
        """Until a file is there.

        Raises:
            TimeoutError: it does not come, with what the processes said.
        """
        deadline = time.monotonic() + timeout
        while not path.exists():
            if time.monotonic() > deadline or None not in map(self.code, range(len(self.pids))):
                raise TimeoutError(f"no {path}\n{self.output()}")
            time.sleep(0.01)

    def said(self, rank: int) -> str:
        """What a process wrote so far."""
        return self._logs[rank].read_text(errors="replace")

    def output(self) -> str:
        """What all of them wrote so far."""
        return "\n".join(map(self.said, range(len(self.pids))))


def finish(
    directory: Path,
    words: Sequence[str | Path],
    *,
    processes: int = 1,
    timeout: float = 120,
    entry: str = PROGRAM_ENTRY,
) -> str:
    """Run the program to its end; returns what it said."""
    with Ranks(directory, *[words] * processes, entry=entry) as ranks:
        codes = ranks.codes(timeout)
        assert codes == [0] * processes, ranks.output()
        return ranks.output()


def _ask(order: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    """Fork on request. This process computes nothing, so that its forks find no threads missing."""
    from accel_flowers.cli import evaluate  # noqa: F401 - what takes the time
    from accel_flowers.metrics import label_metrics  # noqa: F401 - what takes the time
    from accel_flowers.training import train  # noqa: F401 - what takes the time

    gc.freeze()  # a fork copies what its collector touches

    codes: dict[int, int] = {}
    server = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid = order["poll"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            print(json.dumps(codes.get(pid)), flush=True)
            continue
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        pid = os.fork()
        if pid:
            os.close(log)
            print(pid, flush=True)
            continue
        _die_with(server)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.update(order["variables"])
        code = 1
        try:
            module, _, function = order["entry"].partition(":")
            getattr(importlib.import_module(module), function)(order["words"])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - the fork must end here, whatever it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _die_with(server: int) -> None:
    """Let this process be killed when the one that forked it ends, which it does with the tests, however those end."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


if __name__ == "__main__":
    _serve()
