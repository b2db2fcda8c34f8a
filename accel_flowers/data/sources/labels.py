"""Classes that stand in a file instead of in folders: `metadata.csv` as `datasets` has it, or any CSV of file and label.

Such files are asked where the folders do not say the class: images beside each other, with `labels.csv`, `train.csv` or
`metadata.jsonl` there or one level below. Only images that the walk has found are named by them, so none leads elsewhere.
A picture has several labels, or none, only where somebody says how the file writes them: see `LabelColumns`.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
ALL_COLUMNS = ("all",)
"""What people write for every column that holds nothing but 0 and 1."""
_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "-1", "-1.0", "false")


@dataclass(frozen=True)
class LabelColumns:
    """Where labels, and groups, stand in a dataset or a file of labels, as somebody said it.

    Attributes:
        column: of the classes; None = choose.
        separator: between the names of several classes in that column; None = it holds one class, or a list.
        each: columns of 0 and 1, one for each class, instead of that column; "all" alone = those that hold nothing else.
        group: column of what belongs together; None = nobody says it.

    Raises:
        UserError: two ways at once, or a separator of spaces alone.
    """

    column: str | None = None
    separator: str | None = None
    each: tuple[str, ...] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        if self.each and (self.column is not None or self.separator is not None):
            raise UserError(
                "label_columns name a 0/1 column for each class, label_column and label_separator one column of names: give "
                "the one or the other."
            )

    @property
    def several(self) -> bool:
        """Whether it says that a picture may have several labels."""
        return self.separator is not None or bool(self.each)

    def split(self, value: str) -> tuple[str, ...]:
        """The class names of a cell, each once, in its order."""
        names = value.split(self.separator) if self.separator else [value]
        return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


ANY_COLUMN = LabelColumns()
"""Nothing was said: one column of one class is looked for."""


@dataclass
class Listed:
    """What files of labels say.

    Attributes:
        file: which, for messages.
        several: whether a picture may have several labels, or none; else each has one.
        labels: image → its classes.
        parts: image → "train", "val" or "test"; None where nothing is said of parts.
        missing: what is named and not there, with the cause.
        notes: what a person should know.
    """

    file: str
    several: bool = False
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, str] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_label_files(source: str, root: Path, found: Walk, *, asked: LabelColumns = ANY_COLUMN) -> Listed | None:
    """The classes that CSV files of a folder give; None where the folders say them, or no such file names an image.

    Args:
        source: for messages.
        root: the folder.
        found: what lies there.
        asked: where the labels stand.

    Raises:
        UserError: a file of labels that cannot be understood, or that contradicts itself; several labels are asked for,
            and there is none.
    """
    if not found.files or (_has_class_folders(found.files) and not asked.several):
        return None
    images = _Images(found.files)
    tables = [
        (name, _columns_of(root / name, name, images, asked.separator))
        for name in sorted(found.ignored)
        if _may_hold_labels(name)
    ]
    listed = Listed("", several=asked.several)
    for name, columns in tables:
        _take(source, name, columns, images, listed, asked)
    if not listed.labels and asked.several:
        said = f"a column '{asked.column}'" if asked.column else "labels"
        said = f"the columns {quoted(asked.each)}" if asked.each not in ((), ALL_COLUMNS) else said
        looked = f" Looked at: {quoted(name for name, _ in tables)}." if tables else ""
        raise UserError(
            f"'{source}' has no CSV that names its pictures and has {said} for them: several labels a picture come from a CSV "
            f"with a column of file names, or from a dataset.{looked}"
        )
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


def read_group_column(source: str, root: Path, found: Walk, asked: LabelColumns) -> dict[str, dict[str, str]]:
    """What a column of the CSV files of a folder says belongs together, whether or not they say the classes, too.

    Args:
        source: for messages.
        root: the folder.
        found: what lies there.
        asked: the column is `asked.group`.

    Raises:
        UserError: there is no such column beside one of file names, or one picture is in two groups.
    """
    if asked.group is None:
        return {}
    images = _Images(found.files)
    groups: dict[str, str] = {}
    looked: dict[str, Sequence[str]] = {}
    for name in sorted(found.ignored):
        columns = _columns_of(root / name, name, images, asked.separator) if _may_hold_labels(name) else {}
        if columns:
            looked[name] = list(columns)
        file_column = _file_column(columns, images, _folder_of(name))
        if file_column is None or asked.group not in columns:
            continue
        for value, group in zip(columns[file_column], columns[asked.group], strict=True):
            image, said = images.called(value, _folder_of(name)), str(group).strip()
            if image is None or not said:
                continue
            if groups.setdefault(image, said) != said:
                raise UserError(
                    f"'{image}' has two values, '{groups[image]}' and '{said}', in the column '{asked.group}' ({name}). Mend the file."
                )
    if not groups:
        there = "; ".join(f"{name} has {quoted(columns)}" for name, columns in looked.items())
        raise UserError(
            f"data.group_column: '{source}' has no CSV that names its pictures and has a column '{asked.group}' with a value for one of "
            f"them{f' ({there})' if there else ''}. Name another column, or put such a CSV into the folder."
        )
    return {f"data.group_column {asked.group}": groups}


def _file_column(columns: Mapping[str, Sequence[Cell]], images: _Images, folder: str) -> str | None:
    """The column that names most of the images; None where none names any."""
    named = {
        column: len({image for value in values[:_TRIED] if (image := images.called(value, folder))})
        for column, values in columns.items()
    }
    best = max(named, key=lambda column: named[column], default=None)
    return best if best is not None and named[best] else None


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


Cell = str | tuple[str, ...]
"""A value of a file of labels as text; of a list in `metadata.jsonl` its values."""


class _Images:
    """Images by what a file of labels may call them: the path, or its last part, with or without the suffix."""

    def __init__(self, files: Sequence[str]) -> None:
        self._found: dict[str, set[str]] = defaultdict(set)
        for name in files:
            for called in (name, name.rsplit("/", 1)[-1]):
                self._found[called].add(name)
                self._found[called.rpartition(".")[0]].add(name)

    def called(self, value: Cell, folder: str) -> str | None:
        """The one image of this name, below the folder of the file or anywhere; None where there is none, or several."""
        if not isinstance(value, str):
            return None
        value = value.strip().replace("\\", "/").removeprefix("./")
        for name in (folder + value, value, value.rsplit("/", 1)[-1]):
            if value and len(found := self._found.get(name, ())) == 1:
                return next(iter(found))
        return None


def _columns_of(path: Path, name: str, images: _Images, separator: str | None) -> Mapping[str, Sequence[Cell]]:
    """Column → its values, as text; empty for what is no table. What separates labels separates columns only if nothing else does."""
    try:
        text = read_text(path, max_bytes=_MAX_BYTES).removeprefix("\ufeff")
    except OSError:
        return {}  # a stray file: it says nothing of classes
    if name.lower().endswith(".jsonl"):
        return _columns_of_json(text)
    first = text.partition("\n")[0]
    delimiters = [each for each in ",;\t" if each != separator and each in first] or list(",;\t")
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(delimiters, key=first.count)))
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


def _columns_of_json(text: str) -> dict[str, list[Cell]]:
    try:
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return {}
    rows = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {column: [_as_cell(row.get(column)) for row in rows] for column in columns}


def _as_cell(value: object) -> Cell:
    if isinstance(value, list):
        return tuple(dict.fromkeys(str(each) for each in value if each is not None))
    return "" if value is None else str(value)


def _folder_of(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _take(
    source: str,
    name: str,
    columns: Mapping[str, Sequence[Cell]],
    images: _Images,
    listed: Listed,
    asked: LabelColumns,
) -> None:
    """Add what one file says."""
    folder = _folder_of(name)
    file_column = _file_column(columns, images, folder)
    if file_column is None:
        return
    part_column = next((column for column in columns if column.lower() in _PART_COLUMNS), None)
    others = {
        column: values for column, values in columns.items() if column not in (file_column, part_column, asked.group)
    }
    found = _labels_of_rows(f"'{Path(source) / name}'", others, asked, listed.notes)
    if found is None:
        return
    said, several = found
    if listed.labels and several != listed.several:
        raise UserError(
            f"{name} gives {'lists of labels' if several else 'one label a picture'}, and {listed.file} does not. Mend one."
        )
    listed.several = several
    listed.file = f"{listed.file}, {name}" if listed.file else name
    for row, (value, labels) in enumerate(zip(columns[file_column], said, strict=True)):
        image = images.called(value, folder)
        if (not labels and not several) or not value or not isinstance(value, str):
            continue
        if image is None:
            listed.missing[folder + value] = f"{name} names it, and it is not there"
            continue
        if set(before := listed.labels.setdefault(image, labels)) != set(labels):
            told = "labels twice, and not the same" if several else "two labels"
            raise UserError(
                f"'{image}' has {told}, '{_joined(before)}' and '{_joined(labels)}' ({listed.file}). Mend the file."
            )
        if part_column is not None:
            part = str(columns[part_column][row])
            if part.lower() not in SPLIT_FOLDERS:
                raise UserError(
                    f"{name} gives '{image}' the {part_column} '{part}'; known are train, val and test. Mend the file."
                )
            listed.parts = {**(listed.parts or {})} if listed.parts is None else listed.parts
            listed.parts[image] = SPLIT_FOLDERS[part.lower()]


def _joined(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"


def _labels_of_rows(
    what: str, columns: Mapping[str, Sequence[Cell]], asked: LabelColumns, notes: list[str]
) -> tuple[Iterator[tuple[str, ...]], bool] | None:
    """The classes of each row of a file, and whether there may be several; None where it does not say them.

    Raises:
        UserError: which column it is cannot be told, or a 0/1 column that holds something else.
    """
    if asked.each:
        found = labels_of_columns(what, columns, asked.each, notes)
        return None if found is None else (found, True)
    chosen = _label_column(what, columns, asked.column)
    if chosen is None:
        return None
    cells = columns[chosen]
    lists = any(isinstance(cell, tuple) for cell in cells)
    if lists:
        notes.append(f"the column '{chosen}' holds lists: several labels a picture")
    else:
        words = [str(cell) for cell in cells]
        other = _looks_separated(chosen, words)
        if asked.separator is None:
            notes += other
        elif other and not any(asked.separator in word for word in words):
            raise UserError(
                f"The separator '{asked.separator}' stands in no value of the column '{chosen}' of {what}: {other[0]}."
            )
    said = (cell if isinstance(cell, tuple) else asked.split(cell) for cell in cells)
    return said, asked.several or lists


def labels_of_columns(
    what: str, columns: Mapping[str, Sequence[object]], each: Sequence[str], notes: list[str]
) -> Iterator[tuple[str, ...]] | None:
    """The classes of each row by columns of 0 and 1, of which each is called like a class; None where none is there.

    Args:
        what: the file or dataset, for messages.
        columns: column → its values.
        each: the columns, or `ALL_COLUMNS`.
        notes: takes which columns are passed over.

    Raises:
        UserError: some are there and others not, or a value is neither 0 nor 1.
    """
    if tuple(each) == ALL_COLUMNS and ALL_COLUMNS[0] not in columns:
        each = zero_one_columns(columns)
        if not each:
            return None
        if passed := [column for column in columns if column not in each]:
            notes.append(f"columns that do not hold 0 and 1 alone, and so are no classes: {quoted(passed)}")
    elif lacking := [column for column in each if column not in columns]:
        if len(lacking) == len(each):
            return None
        raise UserError(f"{what} has no column {quoted(lacking)}; it has {quoted(columns)}. Mend label_columns.")
    for column in each:
        for row, value in enumerate(columns[column], start=1):
            if str(value).lower() not in (*_YES, *_NO):
                raise UserError(
                    f"{what}: row {row} of the column '{column}' holds '{str(value)[:50]}'. A column of a class holds 1 where "
                    "a picture has it and 0 where it has not. Mend the file, or leave the column out of label_columns."
                )
    rows = zip(*(columns[column] for column in each), strict=True)
    return (tuple(name for name, value in zip(each, row, strict=True) if str(value).lower() in _YES) for row in rows)


def zero_one_columns(columns: Mapping[str, Sequence[object]]) -> list[str]:
    """Those that have a name and hold nothing but 0 and 1."""
    return [
        column
        for column, values in columns.items()
        if column and values and all(str(value).lower() in (*_YES, *_NO) for value in values)
    ]


def _looks_separated(column: str, values: Sequence[str]) -> list[str]:
    """A note where a column of classes looks as if it held several names: what follows from that a person has to say."""
    for separator in (";", "|", ","):
        joined = [value for value in values if separator in value]
        parts = {name.strip() for value in values for name in value.split(separator)}
        if len(joined) > 1 and len(parts) < len(set(values)):
            return [
                f"the column '{column}' holds values such as '{joined[0][:50]}', each of which is one class; for several "
                f"labels a picture type --data.label-separator '{separator}'"
            ]
    return []


def _label_column(what: str, columns: Mapping[str, Sequence[object]], asked: str | None) -> str | None:
    if asked is not None:
        return asked if asked in columns else None
    by_name = {column.lower(): column for column in columns}
    known = next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    if known is not None or len(columns) < 2:
        return known or next(iter(columns), None)
    flags = zero_one_columns(columns)
    each = " For a 0/1 column for each class: --data.label-columns all." if len(flags) > 1 else ""
    raise UserError(
        f"Which column of {what} holds the class: {quoted(columns)}? Say it with --data.label-column NAME "
        f"(for inspect and evaluate --label-column NAME).{each}"
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
