"""Classes that stand in a file instead of in folders: `metadata.csv` as `datasets` has it, or any CSV of file and label.

Such files are asked where the folders do not say the class: images beside each other, with `labels.csv`, `train.csv` or
`metadata.jsonl` there or one level below. Only images that the walk has found are named by them, so none leads elsewhere.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.data.sources.walk import Walk
from accel_flowers.data.table import SPLIT_FOLDERS, quoted

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed", "variety", "kind")
"""What the column of classes is called, the likeliest first."""
_PART_COLUMNS = ("split", "set", "subset", "part", "partition")
_MAX_BYTES = 2**28
_TRIED = 500
"""Rows by which the column of files is found."""


@dataclass
class Listed:
    """What files of labels say.

    Attributes:
        file: which, for messages.
        labels: image → class.
        parts: image → "train", "val" or "test"; None where nothing is said of parts.
        missing: what is named and not there, with the cause.
        notes: what a person should know.
    """

    file: str
    labels: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_label_files(source: str, root: Path, found: Walk, *, label_column: str | None = None) -> Listed | None:
    """The classes that CSV files of a folder give; None where the folders say them, or no such file names an image.

    Args:
        source: for messages.
        root: the folder.
        found: what lies there.
        label_column: the column of classes; None = choose.

    Raises:
        UserError: a file of labels that cannot be understood, or that contradicts itself.
    """
    if not found.files or _has_class_folders(found.files):
        return None
    images = _Images(found.files)
    tables = [
        (name, _columns_of(root / name, name, images)) for name in sorted(found.ignored) if _may_hold_labels(name)
    ]
    listed = Listed("")
    for name, columns in tables:
        _take(source, name, columns, images, listed, label_column)
    if not listed.labels:
        return None
    _take_parts_of_folders(listed)
    unnamed = sorted(set(found.files) - listed.labels.keys())
    listed.notes.insert(0, f"classes by {listed.file}: {number_of(len(listed.labels), 'picture')}")
    if unnamed:
        listed.notes.append(
            f"{number_of(len(unnamed), 'picture')} without a label left out, for example '{unnamed[0]}'"
        )
    return listed


def _has_class_folders(files: Sequence[str]) -> bool:
    tops = {name.split("/")[0] for name in files if "/" in name}
    if any("/" not in name for name in files) or len(tops) < 2:
        return False
    return not tops <= {top for top in tops if top.lower() in SPLIT_FOLDERS} or any(
        name.count("/") > 1 and SPLIT_FOLDERS[name.split("/")[0].lower()] == "train" for name in files
    )


def _may_hold_labels(name: str) -> bool:
    lower = name.lower()
    return lower.endswith((".csv", ".tsv", "metadata.jsonl")) and name.count("/") < 2 and "submission" not in lower


class _Images:
    """Images by what a file of labels may call them: the path, or its last part, with or without the suffix."""

    def __init__(self, files: Sequence[str]) -> None:
        self._found: dict[str, set[str]] = defaultdict(set)
        for name in files:
            for called in (name, name.rsplit("/", 1)[-1]):
                self._found[called].add(name)
                self._found[called.rpartition(".")[0]].add(name)

    def called(self, value: str, folder: str) -> str | None:
        """The one image of this name, below the folder of the file or anywhere; None where there is none, or several."""
        value = value.strip().replace("\\", "/").removeprefix("./")
        for name in (folder + value, value, value.rsplit("/", 1)[-1]):
            if value and len(found := self._found.get(name, ())) == 1:
                return next(iter(found))
        return None


def _columns_of(path: Path, name: str, images: _Images) -> dict[str, list[str]]:
    """Column → its values, as text; empty for what is no table."""
    try:
        text = read_text(path, max_bytes=_MAX_BYTES).removeprefix("\ufeff")
    except OSError:
        return {}  # a stray file: it says nothing of classes
    if name.lower().endswith(".jsonl"):
        return _columns_of_json(text)
    first = text.partition("\n")[0]
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count)))
    except csv.Error:
        return {}
    rows = [row for row in rows if row]
    if not rows:
        return {}
    header = [cell.strip() for cell in rows[0]]
    if any(images.called(cell, _folder_of(name)) for cell in header):  # a table without a header
        header = [f"column {number}" for number in range(1, len(header) + 1)]
    else:
        rows = rows[1:]
    return {
        column: [row[place].strip() if place < len(row) else "" for row in rows] for place, column in enumerate(header)
    }


def _columns_of_json(text: str) -> dict[str, list[str]]:
    try:
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return {}
    rows = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {column: ["" if row.get(column) is None else str(row[column]) for row in rows] for column in columns}


def _folder_of(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _take(
    source: str,
    name: str,
    columns: Mapping[str, Sequence[str]],
    images: _Images,
    listed: Listed,
    label_column: str | None,
) -> None:
    """Add what one file says."""
    folder = _folder_of(name)
    named = {
        column: {image for value in values[:_TRIED] if (image := images.called(value, folder))}
        for column, values in columns.items()
    }
    file_column = max(named, key=lambda column: len(named[column]), default=None)
    if file_column is None or not named[file_column]:
        return
    part_column = next((column for column in columns if column.lower() in _PART_COLUMNS), None)
    others = [column for column in columns if column not in (file_column, part_column)]
    chosen = _label_column(f"'{Path(source) / name}'", others, label_column)
    if chosen is None:
        return
    listed.file = f"{listed.file}, {name}" if listed.file else name
    for row, (value, label) in enumerate(zip(columns[file_column], columns[chosen], strict=True)):
        image = images.called(value, folder)
        if not label or not value:
            continue
        if image is None:
            listed.missing[folder + value] = f"{name} names it, and it is not there"
            continue
        if listed.labels.setdefault(image, label) != label:
            raise UserError(
                f"'{image}' has two labels, '{listed.labels[image]}' and '{label}' ({listed.file}). Mend the file."
            )
        if part_column is not None:
            said = columns[part_column][row]
            if said.lower() not in SPLIT_FOLDERS:
                raise UserError(
                    f"{name} gives '{image}' the {part_column} '{said}'; known are train, val and test. Mend the file."
                )
            listed.parts = {**(listed.parts or {})} if listed.parts is None else listed.parts
            listed.parts[image] = SPLIT_FOLDERS[said.lower()]


def _label_column(what: str, columns: Sequence[str], asked: str | None) -> str | None:
    if asked is not None:
        return asked if asked in columns else None
    by_name = {column.lower(): column for column in columns}
    known = next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    if known is not None or len(columns) < 2:
        return known or next(iter(columns), None)
    raise UserError(
        f"Which column of {what} holds the class: {quoted(columns)}? Say it with --data.label-column NAME "
        "(for inspect and evaluate --label-column NAME)."
    )


def _take_parts_of_folders(listed: Listed) -> None:
    """Images in train and val or test folders have their parts by these, where no column says it."""
    tops = {image.split("/")[0] if "/" in image else "" for image in listed.labels}
    if listed.parts is None and len(tops) > 1 and all(top.lower() in SPLIT_FOLDERS for top in tops):
        listed.parts = {image: SPLIT_FOLDERS[image.split("/")[0].lower()] for image in listed.labels}
    if listed.parts is not None and (
        listed.parts.keys() != listed.labels.keys() or set(listed.parts.values()) == {"train"}
    ):
        listed.parts = None
