"""last_error.txt of a run directory: why a process that is left ended, where its launcher may end it before anybody reads a line."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from accel_flowers.core.reading import read_text

LAST_ERROR_FILE = "last_error.txt"
_MAX_BYTES = 2**20


def note_error(run_dir: Path, rank: int, words: str) -> None:
    """Add a line; several processes may at once. Where it cannot be written it is not: something else is being told."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {rank}: {' '.join(words.split())}\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        file = os.open(run_dir / LAST_ERROR_FILE, flags, 0o666)
        try:
            os.write(file, line.encode(errors="backslashreplace"))  # at once: lines of several processes do not mix
            os.fsync(file)
        finally:
            os.close(file)


def read_error(run_dir: Path) -> str:
    """The last line; empty where there is none that can be read."""
    try:
        lines = read_text(run_dir / LAST_ERROR_FILE, max_bytes=_MAX_BYTES).splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def forget_error(run_dir: Path) -> None:
    """Take the file away: the run has gone on."""
    with contextlib.suppress(OSError):
        (run_dir / LAST_ERROR_FILE).unlink()
