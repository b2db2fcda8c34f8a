"""The images of a data set as rows: names, labels, and where their bytes are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from accel_flowers.config.paths import HUB_PREFIX as HUB_PREFIX
from accel_flowers.core.errors import UserError
from accel_flowers.data.groups import SaidGroups
from accel_flowers.data.label_sets import Labels, are_several
from accel_flowers.data.sources.source import ImageSource, read_image

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
LAYOUT = (
    "Pictures belong in one sub-folder per class (DIR/rose/1.jpg), or in DIR/train/rose, DIR/val/rose, DIR/test/rose."
)


@dataclass(frozen=True)
class ImageTable:
    """The images of a data set, and what was found beside them.

    Attributes:
        source: what the user gave.
        images: one row an image.
        labels: class of each row, int64 [N]; or bool [N, C], for each class whether a row has it.
        class_names: sorted, or in the order of the hub's dataset; a label is the index into them.
        unreadable: files that look like images but are not files (broken links, folders), with the cause.
        ignored: files that are no images by their name.
        left_out: reason → how many files and folders were passed over.
        notes: how the data set was understood where that is not plain, a line each.
        taken_out: images that a file of label fixes leaves out, with the cause; they are no rows.
        relabelled: images that it gives another class, with that class; `labels` has it.
        groups: what is said to belong together, which no split tears apart.
    """

    source: str
    images: ImageSource
    labels: Labels
    class_names: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    taken_out: Mapping[str, str] = field(default_factory=dict)
    relabelled: Mapping[str, str] = field(default_factory=dict)
    groups: SaidGroups = field(default_factory=dict)

    @property
    def several_labels(self) -> bool:
        """Whether a picture may have several labels, or none."""
        return are_several(self.labels)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Name of each row, relative to the folder, with forward slashes."""
        return tuple(self.images.names)

    @property
    def given_parts(self) -> tuple[str, ...] | None:
        """Part of each row where the data set comes with train, val and test; else None."""
        return self.images.given_parts

    @cached_property
    def _rows_by_name(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.files)}

    def has(self, file: str) -> bool:
        """Whether there is a row of this name."""
        return file in self._rows_by_name

    def row_of(self, file: str) -> int:
        """Row of a file.

        Raises:
            KeyError: there is none.
        """
        return self._rows_by_name[file]

    def rows_of(self, files: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of these files, in their order.

        Raises:
            KeyError: a name of none.
        """
        return np.fromiter((self._rows_by_name[name] for name in files), dtype=np.int64)

    def read(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            BadImageError: it cannot be read.
        """
        return read_image(self.images, row)


def one_label_each(table: ImageTable, what: str) -> npt.NDArray[np.int64]:
    """The class of each row, int64 [N].

    Args:
        table: the images.
        what: takes one label a picture, for the message.

    Raises:
        UserError: pictures may have several labels.
    """
    if table.several_labels:
        raise UserError(
            f"{what} takes one label a picture, and the pictures of '{table.source}' have several: name a column of one label, or "
            "train on them with --loss.task multilabel."
        )
    return np.asarray(table.labels, dtype=np.int64)


def content_digest(data: bytes) -> str:
    """Digest of an encoded image."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def quoted(names: Iterable[str]) -> str:
    """Names for a message: the first ten, and how many more there are."""
    shown = sorted(names)
    return ", ".join(f"'{name}'" for name in shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def source_name(source: str) -> str:
    """What a data set is called to others: a hub's as there, else the last part of its path."""
    return source if source.startswith(HUB_PREFIX) else os.path.basename(os.path.normpath(source)) or source
