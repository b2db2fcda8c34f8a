"""Standard streams to which nothing can be written, and the program on them; for forked processes."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Sequence

KINDS = ("full", "reader gone", "terminal gone", "closed")


def open_broken(kind: str) -> int:
    """A descriptor that fails when it is written to: ENOSPC, EPIPE or EIO."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    other, broken = os.pipe() if kind == "reader gone" else pty.openpty()
    os.close(other)
    return broken


def run(words: Sequence[str]) -> None:
    """The program, all of whose streams are as the first word says."""
    from accel_flowers.cli.main import main

    kind, *words = words
    if kind == "closed":
        for number in range(3):
            os.close(number)
        sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]  # as Python has it then
    else:
        broken = open_broken(kind)
        os.dup2(broken, 1)
        os.dup2(broken, 2)
    main(words)
