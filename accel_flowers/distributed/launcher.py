"""The launcher that started this process: whether it is still there, and whether it would tell of a signal.

One that started a single process tells it of none, and none can that is killed (SIGUSR1 kills them all): whoever is left
behind must see for itself that its launcher is gone, and stop as if it had been told to.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel_flowers.distributed.environment import is_launched, is_main_process

_log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
"""Seconds between two looks for the launcher."""
_FIRST = 1
"""Number of a container's first process. The kernel drops signals to it that it does not catch."""


class Launcher:
    """The process that started this one, where it is a launcher; to be made while it is still there."""

    def __init__(self) -> None:
        started = is_launched() or "TORCHELASTIC_RUN_ID" in os.environ
        self._process = os.getppid() if started else None

    def is_gone(self) -> bool:
        """Whether it has ended; never so for a process that no launcher started, whose shell may be closed."""
        return self._process is not None and os.getppid() != self._process

    def drops_sigterm(self) -> bool:
        """Whether nothing comes of it that a container is stopped: its first process is a launcher that does not listen."""
        return self._process == _FIRST and not catches(_FIRST, signal.SIGTERM)


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; also where that cannot be known."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def stopping_with(launcher: Launcher) -> Iterator[None]:
    """While the block lasts, stop this process as a signal would when its launcher is gone, whatever it is doing; for a
    process whose signals are ours."""
    if launcher.drops_sigterm() and is_main_process():
        _log.warning(
            "the launcher is the first process of this container and drops SIGTERM: nothing is saved\n"
            "when the container is stopped. Start the program in its place: exec accel-flowers ..."
        )
    left = threading.Event()
    threading.Thread(target=_watch, args=(launcher, left), daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(launcher: Launcher, left: threading.Event) -> None:
    while not left.wait(_LOOK_EVERY):
        # Nobody may be listening just now, or any more: the process is leaving.
        heard = [number for number in (signal.SIGTERM, signal.SIGUSR1) if callable(signal.getsignal(number))]
        if heard and launcher.is_gone():
            _log.warning("the launcher is gone: stopping")
            os.kill(os.getpid(), heard[0])
            return
