"""A training that waits for each of its checkpoints: else a slow disk leaves some out, which is as promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel_flowers.cli.main import main as program
from accel_flowers.training.snapshot_writer import SnapshotWriter

_submit = SnapshotWriter.submit


def submit_and_wait(self: SnapshotWriter, write: Callable[[], None], **how: Any) -> None:
    """As `SnapshotWriter.submit`, and back once it is on the disk."""
    _submit(self, write, **how)
    self.wait()


def main(words: list[str] | None = None) -> None:
    """The program, in a process of its own."""
    SnapshotWriter.submit = submit_and_wait  # type: ignore[method-assign]
    program(words)
