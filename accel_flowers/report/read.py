"""A run directory → what a report is made from, checked; a run that has not ended gives what there is so far."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_flowers.config.loading import ENVIRONMENT_KEY, config_from_yaml
from accel_flowers.config.schema import MULTILABEL, Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import check_permitted, read_text
from accel_flowers.core.yaml_text import MAX_BYTES, parse_yaml
from accel_flowers.data.split import Split, load_split
from accel_flowers.metrics.predictions import PREDICTIONS_FILE, SavedPredictions, load_predictions
from accel_flowers.models.saved import SPEC_FILE, load_spec
from accel_flowers.models.spec import ModelSpec
from accel_flowers.tracking.last_error import read_error
from accel_flowers.tracking.run_dir import CONFIG_FILE, METRICS_FILE, MODEL_DIR, SPLIT_FILE, holds_run, read_metrics


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says.

    Attributes:
        run_dir: the directory.
        config: the recipe, resolved.
        config_text: config.yaml as it stands.
        environment: versions and hardware.
        split: every image with its part.
        lines: of metrics.jsonl, in order.
        spec: what model/ says of itself; None before the first epoch's end.
        predictions: of every held-out image; None before the run's end.
    """

    run_dir: Path
    config: Config
    config_text: str
    environment: dict[str, Any]
    split: Split
    lines: tuple[dict[str, Any], ...]
    spec: ModelSpec | None
    predictions: SavedPredictions | None

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.run_dir.absolute().name

    @property
    def last_error(self) -> str:
        """Why it ended, where a process of it was lost; else empty."""
        return read_error(self.run_dir)

    @property
    def overfits(self) -> bool:
        """Whether it was scored on the images that trained it (debug.overfit_batches)."""
        return self.config.debug.overfit_batches is not None

    @property
    def several_labels(self) -> bool:
        """Whether its images may have several labels, or none; of a run that has no model yet as far as its recipe says it."""
        if self.spec is not None:
            return self.spec.several_labels
        return self.config.loss.task == MULTILABEL

    @property
    def how_to_end(self) -> str:
        """What to type so that a run that has not ended does."""
        place = shlex.quote(str(self.run_dir))
        config = shlex.quote(str(self.run_dir / CONFIG_FILE))
        return f"accel-flowers train {config} --run-dir {place} --resume auto"

    def course(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one quantity of metrics.jsonl, such as "train/loss"."""
        points = [(line["epoch"], line[name]) for line in self.lines if name in line and "epoch" in line]
        return [float(epoch) for epoch, _ in points], [float(value) for _, value in points]

    def rates(self) -> list[str]:
        """Names of the learning rates in metrics.jsonl, one for each parameter group: "lr/all"."""
        return sorted({name for line in self.lines for name in line if name.startswith("lr/")})


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        UserError: it is none, or one of its files is damaged; the message names the file.
    """
    check_permitted(run_dir / CONFIG_FILE)
    if not holds_run(run_dir):
        if os.path.isfile(run_dir / "probe.json"):
            raise UserError(f"'{run_dir}' is a probe and no run: its page is there already, {run_dir / 'report.html'}.")
        inside = run_dir.parent if holds_run(run_dir.parent) else None
        hint = f" Did you mean {inside}?" if inside else ""
        there = f"'{run_dir}' is no run directory: it has no {CONFIG_FILE}" if os.path.exists(run_dir) else None
        raise UserError(f"{there or f'There is no directory {str(run_dir)!r}'}.{hint} A run makes one: --run-dir DIR.")
    path = run_dir / CONFIG_FILE
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    config = config_from_yaml(text, source=str(path))  # first: it sees that there are sections at all
    environment = parse_yaml(text, str(path)).get(ENVIRONMENT_KEY) or {}
    split = load_split(run_dir / SPLIT_FILE)
    check_permitted(run_dir / MODEL_DIR / SPEC_FILE)  # without its temperature the page would judge other probabilities
    predictions = load_predictions(run_dir / PREDICTIONS_FILE) if os.path.exists(run_dir / PREDICTIONS_FILE) else None
    if predictions:
        _check_fit(run_dir, predictions, split, overfits=config.debug.overfit_batches is not None)
    return RunRecord(
        run_dir=run_dir,
        config=config,
        config_text=text,
        environment=dict(environment) if isinstance(environment, dict) else {},
        split=split,
        lines=tuple(read_metrics(run_dir / METRICS_FILE)),
        spec=load_spec(run_dir / MODEL_DIR) if os.path.exists(run_dir / MODEL_DIR / SPEC_FILE) else None,
        predictions=predictions,
    )


def _check_fit(run_dir: Path, predictions: SavedPredictions, split: Split, *, overfits: bool) -> None:
    for part, rows in predictions.parts.items():
        if list(rows.files) != split.files_of("train" if overfits else part):
            raise UserError(
                f"{run_dir / PREDICTIONS_FILE} and {run_dir / SPLIT_FILE} differ in the pictures of {part}."
            )
