"""Where the numbers of a run go: `metrics.jsonl` always; W&B and TensorBoard through Accelerate, on request."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from accel_flowers.config import TrackingConfig
from accel_flowers.errors import UserError
from accel_flowers.files import write_text_durably, writing


class JsonlTracker(GeneralTracker):
    """One JSON object a line, each with the optimizer step that it belongs to; written by the main process.

    Args:
        path: the file; lines are added at its end.
    """

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """What Accelerate hands out for this tracker."""
        return self.path

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: the configuration is the run directory's config.yaml."""

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a line."""
        with (
            writing(f"'{self.path}'", "Make room and go on with --resume auto."),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that was cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def forget_after(path: Path, step: int, *, scored: bool) -> None:
    """Drop the lines that a run resumed at `step` will write again.

    Args:
        path: a `metrics.jsonl`.
        step: later lines go, and so do the test scores of the end.
        scored: whether the validation scores of `step` itself are there to stay.
    """

    def stays(line: dict[str, Any]) -> bool:
        groups = {name.partition("/")[0] for name in line}
        again = {"test"} if scored or line["step"] < step else {"test", "val", "val_ema"}
        return bool(line["step"] <= step and not groups & again)

    kept = [line for line in read_metrics(path) if stays(line)]
    write_text_durably(path, "".join(json.dumps(line) + "\n" for line in kept))


def tracker_names(config: TrackingConfig) -> list[str]:
    """The trackers of Accelerate that a configuration asks for.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard needs the package tensorboard: pip install 'accel-flowers[tensorboard]'.")
    return [name for name, on in (("wandb", config.wandb != "off"), ("tensorboard", config.tensorboard)) if on]


def start_trackers(
    accelerator: Accelerator, config: TrackingConfig, values: dict[str, Any], *, run_dir: Path, run_id: str
) -> None:
    """Open the trackers on the main process; the others take part without opening anything.

    Args:
        accelerator: made with `tracker_names` and a `JsonlTracker`.
        config: which, and how W&B's run is called.
        values: the resolved configuration.
        run_dir: where local files go.
        run_id: identity of the W&B run, the same after a resume.

    Raises:
        UserError: W&B refuses, for example because nobody is logged in.
    """
    init = {"id": run_id, "resume": "allow", "mode": config.wandb, "name": config.wandb_name or run_dir.name}
    settings = wandb.Settings(quiet=True, console="off")
    try:
        accelerator.init_trackers(
            config.wandb_project,
            init_kwargs={"wandb": {**init, "dir": str(run_dir), "settings": settings}},
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B does not start: {error} Log in with `wandb login`, or use --tracking.wandb offline and `wandb sync` later."
        ) from None
    for tracker in accelerator.trackers:
        tracker.store_init_configuration(_flat(values) if tracker.name == "tensorboard" else values)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """TensorBoard takes numbers and words, not sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def write_summary(accelerator: Accelerator, values: dict[str, Any]) -> None:
    """Put final values where W&B shows one number for the whole run."""
    if accelerator.is_main_process and any(tracker.name == "wandb" for tracker in accelerator.trackers):
        accelerator.get_tracker("wandb", unwrap=True).summary.update(values)


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": 1}` → `{"val/loss": 1}`: trackers group by what stands before the slash."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
