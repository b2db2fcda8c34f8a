"""`predictions.parquet`: what the finished model said of every image that it was not trained on.

One row an image of validation and test: `part`, `file` (as in split.json), `label` and `predicted` (class names),
`loss` (float32, cross-entropy in nats) and `probabilities` (a list of float32, in the order of model/config.json's
class_names, which the file's metadata repeat). Where pictures may have several labels, `labels` and `predicted` are lists of class
names, and the metadata hold the `thresholds` that `predicted` follows from. Any tool for tables reads it: `pandas.read_parquet(...)`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_durably, writing
from accel_flowers.core.reading import open_file, parse_json
from accel_flowers.metrics.classification import Predictions
from accel_flowers.metrics.multilabel import MultilabelPredictions

PREDICTIONS_FILE = "predictions.parquet"
OUT_OF_FOLD = "out_of_fold"
"""The part of images that were all held out once, each by a model that did not learn from it."""
_CLASS_NAMES, _THRESHOLDS = b"class_names", b"thresholds"
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
class MultilabelPartPredictions(MultilabelPredictions, PartPredictions):
    """The same of a part whose images may have several labels."""


@dataclass(frozen=True)
class SavedPredictions:
    """What the file holds.

    Attributes:
        class_names: class of each label and of each column of the probabilities.
        parts: "val" and, where there is such a part, "test" → its images; where these may have several labels,
            `MultilabelPartPredictions`.
    """

    class_names: tuple[str, ...]
    parts: Mapping[str, PartPredictions]

    @property
    def several_labels(self) -> bool:
        """Whether images may have several labels, or none."""
        return any(isinstance(rows, MultilabelPredictions) for rows in self.parts.values())


@dataclass(frozen=True)
class _Form:
    """How labels stand in the file.

    Attributes:
        label: name of their column.
        kind: type of a name → type of the column.
        names: labels, class names → the column.
        numbers: the column, class name → label → labels.
        part: what a part is read as.
        said: what is called predicted, in words.
    """

    label: str
    kind: Callable[[Any], Any]
    names: Callable[[npt.NDArray[Any], Sequence[str]], list[Any]]
    numbers: Callable[[Sequence[Any], Mapping[str, int]], npt.NDArray[Any]]
    part: Callable[..., PartPredictions]
    said: str


def _names_of_sets(labels: npt.NDArray[Any], class_names: Sequence[str]) -> list[Any]:
    return [[class_names[label] for label in np.flatnonzero(row).tolist()] for row in labels]


def _sets_of_names(column: Sequence[Any], label_of: Mapping[str, int]) -> npt.NDArray[Any]:
    labels = np.zeros((len(column), len(label_of)), dtype=np.bool_)
    for row, names in enumerate(column):
        labels[row, [label_of[name] for name in names]] = True
    return labels


def _list_of(kind: Any) -> Any:
    import pyarrow as pa

    return pa.list_(kind)


_ONE = _Form(
    label="label",
    kind=lambda kind: kind,
    names=lambda labels, class_names: [class_names[label] for label in labels],
    numbers=lambda column, label_of: np.array([label_of[name] for name in column], dtype=np.int64),
    part=PartPredictions,
    said="what is most probable",
)
_SETS = _Form(
    label="labels",
    kind=_list_of,
    names=_names_of_sets,
    numbers=_sets_of_names,
    part=MultilabelPartPredictions,
    said="what reaches its threshold",
)


def _form_of(parts: Iterable[Predictions]) -> _Form:
    return _SETS if any(isinstance(each, MultilabelPredictions) for each in parts) else _ONE


def _thresholds(metadata: Mapping[bytes, Any], num_classes: int) -> tuple[float, ...]:
    """
    Raises:
        ValueError: they are none, or not one for each class.
    """
    values = parse_json(metadata[_THRESHOLDS])
    if not isinstance(values, list) or len(values) != num_classes or not all(type(each) is float for each in values):
        raise ValueError("its thresholds are not a number for each class")
    return tuple(values)


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

    form = _form_of(parts.values())
    columns: dict[str, list[Any]] = {"part": [], "file": [], form.label: [], "predicted": [], "loss": []}
    for part, predictions in parts.items():
        assert len(files[part]) == len(predictions.labels)
        columns["part"] += [part] * len(predictions.labels)
        columns["file"] += files[part]
        columns[form.label] += form.names(predictions.labels, class_names)
        columns["predicted"] += form.names(predictions.predicted, class_names)
        columns["loss"] += predictions.losses.tolist()
    probabilities = [row for predictions in parts.values() for row in predictions.probabilities.tolist()]
    text, number = pa.string(), pa.float32()
    kinds = {"loss": number, form.label: form.kind(text), "predicted": form.kind(text)}
    metadata = {_CLASS_NAMES: json.dumps(list(class_names))}
    if form is _SETS:
        metadata[_THRESHOLDS] = json.dumps(next(iter(parts.values())).cuts.tolist())  # type: ignore[attr-defined]
    table = pa.table(
        {**columns, "probabilities": probabilities},
        schema=pa.schema(
            [(name, kinds.get(name, text)) for name in columns] + [("probabilities", pa.list_(number))],
            metadata=metadata,
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
    form = _SETS if _THRESHOLDS in (table.schema.metadata or {}) else _ONE
    wanted = {"part", "file", form.label, "predicted", "loss", "probabilities"}
    try:
        # Names, too, are text only when they are asked for, and may be bytes that are none.
        if lacking := sorted(wanted - set(table.column_names)):
            raise UserError(f"{path} is no table of predictions: it lacks {', '.join(lacking)}.")
        class_names = tuple(str(name) for name in parse_json((table.schema.metadata or {})[_CLASS_NAMES]))
        label_of = {name: label for label, name in enumerate(class_names)}
        columns = {name: table[name].to_pylist() for name in wanted}
        labels = form.numbers(columns[form.label], label_of)
        if not len(labels):
            raise ValueError("it has no rows")
        if odd := [name for name in ("part", "file") if not all(isinstance(word, str) for word in columns[name])]:
            raise ValueError(f"{' and '.join(odd)} must be text")
        losses = np.array(columns["loss"], dtype=np.float32)
        probabilities = np.array(columns["probabilities"], dtype=np.float32).reshape(len(labels), len(class_names))
        if not (np.isfinite(losses).all() and np.isfinite(probabilities).all()):
            raise ValueError("it holds numbers that are none")
        if form is _SETS and (probabilities.min() < 0 or probabilities.max() > 1):
            raise ValueError("it holds probabilities that are not from 0 to 1")
        more = {"thresholds": _thresholds(table.schema.metadata, len(class_names))} if form is _SETS else {}
        rows_of = partial(form.part, **more)
        whole = rows_of(labels=labels, probabilities=probabilities, losses=losses, files=tuple(columns["file"]))
        if not np.array_equal(form.numbers(columns["predicted"], label_of), whole.predicted):
            raise ValueError(f"what it calls predicted is not {form.said}")
    except (KeyError, ValueError, TypeError) as error:
        cause = f"{error} is unknown" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged: {cause}.") from None
    part_of = np.array(columns["part"])
    parts = {}
    for part in dict.fromkeys(columns["part"]):
        rows = np.flatnonzero(part_of == part)
        parts[part] = rows_of(
            labels=labels[rows],
            probabilities=probabilities[rows],
            losses=losses[rows],
            files=tuple(columns["file"][row] for row in rows),
        )
    return SavedPredictions(class_names, parts)
