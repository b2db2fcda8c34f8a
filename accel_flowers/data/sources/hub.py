"""A dataset of the library `datasets` → its table: of the hub, of `save_to_disk`, or of Parquet files in a folder."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import refused
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError
from accel_flowers.data.label_sets import Labels, encode
from accel_flowers.data.sources.labels import (
    ANY_COLUMN,
    LABEL_COLUMNS,
    LabelColumns,
    labels_of_columns,
    zero_one_columns,
)
from accel_flowers.data.table import HUB_PREFIX, SPLIT_FOLDERS, ImageTable, quoted

_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "pixel_values")


@dataclass(frozen=True, eq=False)
class HubImages:
    """Rows of a dataset, an `ImageSource`.

    Attributes:
        rows: their column "image" holds bytes or a path, not decoded.
        names: "train/00000000" and so on.
        labels: int64 [N], or bool [N, C] where a row may have several.
        class_names: in the dataset's order.
        given_parts: part of each row, where the dataset has several.
        digests: None, for nobody has looked at the images yet.
        places: where each image stands in the table below `rows`, int64 [N]; None = in order.
    """

    rows: datasets.Dataset
    names: tuple[str, ...]
    labels: Labels
    class_names: tuple[str, ...]
    given_parts: tuple[str, ...] | None = None
    digests: None = None
    places: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> bytes:
        """The image that the row holds, or that of the file it names.

        Raises:
            OSError: the file cannot be read, is no regular file, or is larger than any image.
            BadImageError: the row holds neither.
        """
        # Arrow is asked directly: a row through `datasets` takes three times as long.
        image = self.rows.data.column("image")[row if self.places is None else int(self.places[row])]
        data: bytes | None = image["bytes"].as_py() if image.is_valid else None
        if data is not None:
            return data
        path: str | None = image["path"].as_py() if image.is_valid else None
        if path is None:
            raise BadImageError(self.names[row], "the row holds no picture")
        return read_file(path, max_bytes=MAX_BYTES)


def load_hub(source: str, *, asked: LabelColumns = ANY_COLUMN, to_learn: bool = True) -> ImageTable:
    """Load a dataset of the hub.

    Args:
        source: "hub:OWNER/NAME".
        asked: where the labels stand.
        to_learn: whether a training shall be made of it, which needs a part to train on.

    Raises:
        UserError: it cannot be loaded, has no column of images or of labels, or no part to train on.
    """
    name = source.removeprefix(HUB_PREFIX)
    if not name.strip("/"):
        raise UserError(f"'{source}' names no dataset: type {HUB_PREFIX}OWNER/NAME.")
    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        # It would take the files of the folder we stand in for that data set.
        raise UserError(f"'{source}' is a loader of the library datasets, no dataset: type {HUB_PREFIX}OWNER/NAME.")
    try:
        loaded = datasets.load_dataset(name)
    # RuntimeError: a dataset that is a script, which is not run.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if place := refused(error):
            raise UserError(
                f"Downloads are kept in a place that cannot be written ({place}): give another one with the environment "
                "variable HF_HOME, or make room."
            ) from None
        raise UserError(
            f"The dataset '{name}' of the Hugging Face hub cannot be loaded: {error}. Check the name and the network, "
            "or give a folder of your own: --data.path DIR."
        ) from None
    return _table(source, name, loaded, asked, to_learn=to_learn)


def load_dataset_folder(
    source: str, folder: Path, *, asked: LabelColumns = ANY_COLUMN, to_learn: bool = True
) -> ImageTable:
    """Load what `save_to_disk` has written, or Parquet files, from a folder.

    Args:
        source: what the user gave.
        folder: where it lies.
        label_column, to_learn: as of `load_hub`.

    Raises:
        UserError: as `load_hub`.
    """
    try:
        if not list(folder.rglob("*.parquet")):
            saved = datasets.load_from_disk(folder)
            loaded = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        else:
            loaded = datasets.load_dataset(str(folder.absolute()))  # "parquet" alone is a loader
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The dataset in '{source}' cannot be loaded: {error}. Save it anew.") from None
    return _table(source, source, loaded, asked, to_learn=to_learn)


def _table(
    source: str, name: str, loaded: Mapping[str, datasets.Dataset], asked: LabelColumns, *, to_learn: bool
) -> ImageTable:
    parts = _parts(name, loaded, to_learn=to_learn)
    left_out: Counter[str] = Counter(
        {
            f"in the part '{split}' of the dataset, which is none of train, val and test": len(rows)
            for split, rows in loaded.items()
            if split not in parts
        }
    )
    notes: list[str] = []
    main = next((split for split, part in parts.items() if part == "train"), next(iter(parts)))
    image_column = _image_column(name, loaded[main].features)
    labelled = loaded[main]
    if asked.group in labelled.column_names and asked.group != asked.column:
        labelled = labelled.remove_columns([asked.group])
    reader = _label_reader(name, labelled, image_column, asked, notes)
    tables: list[datasets.Dataset] = []
    values: list[tuple[str, ...]] = []
    names: list[str] = []
    given: list[str] = []
    places: list[int] = []
    groups: dict[str, str] = {}
    start = 0
    for split, part in parts.items():
        table = loaded[split]
        if not {image_column, *reader.columns} <= set(table.column_names):
            missing = reader.columns[0] if len(reader.columns) == 1 else image_column
            left_out[f"in the part '{split}', which has no column '{missing}'"] += len(table)
            continue
        said = reader.labels_of(table)
        kept = {row: labels for row, labels in enumerate(said) if labels is not None}
        lacking = len(said) - len(kept)
        if lacking and part == "train" and to_learn:
            raise UserError(f"{number_of(lacking, 'picture')} of the dataset '{name}' without a label.")
        if lacking:
            left_out[f"in the part '{split}' without a label"] += lacking
        indices = None if table._indices is None else table._indices.column(0).to_numpy()
        pictures = table.select_columns([image_column])
        pictures = pictures if image_column == "image" else pictures.rename_column(image_column, "image")
        tables.append(_with_bytes(pictures, name))
        values += kept.values()
        places += [start + (row if indices is None else int(indices[row])) for row in kept]
        names += [f"{split}/{row:08d}" for row in kept]
        given += [part] * len(kept)
        if asked.group in table.column_names:
            said = table.with_format("arrow")[asked.group].to_pylist()
            groups |= {f"{split}/{row:08d}": str(said[row]) for row in kept if said[row] not in (None, "")}
        start += len(table.data)
    if asked.group is not None and not groups:
        raise UserError(
            f"data.group_column: the dataset '{name}' has no column '{asked.group}' with a value for one of its pictures; it has "
            f"{quoted(loaded[main].column_names)}."
        )
    used = {label for labels in values for label in labels}
    class_names = reader.class_names if reader.class_names is not None else _in_order(used)
    if unused := [label for label in class_names if label not in used]:
        notes.append(f"class names without a picture, which are left out: {quoted(unused)}")
    class_names = tuple(label for label in class_names if label in used)
    _check_classes(name, class_names, values, given, to_learn=to_learn)
    images = HubImages(
        rows=datasets.concatenate_datasets(tables),
        names=tuple(names),
        labels=encode(values, class_names, several=reader.several),
        class_names=class_names,
        given_parts=tuple(given) if len(set(given)) > 1 or (not to_learn and len(parts) > 1) else None,
        places=None if places == list(range(start)) else np.array(places, dtype=np.int64),
    )
    return ImageTable(
        source=source,
        images=images,
        labels=images.labels,
        class_names=class_names,
        left_out=left_out,
        notes=tuple(notes),
        groups={f"data.group_column {asked.group}": groups} if groups else {},
    )


@dataclass(frozen=True)
class _LabelReader:
    """How the rows of a dataset say their labels.

    Attributes:
        name: of the dataset, for messages.
        columns: that hold them.
        class_names: in the dataset's order; None = they follow from the rows.
        several: whether a row may have several labels, or none.
        asked: with the separator, where there is one.
    """

    name: str
    columns: tuple[str, ...]
    class_names: tuple[str, ...] | None
    several: bool
    asked: LabelColumns

    def labels_of(self, table: datasets.Dataset) -> list[tuple[str, ...] | None]:
        """Class names of each row; None where it says nothing of them, which is not the same as that it has none.

        Raises:
            UserError: a column of 0 and 1 that holds something else.
        """
        columns = {column: table.with_format("arrow")[column].to_pylist() for column in self.columns}
        if self.asked.each:
            what = f"the dataset '{self.name}'"
            found = labels_of_columns(what, columns, self.columns, [])
            assert found is not None
            return list(found)
        return [self._labels(value) for value in columns[self.columns[0]]]

    def _labels(self, value: Any) -> tuple[str, ...] | None:
        if self.asked.separator is not None:
            return None if value is None else self.asked.split(str(value))
        if not self.several:
            label = _as_text(value, self.class_names)
            return None if label is None else (label,)
        if value is None:
            return None
        names = (_as_text(each, self.class_names) for each in value)
        return tuple(dict.fromkeys(name for name in names if name is not None))


def _label_reader(
    name: str, table: datasets.Dataset, image_column: str, asked: LabelColumns, notes: list[str]
) -> _LabelReader:
    if asked.each:
        plain = [key for key, feature in table.features.items() if _is_flag(feature) and key != image_column]
        values = {column: table.with_format("arrow")[column].to_pylist() for column in plain}
        # Here only to find the columns; each part's values are looked at when they are read.
        first = labels_of_columns(f"the dataset '{name}'", values, asked.each, notes)
        if first is None:
            raise UserError(
                f"The dataset '{name}' has no column of 0 and 1 {quoted(asked.each)}; it has {quoted(plain)}."
            )
        each = asked.each if set(asked.each) <= set(plain) else tuple(zero_one_columns(values))
        return _LabelReader(name, each, each, several=True, asked=asked)
    column = _label_column(name, table, asked.column, notes)
    inner = _inner(table.features[column])
    if inner is not None and asked.separator is not None:
        raise UserError(
            f"The column '{column}' of the dataset '{name}' holds lists of labels already: leave label_separator out."
        )
    feature = inner if inner is not None else table.features[column]
    names = None if asked.separator is not None else _class_names(feature)
    if inner is not None:
        notes.append(f"the column '{column}' holds lists: several labels a picture")
    return _LabelReader(name, (column,), names, several=inner is not None or asked.separator is not None, asked=asked)


def _inner(feature: Any) -> Any:
    """Of a column of lists what they hold; None of any other."""
    if isinstance(feature, list):  # as earlier versions of `datasets` wrote it
        return feature[0]
    return getattr(feature, "feature", None)


def _with_bytes(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """The column of images, not decoded, and all rows that lie below: places lead to the wanted ones."""
    table = datasets.Dataset(table.data, info=table.info, split=table.split) if table._indices is not None else table
    try:
        return table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"The column of pictures of the dataset '{name}' holds none: {error}.") from None


def _image_column(name: str, features: datasets.Features) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    # Written by other programs: the encoded image, or what `datasets` makes of it without its own notes.
    found = found or [
        key
        for key, feature in features.items()
        if (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
        or getattr(feature, "dtype", None) in ("binary", "large_binary")
    ]
    if len(found) > 1:
        found = [key for key in _IMAGE_COLUMNS if key in found][:1] or found
    if len(found) != 1:
        raise UserError(
            f"The dataset '{name}' needs one column of pictures and one of class labels, it has "
            f"{len(found)} of pictures: {', '.join(features)}."
        )
    return found[0]


def _label_column(name: str, table: datasets.Dataset, asked: str | None, notes: list[str]) -> str:
    """The column of classes: the one that was asked for, the one there is, or of several the finest."""
    features = table.features
    lists = {key: inner for key, feature in features.items() if (inner := _inner(feature)) is not None}
    plain, classes = _words_and_classes({key: feature for key, feature in features.items() if key not in lists})
    plain_lists, class_lists = _words_and_classes(lists)
    everything = [*classes, *plain, *class_lists, *plain_lists]
    if asked is not None:
        if asked not in everything:
            raise UserError(f"The dataset '{name}' has no column of labels '{asked}'; it has {quoted(everything)}.")
        return asked
    by_name = [key for known in LABEL_COLUMNS for key in everything if key.lower() == known]
    # A column of lists is one of sizes or boxes more often than one of words: it is taken by its name, or where nothing else is.
    classes, plain = classes or class_lists, plain or plain_lists
    if len(classes) > 1 and not (set(by_name) & set(classes)):
        class_names = {key: (lists.get(key) or features[key]).names for key in classes}
        finest = max(classes, key=lambda key: len(class_names[key]))
        others = ", ".join(f"--data.label-column {key}" for key in classes if key != finest)
        notes.append(
            f"of {len(classes)} columns of labels the finest is taken, '{finest}' ({len(class_names[finest])} "
            f"classes); for another type {others}"
        )
        return finest
    candidates = [key for key in by_name if key in classes] or classes or by_name or plain
    if len(candidates) != 1 and not by_name:
        raise UserError(
            f"The dataset '{name}' needs one column of pictures and one of class labels, it has {len(candidates)} of "
            f"labels: {', '.join(features)}."
            + (" Say which with --data.label-column NAME (for inspect and evaluate --label-column)." if plain else "")
        )
    return candidates[0]


def _words_and_classes(features: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Columns of words or numbers, and columns of classes."""
    plain = [key for key, feature in features.items() if _is_word_or_number(feature)]
    return plain, [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]


def _is_word_or_number(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return isinstance(feature, datasets.Value) and (
        dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))
    )


def _is_flag(feature: Any) -> bool:
    return _is_word_or_number(feature) or str(getattr(feature, "dtype", "")).startswith("float")


def _class_names(feature: Any) -> tuple[str, ...] | None:
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _as_text(label: Any, class_names: Sequence[str] | None) -> str | None:
    """A row's label as the name of a class; None where it has none."""
    if label is None or label == "" or (isinstance(label, int) and not isinstance(label, bool) and label < 0):
        return None
    if class_names is None:
        return str(label)
    return label if isinstance(label, str) else class_names[label]


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Sorted; numbers as numbers."""
    return tuple(sorted(labels, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label)))


def _check_classes(
    name: str, class_names: Sequence[str], labels: Sequence[Sequence[str]], parts: Sequence[str], *, to_learn: bool
) -> None:
    if not class_names:
        raise UserError(f"No picture of the dataset '{name}' has a label.")
    if not to_learn:
        return
    if len(class_names) < 2:
        raise UserError(
            f"The dataset '{name}' has one class only ({quoted(class_names)}); a classifier needs two or more."
        )
    learned = {label for each, part in zip(labels, parts, strict=True) if part == "train" for label in each}
    if lacking := set(class_names) - learned:
        raise UserError(f"The part train of the dataset '{name}' lacks the classes {quoted(lacking)}.")


def _parts(name: str, loaded: Mapping[str, datasets.Dataset], *, to_learn: bool) -> dict[str, str]:
    """Split → "train", "val" or "test", of those that are known."""
    parts = {split: SPLIT_FOLDERS.get(split.lower()) for split in loaded}
    known = {split: part for split, part in parts.items() if part is not None}
    if len(set(known.values())) < len(known) or not known or (to_learn and "train" not in known.values()):
        raise UserError(f"The dataset '{name}' has the parts {quoted(parts)}; train is needed, val and test are known.")
    return known
