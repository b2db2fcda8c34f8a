"""Real pictures for proof: what an export is compared on, and what an int8 network is calibrated with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.config.loading import read_config
from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError
from accel_flowers.data.sampler import permutation, random_key
from accel_flowers.data.sources.layout import one_form
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.walk import find_files
from accel_flowers.data.split import Split, load_split
from accel_flowers.data.table import ImageTable
from accel_flowers.models.spec import ModelSpec
from accel_flowers.tracking.run_dir import CONFIG_FILE, SPLIT_FILE


@dataclass(frozen=True)
class Picture:
    """An encoded image, and its class where that is known."""

    name: str
    data: bytes
    label: int | None


@dataclass(frozen=True)
class Pictures:
    """Where pictures can be drawn from.

    Attributes:
        table: all of them; None where they have no classes.
        proof: names or rows' files that are compared; those of validation where there is a split.
        calibration: those of training where there is a split; else the others than `proof`.
    """

    source: str
    table: ImageTable | None
    files: tuple[Path, ...]
    proof: tuple[str, ...]
    calibration: tuple[str, ...]
    classes: tuple[int, ...]
    """Label of each class of the table in the model."""

    def read(self, names: Sequence[str], number: int, seed: int) -> list[Picture]:
        """So many of them, drawn from the seed; what cannot be read is passed over."""
        order = permutation(random_key(seed, "export"), len(names))
        found: list[Picture] = []
        for place in order:
            if len(found) == number:
                break
            try:
                found.append(self._read(names[place]))
            except (BadImageError, OSError):
                continue
        return found

    def _read(self, name: str) -> Picture:
        if self.table is None:
            return Picture(name, read_file(Path(name), max_bytes=MAX_BYTES), None)
        row = self.table.row_of(name)
        label = None if self.table.several_labels else self.classes[int(self.table.labels[row])]
        return Picture(name, self.table.read(row), label)


def find_pictures(model_dir: Path, spec: ModelSpec, data: str | None) -> Pictures:
    """The pictures of the model's own run, or those that are given.

    Args:
        model_dir: RUN_DIR/model.
        spec: of the model.
        data: a folder with or without classes, a zip or a dataset; None = those of the run.

    Raises:
        UserError: there are none, or the run's cannot be found any more.
    """
    run_dir = model_dir.parent
    split_file = run_dir / SPLIT_FILE
    split: Split | None = load_split(split_file) if os.path.isfile(split_file) else None
    if data is None:
        recorded = read_config(run_dir / CONFIG_FILE, what="the run").data.path if split else None
        if split is None or recorded is None or not os.path.exists(recorded):
            raise UserError(
                "An export is compared with the model on real pictures, and those of its run cannot be found: give some with "
                "--data DIR (a folder of pictures, with or without classes). Made-up ones would prove nothing."
            )
        data = recorded
    if os.path.isdir(data) and not _has_classes(data):
        files = tuple(find_files([Path(data)]).files)
        names = tuple(map(str, files))
        return Pictures(data, None, files, names, names, ())
    table = load_images(data, to_learn=False)
    classes = _classes_of(table, spec)
    if split is not None:
        parts = {part: tuple(name for name in split.files_of(part) if table.has(name)) for part in ("train", "val")}
        if parts["val"]:
            return Pictures(data, table, (), parts["val"], parts["train"], classes)
    every = table.files
    return Pictures(data, table, (), every, every, classes)


def _has_classes(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries)


def _classes_of(table: ImageTable, spec: ModelSpec) -> tuple[int, ...]:
    known = {one_form(name): label for label, name in enumerate(spec.class_names)}
    unknown = [name for name in table.class_names if one_form(name) not in known]
    if unknown:
        raise UserError(
            f"'{table.source}' has classes that the model does not know: {', '.join(unknown)}. The model knows "
            f"{', '.join(spec.class_names)}."
        )
    return tuple(known[one_form(name)] for name in table.class_names)
