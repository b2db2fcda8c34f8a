"""`evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.distributed.environment import is_main_process


@dataclass(frozen=True)
class _EvaluateWords:
    """Score a model on a folder of images; every image counts once, on any number of processes."""

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    data: str
    """Folder with one sub-folder per class, a .zip of one, or hub:OWNER/NAME."""
    label_column: str | None = None
    """Column of the classes of a dataset or a CSV; None = the one there is."""
    label_separator: str | None = None
    """What stands there between several class names, as ';' in 'rose;tulip'."""
    label_columns: tuple[str, ...] = ()
    """Columns of 0 and 1 instead, one for each class; all = those that hold nothing else."""
    split: Path | None = None
    """A run's split.json: score only its files of --part."""
    part: Literal["train", "val", "test"] | None = None
    """Part to score; None = test, else val; all images where there are no parts."""
    json: bool = False
    """Print all scores as one JSON object."""
    num_workers: int | None = None
    """Loader worker processes; None = choose from the cores of this machine."""


_EVALUATE_ANSWERS = {
    "--batch-size": "the model is scored in the batches that its run was scored in",
    "--model": "the model comes first: accel-flowers evaluate RUN_DIR/model --data DIR",
    "--out": "scores are printed, as JSON with --json: accel-flowers evaluate ... --json > scores.json",
}


def evaluate_command(words: Sequence[str]) -> int:
    asked = parse_words(_EvaluateWords, words, "evaluate", answers=_EVALUATE_ANSWERS)
    from accel_flowers.inference.evaluate import describe_scores, evaluate

    scores = evaluate(
        asked.model_dir,
        asked.data,
        label_column=asked.label_column,
        label_separator=asked.label_separator,
        label_columns=asked.label_columns,
        split_file=asked.split,
        part=asked.part,
        num_workers=asked.num_workers,
        owns_process=True,
    )
    if is_main_process():
        write_result(
            json.dumps(scores.as_json(), indent=1, ensure_ascii=False) if asked.json else describe_scores(scores)
        )
    return 0
