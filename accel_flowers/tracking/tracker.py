"""What a tracker is: where the numbers of a run go while it trains. A tracker of the user's own is a subclass."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from accel_flowers.core.errors import UserError
from accel_flowers.tracking.scored import Scored

_log = logging.getLogger(__name__)


class Tracker(GeneralTracker):
    """A tracker of Accelerate that may show more than numbers. Every method does nothing unless it is overridden.

    One of the user's own is registered with `@register("tracker", "my/name")`, and named in `tracking.also`. Its class is
    called with the run directory and the options of the recipe, on every process and before there are any: it keeps them and
    opens nothing. All other methods are called on the main process alone, in the order in which they stand here; an error in
    one of them ends the tracker's part and not the run, but for a `UserError` of `check` or `open`, which says what the user has
    to do.
    Nothing waits beside them: a method that takes long makes the training wait.

    Attributes:
        name: what Accelerate and the log call it.
        after_failure: how the log's line about a failure ends: what is lost, and where it is to be had.
    """

    name = "tracker"
    requires_logging_directory = False
    main_process_only = True
    after_failure = "it gets nothing more of this run; all numbers are in metrics.jsonl"

    @property
    def tracker(self) -> Any:
        """What `accelerator.get_tracker(name, unwrap=True)` hands out, for those who want more of it."""
        return self

    def check(self) -> None:
        """See, before images are read and anything is written, that `open` will not be refused.

        Raises:
            UserError: it would be; the message says what the user has to do.
        """

    def open(self, run_id: str, next_step: int) -> None:
        """Begin, or go on with the run of this id.

        Args:
            run_id: the same after a resume; in most runs eight letters and digits.
            next_step: the first optimizer step that will be logged; above 1 after a resume. What was logged of it, or of
                later ones, by a run that was killed will come again.
        """

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration: section → field → plain value."""

    def describe(self, facts: dict[str, Any]) -> None:
        """Keep what the run runs on and learns from.

        Args:
            facts: "environment" (versions, hardware, processes, precision), "classes" (names) and "images" (part → their
                number), of plain values.
        """

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Show numbers, by names such as "train/loss" and "val/accuracy", beside "epoch".

        Args:
            values: name → number.
            step: the optimizer step that they belong to.
        """

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """Show what was scored: predictions, scores and images of a part, at the end of an epoch and of the run."""

    def forget_after(self, step: int) -> None:
        """A rollback: later steps will come again, with other values."""

    def warn(self, error: Exception) -> None:
        """Tell somebody who is not looking: the run goes back to its last checkpoint because of this."""

    def keep_model(self, model_dir: Path, last_weights: Path | None) -> None:
        """Keep the model.

        Args:
            model_dir: the best weights with all that belongs to them.
            last_weights: those of the last epoch; None where these are the best.
        """

    def summarize(self, values: dict[str, Any]) -> None:
        """Keep what stands for the whole run: name → number."""

    def stop(self, error: BaseException) -> None:
        """Tell that the run does not come to its end: a signal (`Interrupted`), a process that is lost, or what it failed with."""

    def finish(self) -> None:
        """End. Also called when the run fails."""


class Guarded(Tracker):
    """A tracker that cannot end the run: its first error is told, and then it is left alone.

    What trackers call may be a network, a process of its own, or the user's code, so any error can come.

    Args:
        inner: the tracker.
    """

    def __init__(self, inner: Tracker) -> None:
        self.inner, self.name = inner, inner.name
        self.failed = False
        super().__init__()

    @property
    def tracker(self) -> Any:
        """The inner one's."""
        return self.inner.tracker

    def _call(self, method: str, *args: Any, **words: Any) -> None:
        if self.failed:
            return
        try:
            getattr(self.inner, method)(*args, **words)
        except UserError as error:
            if method in ("check", "open"):
                raise  # before the first step: better than a run that nobody sees
            self._leave_alone(error)
        except Exception as error:  # noqa: BLE001 - see above
            self._leave_alone(error)

    def _leave_alone(self, error: Exception) -> None:
        self.failed = True
        _log.warning(f"tracker {self.name} failed ({type(error).__name__}: {error}): {self.inner.after_failure}")

    def check(self) -> None:
        """See `Tracker`."""
        self._call("check")

    def open(self, run_id: str, next_step: int) -> None:
        """See `Tracker`."""
        self._call("open", run_id, next_step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._call("store_init_configuration", values)

    def describe(self, facts: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._call("describe", facts)

    def log(self, values: dict[str, Any], step: int | None = None, **words: Any) -> None:
        """See `Tracker`."""
        self._call("log", values, step=step, **words)

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """See `Tracker`."""
        self._call("show", scored, step=step, epoch=epoch)

    def forget_after(self, step: int) -> None:
        """See `Tracker`."""
        self._call("forget_after", step)

    def warn(self, error: Exception) -> None:
        """See `Tracker`."""
        self._call("warn", error)

    def keep_model(self, model_dir: Path, last_weights: Path | None) -> None:
        """See `Tracker`."""
        self._call("keep_model", model_dir, last_weights)

    def summarize(self, values: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._call("summarize", values)

    def stop(self, error: BaseException) -> None:
        """See `Tracker`."""
        self._call("stop", error)

    def finish(self) -> None:
        """See `Tracker`."""
        self._call("finish")
