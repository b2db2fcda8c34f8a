"""A batch that does not come, from a disk or a network that hangs: told after a minute, ended after ten.

Time is counted in looks at it, not by a clock: a job that was suspended has not waited.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from accel_flowers.core.console import write_error
from accel_flowers.core.errors import UserError
from accel_flowers.core.signals import owns_signals, waiting_since

_log = logging.getLogger(__name__)

LIMIT_VARIABLE = "ACCEL_FLOWERS_BATCH_TIMEOUT"
"""Environment: seconds without a picture after which a wait for a batch ends the run; 0 = never."""
_LIMIT = 600.0
_TELL = 60.0
_LOOK_EVERY = 1.0
_GRACE = 20.0
"""Seconds in which the loader sees that its worker is gone; it looks every 5."""


def batch_time_limit() -> float:
    """Seconds without a picture after which a wait for a batch ends the run; infinite = never.

    Raises:
        UserError: the environment says something else than a number of seconds.
    """
    given = os.environ.get(LIMIT_VARIABLE, "")
    try:
        seconds = float(given or _LIMIT)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise UserError(
            f"{LIMIT_VARIABLE} is '{given}': set it to a number of seconds, such as 1800, or to 0 for no limit."
        )
    return seconds or float("inf")


def file_system_of(path: str) -> str:
    """Kind and place of the file system that holds a path: "nfs4 at /data". Asks the kernel alone, not the disk; empty where it
    does not say."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best = os.path.abspath(path), ("", "")
    for kind, mounted in ((fields[2], fields[1].replace("\\040", " ")) for fields in map(str.split, mounts)):
        inside = place == mounted or place.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best[1]):
            best = kind, mounted
    return f"{best[0]} at {best[1]}" if best[1] else ""


class BatchWatch:
    """Looks at the waits of this process for batches while its `with` block lasts.

    Args:
        progress: a number that grows with each picture that is made.
        stuck_at: what is being made: the names of pictures, and the processes that make them (none = this one does).
        source: folder or data set of the pictures.

    Raises:
        UserError: (from the start) the limit in the environment is none.
    """

    def __init__(
        self, progress: Callable[[], int], stuck_at: Callable[[], tuple[Sequence[str], Sequence[int]]], source: str
    ) -> None:
        self._progress, self._stuck_at, self._source = progress, stuck_at, source
        self._limit = batch_time_limit()
        self._left = threading.Event()
        self.ended: str | None = None
        """Why the workers were ended; None = they were not."""

    def __enter__(self) -> BatchWatch:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        last: tuple[float | None, int] = (None, 0)
        waited, tell_at = 0.0, min(_TELL, self._limit / 2)
        look_every = min(_LOOK_EVERY, tell_at / 2)
        while not self._left.wait(look_every):
            now = waiting_since(), self._progress()
            waited = waited + look_every if now == last and now[0] is not None else 0.0
            if not waited:
                last, tell_at, self.ended = now, min(_TELL, self._limit / 2), None
            elif waited >= self._limit + _GRACE and self.ended is not None and owns_signals():
                self._end_process(self.ended)
            elif waited >= self._limit and self.ended is None:
                self._end(waited)
            elif waited >= tell_at:
                tell_at += _TELL
                _log.warning(f"{self._found(waited)}.")

    def _found(self, waited: float) -> str:
        files, _ = self._stuck_at()
        where = file_system_of(self._source)
        what = ", ".join(files) or "none is being read"
        return f"no picture came for {waited:.0f} s from {self._source}{f' ({where})' if where else ''}: {what}"

    def _end(self, waited: float) -> None:
        _, workers = self._stuck_at()
        told = (
            f"{self._found(waited)}.\nThe disk or network hangs, or is very slow: "
            f"{LIMIT_VARIABLE}=1800 waits half an hour, 0 for ever.\nWhat was saved is kept: go on with --resume auto."
        )
        if workers:
            self.ended = told
            for worker in workers:
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        elif owns_signals():
            self._end_process(told)

    def _end_process(self, told: str) -> None:
        write_error(told)
        os._exit(2)  # the main thread is in the system's hands, from where nothing calls it back
