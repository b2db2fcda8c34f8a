"""What can come between two steps: a signal to stop, a checkpoint that is due; agreed between all processes."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from accelerate import Accelerator

from accel_flowers.config import CheckpointConfig
from accel_flowers.errors import Interrupted
from accel_flowers.processes import Agreement


class Watch:
    """Asked after every step, on every process; listens to signals while its `with` block lasts.

    Args:
        accelerator: the processes that must agree.
        config: when a checkpoint is due inside an epoch.
    """

    def __init__(self, accelerator: Accelerator, config: CheckpointConfig) -> None:
        self._agreement = Agreement(accelerator)
        self._config = config
        self._signalled = False
        self._saved_at = time.monotonic()
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():  # only there signals can be set
            self._handlers_before = {number: signal.signal(number, self._note) for number in Interrupted.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signalled = True

    def after_step(self, step: int, *, saved: bool) -> tuple[bool, bool]:
        """Whether to save now and whether to stop after that; the same answer on every process.

        Args:
            step: optimizer steps done.
            saved: whether this step was saved already.
        """
        steps, minutes = self._config.every_steps, self._config.every_minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        stop, late = self._agreement.any(self._signalled, late)
        save = not saved and (stop or late or (steps is not None and step % steps == 0))
        if save or saved:
            self._saved_at = time.monotonic()
        return save, stop
