"""Where the numbers of a run go: `metrics.jsonl` always, others on request; all of them trackers of Accelerate."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.tracking.accelerates import AcceleratesTracker
from accel_flowers.tracking.jsonl import JsonlTracker
from accel_flowers.tracking.run_dir import METRICS_FILE
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.tensorboard import TensorBoardTracker
from accel_flowers.tracking.tracker import Guarded, Tracker
from accel_flowers.tracking.wandb import WandbTracker
from accel_flowers.tracking.wandb_environment import DEFAULT_PROJECT


def build_trackers(config: TrackingConfig, run_dir: Path) -> list[Tracker]:
    """The trackers that a configuration asks for; `start_trackers` opens them.

    Raises:
        UserError: one is not installed, or does not take its options.
    """
    # In front of metrics.jsonl: a line of it says that W&B has it, too.
    trackers: list[Tracker] = [] if config.wandb == "off" else [Guarded(WandbTracker(run_dir, config))]
    trackers.append(JsonlTracker(run_dir / METRICS_FILE))  # alone unguarded: a run without it is not worth its time
    if config.tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tracking.tensorboard needs the package tensorboard: pip install 'accel-flowers[tensorboard]'."
            )
        trackers.append(Guarded(TensorBoardTracker(run_dir / "tensorboard")))
    for spec in config.also:
        name, options = (spec, None) if isinstance(spec, str) else next(iter(spec.items()))
        trackers.append(Guarded(_named(name, options or {}, run_dir, config)))
    return trackers


def _named(name: str, options: dict[str, Any], run_dir: Path, config: TrackingConfig) -> Tracker:
    """A registered tracker, or one of Accelerate's."""
    part = registry.find("tracker", name)
    if part is None:
        project = config.wandb_project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
        return AcceleratesTracker(name, run_dir, project=project, options=options)
    try:
        made = part.make(run_dir, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"tracking.also: {name} does not take {options}: {error}") from error
    if not isinstance(made, Tracker):
        raise UserError(
            f"The tracker '{name}' made a {type(made).__name__}: a tracker is a subclass of "
            "accel_flowers.tracking.tracker.Tracker."
        )
    return made


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """See that none would be refused; on the main process.

    Raises:
        UserError: one would be.
    """
    for tracker in trackers:
        tracker.check()


def start_trackers(
    accelerator: Accelerator, values: dict[str, Any], facts: dict[str, Any], *, run_id: str, next_step: int
) -> None:
    """Open the trackers on the main process; the others take part without opening anything.

    Args:
        accelerator: made with the trackers of `build_trackers`.
        values: the resolved configuration.
        facts: see `Tracker.describe`.
        run_id: identity of the run, the same after a resume.
        next_step: the first step that will be logged.

    Raises:
        UserError: a tracker refuses, for example because nobody is logged in.
    """

    def open_them() -> None:
        for tracker in accelerator.log_with:
            tracker.open(run_id, next_step)

    broadcast_from_main(accelerator, open_them)
    accelerator.init_trackers("", config=values)
    for tracker in _on_main(accelerator):
        tracker.describe(facts)


def _on_main(accelerator: Accelerator) -> list[Tracker]:
    """The trackers on the main process, none on the others."""
    return list(accelerator.trackers) if accelerator.is_main_process else []


def shows_more(accelerator: Accelerator) -> bool:
    """Whether there is a tracker beside metrics.jsonl; the same on every process."""
    return len(accelerator.log_with) > 1


def show(accelerator: Accelerator, scored: Scored, *, step: int, epoch: float) -> None:
    """Confusion matrix, scores of each class and the worst images, where a tracker can show them."""
    for tracker in _on_main(accelerator):
        tracker.show(scored, step=step, epoch=epoch)


def forget_shown(accelerator: Accelerator, step: int) -> None:
    """A rollback: what comes after `step` will come again with other values, and is shown again."""
    for tracker in _on_main(accelerator):
        tracker.forget_after(step)


def warn(accelerator: Accelerator, error: Exception) -> None:
    """Tell that the run goes back to its last checkpoint."""
    for tracker in _on_main(accelerator):
        tracker.warn(error)


def tell_end(accelerator: Accelerator, error: BaseException | None) -> None:
    """Tell why the run does not come to its end; nothing where it does."""
    if error is not None:
        for tracker in _on_main(accelerator):
            tracker.stop(error)


def show_model(accelerator: Accelerator, model_dir: Path, *, last_weights: Path | None) -> None:
    """Keep the model where a tracker keeps such things; see `Tracker.keep_model`."""
    for tracker in _on_main(accelerator):
        tracker.keep_model(model_dir, last_weights)


def write_summary(accelerator: Accelerator, values: dict[str, Any]) -> None:
    """Put final values where a tracker shows one number for the whole run."""
    for tracker in _on_main(accelerator):
        tracker.summarize(values)


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": 1}` → `{"val/loss": 1}`: trackers group by what stands before the slash."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
