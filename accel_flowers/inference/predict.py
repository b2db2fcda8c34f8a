"""What `accel-flowers predict` asks a saved model: files, folders and patterns in, an answer for each file out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel_flowers.data.sources.walk import find_files
from accel_flowers.inference.image_classifier import load_model
from accel_flowers.inference.prediction import Prediction, check_numbers
from accel_flowers.models.saved import load_spec
from accel_flowers.models.spec import ModelSpec

_log = logging.getLogger(__name__)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, what is named like an image below folders, and what patterns match: see `find_files`.

    The log tells what was left out of folders, by reason.

    Raises:
        UserError: a pattern that matches no image, nothing to predict, or a folder that cannot be walked.
    """
    found = find_files(paths)
    if found.left_out:
        _log.info(found.left_out_in_words())
    return found.files


def check_words(model_dir: Path, *, top_k: int | None, batch_size: int | None, num_workers: int | None) -> ModelSpec:
    """The spec of the model that is to be asked, where it can be asked so.

    Raises:
        UserError: no model folder, or a number that is out of range.
    """
    spec = load_spec(model_dir)
    names = {"top_k": "--top-k", "batch_size": "--batch-size", "num_workers": "--num-workers"}
    check_numbers(spec.class_names, top_k=top_k, batch_size=batch_size, num_workers=num_workers, names=names)
    return spec


def predict_files(
    model_dir: Path,
    files: Sequence[Path],
    *,
    top_k: int | None,
    tta: bool = False,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """An answer for each file, in the files' order, as they come; see `ImageClassifier.predict_each`.

    Raises:
        UserError: a damaged model folder, or a number that is out of range.
    """
    check_words(model_dir, top_k=top_k, batch_size=batch_size, num_workers=num_workers)
    model = load_model(model_dir)
    yield from model.predict_each(files, top_k=top_k, tta=tta, batch_size=batch_size, num_workers=num_workers)
