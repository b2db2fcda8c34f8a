"""Where the numbers of a run go: `metrics.jsonl` always, dashboards on request; all of them trackers of Accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.tracking.jsonl import JsonlTracker
from accel_flowers.tracking.run_dir import METRICS_FILE
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.tensorboard import TensorBoardTracker
from accel_flowers.tracking.wandb import WandbTracker


def build_trackers(config: TrackingConfig, run_dir: Path) -> list[GeneralTracker]:
    """The trackers that a configuration asks for; `start_trackers` opens them.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """
    trackers: list[GeneralTracker] = [JsonlTracker(run_dir / METRICS_FILE)]
    if config.wandb != "off":
        # In front: a line of metrics.jsonl says that W&B has it, too.
        trackers.insert(0, WandbTracker(run_dir, config))
    if config.tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tracking.tensorboard needs the package tensorboard: pip install 'accel-flowers[tensorboard]'."
            )
        trackers.append(TensorBoardTracker(run_dir / "tensorboard"))
    return trackers


def start_trackers(accelerator: Accelerator, values: dict[str, Any], *, run_id: str, next_step: int) -> None:
    """Open the trackers on the main process; the others take part without opening anything.

    Args:
        accelerator: made with the trackers of `build_trackers`.
        values: the resolved configuration.
        run_id: identity of the W&B run, the same after a resume.
        next_step: the first step that will be logged.

    Raises:
        UserError: W&B refuses, for example because nobody is logged in.
    """

    def open_them() -> None:
        for tracker in accelerator.log_with:
            if isinstance(tracker, WandbTracker):
                tracker.open(run_id)
            if isinstance(tracker, TensorBoardTracker):
                tracker.open(next_step)

    broadcast_from_main(accelerator, open_them)
    accelerator.init_trackers("", config=values)


def show(accelerator: Accelerator, scored: Scored, *, step: int, epoch: float) -> None:
    """Confusion matrix, scores of each class and the worst images, where a dashboard can show them."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if isinstance(tracker, (WandbTracker, TensorBoardTracker)):
                tracker.show(scored, step=step, epoch=epoch)


def forget_shown(accelerator: Accelerator, step: int) -> None:
    """A rollback: what comes after `step` will come again with other values, and is shown again."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if isinstance(tracker, WandbTracker):
                tracker.forget_after(step)


def show_model(accelerator: Accelerator, model_dir: Path, *, last_weights: Path | None) -> None:
    """Keep the model where the dashboard keeps such things.

    Args:
        accelerator: its trackers.
        model_dir: the best weights with all that belongs to them.
        last_weights: those of the last epoch; None where these are the best.
    """
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if isinstance(tracker, WandbTracker):
                tracker.keep_model(model_dir, last_weights)


def write_summary(accelerator: Accelerator, values: dict[str, Any]) -> None:
    """Put final values where W&B shows one number for the whole run."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if isinstance(tracker, WandbTracker):
                tracker.summarize(values)


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": 1}` → `{"val/loss": 1}`: trackers group by what stands before the slash."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
