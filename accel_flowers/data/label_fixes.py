"""A file of label fixes: pictures to leave out, and pictures to give another class, before the split is drawn.

`accel-flowers labels DIR --csv fixes.csv` writes one, and people edit it. Two of its columns are read: `file`, and `label`: empty
leaves the picture out, the name of a class is its class from here on, be it a new one or the one it has.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import read_text
from accel_flowers.data.label_sets import Labels, are_several
from accel_flowers.data.sources.folder import FolderImages
from accel_flowers.data.sources.layout import one_form
from accel_flowers.data.sources.source import ImageSource
from accel_flowers.data.table import ImageTable, one_label_each, quoted

MAX_BYTES = 2**28
"""Of the file; a million pictures with all columns have a tenth of it."""
_SHOWN = 10
"""Mistakes of each kind that an error lists."""
LEFT_OUT = "left out by the label fixes"
"""Why such a picture is in no part, as split.json says it."""


@dataclass(frozen=True)
class LabelFixes:
    """What a file of label fixes says.

    Attributes:
        path: the file, for messages.
        labels: picture → its class from here on; None = it is left out.
    """

    path: str
    labels: Mapping[str, str | None] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Of what it says, whatever the order of its rows and whatever else stands in it."""
        said = json.dumps(sorted(self.labels.items()), ensure_ascii=True)
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def differences(self, other: LabelFixes) -> dict[str, tuple[str, str]]:
        """Pictures of which two files say different things, with what each says, in words."""
        return {
            name: (_in_words(self.labels, name), _in_words(other.labels, name))
            for name in sorted({*self.labels, *other.labels})
            if self.labels.get(name, "") != other.labels.get(name, "")
        }


def _in_words(labels: Mapping[str, str | None], name: str) -> str:
    if name not in labels:
        return "not named"
    label = labels[name]
    return "left out" if label is None else label


def read_label_fixes(path: str | Path) -> LabelFixes:
    """Read a file of label fixes.

    Args:
        path: CSV in UTF-8, with a header; commas, semicolons or tabs between the columns.

    Raises:
        UserError: it cannot be read, lacks a column, or names a picture twice.
    """
    try:
        text = read_text(path, max_bytes=MAX_BYTES).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(
            f"There is no file of label fixes '{path}': accel-flowers labels DIR --csv FILE writes one. A run keeps the one it "
            "was trained with as RUN_DIR/label_fixes.csv."
        ) from None
    except OSError as error:
        advice = "" if "UTF-8" not in str(error.strerror) else " Save it as CSV in UTF-8."
        raise UserError(f"The file of label fixes '{path}' cannot be read: {error.strerror}.{advice}") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"The file of label fixes '{path}' is no CSV: line {reader.line_num}: {error}.") from None
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    lacking = [name for name in ("file", "label") if name not in header]
    if lacking:
        there = f"it has {quoted(header)}" if any(header) else "it is empty"
        raise UserError(
            f"The file of label fixes '{path}' lacks the column{'s' if len(lacking) > 1 else ''} {' and '.join(lacking)}; {there}. Its "
            "first line names the columns: file (as in split.json) and label (a class, or empty to leave the picture out)."
        )
    if twice := sorted(name for name in ("file", "label") if header.count(name) > 1):
        raise UserError(f"The file of label fixes '{path}' has two columns '{twice[0]}'. Remove one of them.")
    return LabelFixes(str(path), _labels_of(path, header, rows[1:]))


def _labels_of(path: str | Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> dict[str, str | None]:
    """Picture → class, or None."""
    labels: dict[str, str | None] = {}
    mistakes = []
    of_file, of_label = header.index("file"), header.index("label")
    for line, row in rows:
        if len(row) != len(header):
            # A row that is cut short must not leave a picture out.
            mistakes.append(f"line {line} has {number_of(len(row), 'column')}, its first line {len(header)}")
            continue
        name, label = row[of_file], row[of_label].strip()
        if not name:
            mistakes.append(f"line {line} names no file")
        elif name in labels:
            mistakes.append(f"line {line} names '{printable(name)}' a second time")
        else:
            labels[name] = label or None
    if mistakes:
        more = [f"and {len(mistakes) - _SHOWN:,} more"] if len(mistakes) > _SHOWN else []
        lines = "\n".join(f"  {each}" for each in [*mistakes[:_SHOWN], *more])
        raise UserError(f"The file of label fixes '{path}' cannot be obeyed:\n{lines}\nMend the file.")
    return labels


def fix_labels(table: ImageTable, fixes: LabelFixes) -> ImageTable:
    """The table without the pictures that are left out, the others with their classes.

    Args:
        table: the images as the data set has them.
        fixes: what a file says of some of them.

    Raises:
        UserError: it names pictures or classes that are not there, or leaves a class without a picture.
    """
    labels = one_label_each(table, "A file of label fixes").copy()
    known = {one_form(name): label for label, name in enumerate(table.class_names)}
    absent = sorted(name for name in fixes.labels if not table.has(name) and name not in table.unreadable)
    strange = sorted({label for label in fixes.labels.values() if label is not None and one_form(label) not in known})
    mistakes = []
    if absent:
        mistakes.append(
            f"{number_of(len(absent), 'picture')} that it names {'is' if len(absent) == 1 else 'are'} not in '{table.source}': "
            f"{printable(quoted(absent))}"
        )
    if strange:
        mistakes.append(
            f"it names classes that are none: {printable(quoted(strange))}; there are {printable(quoted(table.class_names))}"
        )
    if mistakes:
        lines = "\n".join(f"  {each}" for each in mistakes)
        raise UserError(
            f"The file of label fixes '{fixes.path}' does not fit '{table.source}':\n{lines}\nMend the file."
        )
    relabelled: dict[str, str] = {}
    for name, label in fixes.labels.items():
        if label is None or not table.has(name):
            continue
        row, new = table.row_of(name), known[one_form(label)]
        if labels[row] != new:
            labels[row] = new
            relabelled[name] = table.class_names[new]
    out = {name for name, label in fixes.labels.items() if label is None}
    rows = np.array([row for row, name in enumerate(table.files) if name not in out], dtype=np.int64)
    _check_no_class_emptied(table, fixes, labels, rows)
    kept = len(fixes.labels) - len(out) - len(relabelled)
    note = f"label fixes of '{fixes.path}': {number_of(len(out), 'picture')} left out, {len(relabelled):,} given another class"
    return replace(
        _with_rows(table, labels, rows),
        unreadable={name: cause for name, cause in table.unreadable.items() if name not in out},
        taken_out=dict.fromkeys(sorted(out), LEFT_OUT),
        relabelled=dict(sorted(relabelled.items())),
        notes=(*table.notes, note + (f", {kept:,} kept as they are" if kept else "")),
    )


def _check_no_class_emptied(
    table: ImageTable, fixes: LabelFixes, labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> None:
    before, after = set(table.labels.tolist()), set(labels[rows].tolist())
    if emptied := [table.class_names[label] for label in sorted(before - after)]:
        raise UserError(
            f"The file of label fixes '{fixes.path}' leaves no picture of {printable(quoted(emptied))}. Keep some, or remove the "
            f"class from '{table.source}'."
        )


def relabel(table: ImageTable, classes: Mapping[str, str]) -> ImageTable:
    """The table with the classes that a split.json notes for some of its pictures; those it lacks are passed over.

    Raises:
        UserError: a class that is none of the table's.
    """
    known = {one_form(name): label for label, name in enumerate(table.class_names)}
    if strange := sorted({label for label in classes.values() if one_form(label) not in known}):
        raise UserError(
            f"The split gives pictures the classes {printable(quoted(strange))}, which are none of '{table.source}'."
        )
    if not classes:
        return table
    labels = table.labels.copy()
    there = {name: known[one_form(label)] for name, label in classes.items() if table.has(name)}
    for name, label in there.items():
        # The task of several labels takes one label as a set of one.
        labels[table.row_of(name)] = np.arange(len(table.class_names)) == label if are_several(labels) else label
    return _with_rows(table, labels, np.arange(len(labels)))


@dataclass(frozen=True, eq=False)
class _ChosenImages:
    """Some rows of a source, with labels of their own, an `ImageSource`."""

    all: ImageSource
    rows: npt.NDArray[np.int64]
    names: tuple[str, ...]
    labels: Labels
    given_parts: tuple[str, ...] | None
    digests: tuple[str, ...] | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of all."""
        return self.all.class_names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        return self.all.read(int(self.rows[row]))


def _with_rows(table: ImageTable, labels: Labels, rows: npt.NDArray[np.int64]) -> ImageTable:
    """Some rows of a table, in their order, with these labels, of all its rows."""
    images, places = table.images, rows.tolist()
    names = tuple(table.files[row] for row in places)
    given = table.given_parts
    parts = tuple(given[row] for row in places) if given is not None else None
    chosen: ImageSource
    if isinstance(images, FolderImages):  # it stays one: processes also compare the sizes of a folder's files
        chosen = replace(images, names=names, labels=labels[rows], given_parts=parts)
    else:
        digests = images.digests
        kept = tuple(digests[row] for row in places) if digests is not None else None
        chosen = _ChosenImages(images, rows, names, labels[rows], parts, kept)
    return replace(table, images=chosen, labels=labels[rows])
