"""Rows of predictions → a table, CSV, JSON or Parquet, written as they come; and what is to be said of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from accel_flowers.core.console import Writable, results
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.files import check_writable, replace_file, writing
from accel_flowers.metrics.predictions import OUT_OF_FOLD

if TYPE_CHECKING:
    from accel_flowers.config.schema import Tta
    from accel_flowers.inference.image_classifier import Prediction
    from accel_flowers.models.spec import ModelSpec

Format = Literal["table", "csv", "json", "parquet"]
SUFFIXES: dict[str, Format] = {".txt": "table", ".csv": "csv", ".json": "json", ".parquet": "parquet"}
COLUMNS = ("file", "rank", "class", "probability", "calibrated", "error")
"""Of CSV and Parquet: a line for each class that is told of a file, and one for a file with an error."""
COLUMNS_OF_SETS = ("file", "rank", "class", "probability", "above_threshold", "calibrated", "error")
"""The same where a picture may have several labels; one that is said to have none has a line without a class."""
_ROW_GROUP = 4096
"""Lines of a Parquet file that are kept until they are written together."""


def choose_format(asked: Format | None, out: Path | None) -> Format:
    """The format that was asked for, else that of the file's suffix, else a table.

    Raises:
        UserError: an unknown suffix, a suffix and a format that contradict each other, or Parquet without a file.
    """
    if out is None:
        if asked == "parquet":
            raise UserError("Parquet is for a file, not for a terminal: add --out FILE.parquet.")
        return asked or "table"
    by_suffix = SUFFIXES.get(out.suffix.lower())
    if asked is not None and by_suffix not in (None, asked):
        raise UserError(
            f"--format {asked} and --out '{out}' contradict each other: leave --format out, or rename the file."
        )
    chosen = asked or by_suffix
    if chosen is None:
        told = f"the suffix '{out.suffix}'" if out.suffix else "no suffix"
        raise UserError(
            f"--out '{out}' has {told}, which tells no format: take one of {', '.join(SUFFIXES)}, or add --format."
        )
    return chosen


class RowOutput:
    """Where rows go: standard output, or a file that has its name only once it is whole.

    Args:
        out: the file; None = standard output.
        how: its format.
        calibrated: what the rows shall say of their probabilities.
        several: whether a picture may have several labels, or none.
        width: characters of the longest name, for the table.

    Raises:
        UserError: the file cannot be written; at once where that can be told, else when it turns out.
    """

    def __init__(self, out: Path | None, how: Format, *, calibrated: bool, width: int, several: bool = False) -> None:
        self._out, self._how, self._width = out, how, width
        self._form = _SetLines(calibrated) if several else _Lines(calibrated)
        self._closing = ExitStack()
        if out is not None:
            check_writable(out, "--out")

    def __enter__(self) -> RowOutput:
        if self._out is None:
            self._writer = _text_writer(results, self._how, self._form, self._width)
            return self
        with self._writing():
            partial = self._closing.enter_context(replace_file(self._out))
            if self._how == "parquet":
                self._writer = _ParquetWriter(partial, self._form)
            else:
                # Names that are no text in any encoding are written with their bytes spelled out, as on the terminal.
                stream = partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
                self._closing.enter_context(stream)
                self._writer = _text_writer(stream, self._how, self._form, self._width)
            self._closing.callback(self._writer.close)
        return self

    def write(self, row: Prediction) -> None:
        """Write a row now, or soon."""
        with self._writing():
            self._writer.write(row)

    def __exit__(self, *error: Any) -> None:
        if self._out is not None:
            with self._writing():
                self._closing.__exit__(*error)
        elif error[0] is None:
            self._writer.close()

    def _writing(self) -> AbstractContextManager[None]:
        if self._out is None:
            return nullcontext()
        return writing(f"'{self._out}'", "Make room, or give another file with --out FILE.")


class _Writer(Protocol):
    def write(self, row: Prediction) -> None: ...

    def close(self) -> None: ...


def _text_writer(stream: Writable, how: Format, form: _Lines, width: int) -> _Writer:
    if how == "json":
        return _JsonWriter(stream, form)
    return _CsvWriter(stream, form) if how == "csv" else _TableWriter(stream, form, width)


class _Lines:
    """A row of one label as each format has it.

    Args:
        calibrated: what is said of the probabilities.
    """

    columns: Sequence[str] = COLUMNS

    def __init__(self, calibrated: bool) -> None:
        self.calibrated = calibrated

    def in_words(self, row: Prediction) -> str:
        """For people."""
        return "  ".join(f"{printable(name)} {probability:6.1%}" for name, probability in row.top)

    def as_json(self, row: Prediction) -> dict[str, Any]:
        """For programs."""
        top = [{"class": name, "probability": round(probability, 6)} for name, probability in row.top]
        return {"top": top, "calibrated": self.calibrated}

    def lines(self, row: Prediction) -> Iterator[tuple[Any, ...]]:
        """Cells under `columns`."""
        for rank, (name, probability) in enumerate(row.top, start=1):
            yield row.file, rank, name, probability, self.calibrated, None
        if row.error:
            yield row.file, *[None] * (len(self.columns) - 2), row.error


class _SetLines(_Lines):
    """A row of several labels: which classes reach their thresholds is told beside the probabilities."""

    columns = COLUMNS_OF_SETS

    def in_words(self, row: Prediction) -> str:
        """Classes below their thresholds stand in brackets."""
        told = [
            f"{printable(name)} {probability:6.1%}"
            if name in (row.labels or ())
            else f"({printable(name)} {probability:.1%})"
            for name, probability in row.top
        ]
        return "  ".join(told if row.labels else ["no label", *told])

    def as_json(self, row: Prediction) -> dict[str, Any]:
        """With the labels as a list."""
        return {"labels": list(row.labels or ()), **super().as_json(row)}

    def lines(self, row: Prediction) -> Iterator[tuple[Any, ...]]:
        """A picture of which no class is told has a line, too."""
        for rank, (name, probability) in enumerate(row.top, start=1):
            yield row.file, rank, name, probability, name in (row.labels or ()), self.calibrated, None
        if not row.top:
            yield row.file, *[None] * (len(self.columns) - 2), row.error


class _TableWriter:
    def __init__(self, stream: Writable, form: _Lines, width: int) -> None:
        self._stream, self._form, self._width = stream, form, width

    def write(self, row: Prediction) -> None:
        told = f"error: {printable(row.error)}" if row.error else self._form.in_words(row)
        self._stream.write(f"{printable(row.file):<{self._width}}  {told}\n")

    def close(self) -> None:
        pass


class _JsonWriter:
    """A list of objects, one a line."""

    def __init__(self, stream: Writable, form: _Lines) -> None:
        self._stream, self._form, self._begun = stream, form, False

    def write(self, row: Prediction) -> None:
        told = {"file": row.file, **({"error": row.error} if row.error else self._form.as_json(row))}
        self._stream.write((",\n " if self._begun else "[\n ") + json.dumps(told, ensure_ascii=False))
        self._begun = True

    def close(self) -> None:
        self._stream.write("\n]\n" if self._begun else "[]\n")


class _CsvWriter:
    def __init__(self, stream: Writable, form: _Lines) -> None:
        self._writer, self._form = csv.writer(stream, lineterminator="\n"), form
        self._writer.writerow(form.columns)

    def write(self, row: Prediction) -> None:
        for cells in self._form.lines(row):
            self._writer.writerow(map(_as_csv, cells))

    def close(self) -> None:
        pass


def _as_csv(cell: Any) -> Any:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:.6f}" if isinstance(cell, float) else cell


class _ParquetWriter:
    def __init__(self, path: Path, form: _Lines) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        others = {
            "rank": pa.int32(),
            "probability": pa.float64(),
            "above_threshold": pa.bool_(),
            "calibrated": pa.bool_(),
        }
        self._schema = pa.schema([(name, others.get(name, pa.string())) for name in form.columns])
        self._batch_of = pa.RecordBatch.from_arrays
        self._array_of = pa.array
        self._file = parquet.ParquetWriter(path, self._schema)
        self._form = form
        self._waiting: list[tuple[Any, ...]] = []

    def write(self, row: Prediction) -> None:
        self._waiting += (tuple(map(_as_text, line)) for line in self._form.lines(row))
        if len(self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._waiting, strict=True)
        arrays = [self._array_of(list(cells), field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._file.write_batch(self._batch_of(arrays, schema=self._schema))
        self._waiting = []

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._file.close()


def _as_text(cell: Any) -> Any:
    """Parquet holds UTF-8; what is no text in it is spelled out."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell


_VIEWS: dict[Tta, str] = {
    "none": "each picture",
    "mirror": "each picture and its mirror image",
    "mirror_zoom": "each picture, its mirror image and the enlarged middle of both",
}


def describe_probabilities(spec: ModelSpec, *, tta: bool) -> str:
    """A sentence on what the probabilities are."""
    told = "not calibrated (the model has no temperature)"
    if spec.several_labels:
        cuts = "the thresholds that were chosen on validation" if spec.thresholds else "0.5"
        told = f"those of each class by itself, not calibrated; a class is said from {cuts} on"
    if spec.temperature is not None:
        fitted_on = "pictures out of fold" if OUT_OF_FOLD in spec.scores else "validation"
        told = f"calibrated with the temperature {spec.temperature:.3g} that was fitted on {fitted_on}"
    views = spec.views(tta=tta)
    return f"probabilities are {told}" + (f"; mean over {_VIEWS[views]}" if views != "none" else "")
