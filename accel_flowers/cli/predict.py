"""`predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_left_out


@dataclass(frozen=True)
class _PredictWords:
    """Say what is on images; a file that cannot be read gets its own row, and the exit code is 1.

    Probabilities are calibrated where the model has a temperature; the output says whether they are. They do not depend on
    the size of the batches or the number of threads, but for the last digits.
    """

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Images, folders of them, or patterns in quotes: 'new/**/*.jpg' looks into folders of any depth."""
    top_k: int | None = None
    """Classes to tell for each image; None = the most probable one, or, where a picture may have several labels, all that reach their thresholds."""
    format: Literal["table", "csv", "json", "parquet"] | None = None
    """table for people, the others for programs; None = by the suffix of --out, else table."""
    out: Path | None = None
    """File for the rows: .csv, .json, .parquet, or .txt for a table; None = standard output."""
    html: Path | None = None
    """Also write a page with the images and what they were taken for; it stands alone."""
    tta: bool = False
    """Average the scores of each image and its mirror image, also where the model was not scored so (`model.tta`); takes twice the time."""
    batch_size: int | None = None
    """Images in one forward pass; None = what the model was scored with."""
    num_workers: int | None = None
    """Threads that decode images; None = the cores of this machine."""


_PREDICT_ANSWERS = {
    "--data": "pictures come without a flag: accel-flowers predict RUN_DIR/model PATH...",
    "--model": "the model comes first: accel-flowers predict RUN_DIR/model PATH...",
    "--json": "--format json",
}


def predict_command(words: Sequence[str]) -> int:
    asked = parse_words(_PredictWords, words, "predict", answers=_PREDICT_ANSWERS)
    if not asked.paths:
        raise UserError("Which pictures? Type accel-flowers predict MODEL_DIR PATH...")
    if is_left_out():
        return 0  # prediction is for one process: started on several, the first does it
    from accel_flowers.inference.command import predict_to_outputs

    num_bad = predict_to_outputs(
        asked.model_dir,
        asked.paths,
        top_k=asked.top_k,
        tta=asked.tta,
        batch_size=asked.batch_size,
        num_workers=asked.num_workers,
        how=asked.format,
        out=asked.out,
        html=asked.html,
    )
    return 1 if num_bad else 0
