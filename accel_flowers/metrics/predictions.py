"""`predictions.parquet`: what the finished model said of every image that it was not trained on.

One row an image of validation and test: `part`, `file` (as in split.json), `label` and `predicted` (class names),
`loss` (float32, cross-entropy in nats) and `probabilities` (a list of float32, in the order of model/config.json's
class_names, which the file's metadata repeat). Any tool for tables reads it: `pandas.read_parquet(...)`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_durably, writing
from accel_flowers.core.reading import open_file, parse_json
from accel_flowers.metrics.classification import Predictions

PREDICTIONS_FILE = "predictions.parquet"
OUT_OF_FOLD = "out_of_fold"
"""The part of images that were all held out once, each by a model that did not learn from it."""
_CLASS_NAMES = b"class_names"
_MAX_BYTES = 2**36
"""Size of the file; of a million images and a thousand classes it is a sixteenth of that."""


@dataclass(frozen=True)
class PartPredictions(Predictions):
    """What a model said of each image of a part, with the images' names.

    Attributes:
        files: name of each image, relative to the folder, as in split.json; N of them.
    """

    files: tuple[str, ...]


@dataclass(frozen=True)
class SavedPredictions:
    """What the file holds.

    Attributes:
        class_names: class of each label and of each column of the probabilities.
        parts: "val" and, where there is such a part, "test" → its images.
    """

    class_names: tuple[str, ...]
    parts: Mapping[str, PartPredictions]


def save_predictions(
    path: Path, parts: Mapping[str, Predictions], files: Mapping[str, Sequence[str]], class_names: Sequence[str]
) -> None:
    """Write the file so that after a crash there is the old one or the new one; equal input gives equal bytes.

    Args:
        path: the file.
        parts: part → what the model said.
        files: part → name of each of its images, in the same order.
        class_names: class of each label.

    Raises:
        UserError: the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"part": [], "file": [], "label": [], "predicted": [], "loss": []}
    for part, predictions in parts.items():
        assert len(files[part]) == len(predictions.labels)
        columns["part"] += [part] * len(predictions.labels)
        columns["file"] += files[part]
        columns["label"] += [class_names[label] for label in predictions.labels]
        columns["predicted"] += [class_names[label] for label in predictions.predicted]
        columns["loss"] += predictions.losses.tolist()
    probabilities = [row for predictions in parts.values() for row in predictions.probabilities.tolist()]
    text, number = pa.string(), pa.float32()
    table = pa.table(
        {**columns, "probabilities": probabilities},
        schema=pa.schema(
            [(name, number if name == "loss" else text) for name in columns] + [("probabilities", pa.list_(number))],
            metadata={_CLASS_NAMES: json.dumps(list(class_names))},
        ),
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    with writing(f"'{path}'", "Make room and go on with --resume auto."):
        write_durably(path, stream.getvalue())


def load_predictions(path: Path) -> SavedPredictions:
    """Read the file.

    Raises:
        UserError: it is missing, damaged, or not of this form; the message says which.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(path, max_bytes=_MAX_BYTES) as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        raise UserError(f"There is no {path}: a run writes it when it has ended.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged or no table of predictions: {error}.") from None
    wanted = {"part", "file", "label", "predicted", "loss", "probabilities"}
    try:
        # Names, too, are text only when they are asked for, and may be bytes that are none.
        if lacking := sorted(wanted - set(table.column_names)):
            raise UserError(f"{path} is no table of predictions: it lacks {', '.join(lacking)}.")
        class_names = tuple(str(name) for name in parse_json((table.schema.metadata or {})[_CLASS_NAMES]))
        label_of = {name: label for label, name in enumerate(class_names)}
        columns = {name: table[name].to_pylist() for name in wanted}
        labels = np.array([label_of[name] for name in columns["label"]], dtype=np.int64)
        if not len(labels):
            raise ValueError("it has no rows")
        if odd := [name for name in ("part", "file") if not all(isinstance(word, str) for word in columns[name])]:
            raise ValueError(f"{' and '.join(odd)} must be text")
        losses = np.array(columns["loss"], dtype=np.float32)
        probabilities = np.array(columns["probabilities"], dtype=np.float32).reshape(len(labels), len(class_names))
        if not (np.isfinite(losses).all() and np.isfinite(probabilities).all()):
            raise ValueError("it holds numbers that are none")
        predicted = [label_of[name] for name in columns["predicted"]]
        if predicted != probabilities.argmax(axis=1).tolist():
            raise ValueError("what it calls predicted is not what is most probable")
    except (KeyError, ValueError, TypeError) as error:
        cause = f"{error} is unknown" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged: {cause}.") from None
    part_of = np.array(columns["part"])
    parts = {}
    for part in dict.fromkeys(columns["part"]):
        rows = np.flatnonzero(part_of == part)
        parts[part] = PartPredictions(
            labels=labels[rows],
            probabilities=probabilities[rows],
            losses=losses[rows],
            files=tuple(columns["file"][row] for row in rows),
        )
    return SavedPredictions(class_names, parts)
