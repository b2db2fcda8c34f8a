"""What can come between two steps: a signal to stop, a checkpoint that is due; agreed between all processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from accelerate import Accelerator

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import Interrupted, Stopped
from accel_flowers.core.signals import handle_signals, leave_undisturbed, restore_signals, seconds_waited
from accel_flowers.distributed.collectives import DelayedFlags
from accel_flowers.distributed.health import HealthMonitor

_LONGEST_WAIT = 15.0
"""Seconds that a process waits for a batch once it was told to stop; who sends the signal kills it half a minute later."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at that."""


class PreemptionHandler:
    """Asked after every step, on every process; listens to signals while its `with` block lasts.

    Args:
        accelerator: the processes that must agree.
        config: when a checkpoint is due inside an epoch.
        health: to be told where this process stands.
        listens: False where signals belong to somebody else's program; then checkpoints that are due are all it agrees on.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: CheckpointConfig,
        health: HealthMonitor,
        *,
        listens: bool = True,
    ) -> None:
        self._flags = DelayedFlags(accelerator)
        self._health = health
        self._config = config
        self._listens = listens
        self._signalled = self._interrupted = False
        self._alarm_before: Any = None
        self._saved_at = time.monotonic()
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PreemptionHandler:
        if self._listens:
            self._handlers_before = handle_signals(self._on_signal)
        return self

    def __exit__(self, kind: object = None, error: BaseException | None = None, trace: object = None) -> None:
        del kind, trace
        if error is None or isinstance(error, Interrupted):
            self._flags.close()  # where others may be gone nobody waits for them
        if self._alarm_before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)
            self._alarm_before = None
        restore_signals(self._handlers_before)
        if error is not None and self._handlers_before:
            leave_undisturbed()  # until the session is left, which puts back what was set before it

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt  # whoever presses Ctrl-C twice does not want to wait for the step
            self._interrupted = True
        self._signalled = True
        if self._alarm_before is None:
            self._alarm_before = signal.signal(signal.SIGALRM, self._on_alarm) or signal.SIG_DFL
            signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY, _LOOK_EVERY)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        """After a signal: a batch that does not come, from a disk that hangs, keeps nobody from leaving."""
        del number, frame
        if seconds_waited() > _LONGEST_WAIT:
            signal.setitimer(signal.ITIMER_REAL, 0)
            leave_undisturbed()
            raise Stopped(
                f"stopped by a signal while it waited for pictures, which did not come for {seconds_waited():.0f} s.\n"
                "What was saved is kept: go on with --resume auto."
            )

    def before_step(self, step: int, micro_batch: int) -> None:
        """A micro-batch of the step after `step` is here."""
        self._health.at("training", step, micro_batch)

    def after_step(self, step: int) -> tuple[bool, bool]:
        """Whether a checkpoint is due and whether a signal says to stop; the same answer on every process.

        Of several processes each learns it one step after the one that was told: the question is on its way while the step
        computes, so that none waits for it.

        Args:
            step: optimizer steps done.
        """
        steps, minutes = self._config.every_steps, self._config.every_minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        stop, late = self._flags.any_before(self._signalled, late)
        return late or (steps is not None and step % steps == 0), stop

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved_at = time.monotonic()

    def while_scoring(self, step: int | None) -> Callable[[], None]:
        """To be called after every round of batches of an evaluation.

        Args:
            step: of the training, after which it is made; None where a saved model is scored.

        Raises (the function that is returned):
            Interrupted: a signal says to stop, on every process.
        """

        def check() -> None:
            self._health.at("evaluating", step or 0)
            # No checkpoint is due in an evaluation: one follows it.
            if self._flags.any_before(self._signalled, False)[0]:
                raise Interrupted(step)

        self._health.at("evaluating", step or 0)
        return check
