"""The photos that a run names: found again, decoded, made small. One that is gone is told, never an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from accel_flowers.config.schema import LabelWords
from accel_flowers.core.errors import UserError
from accel_flowers.core.parallel import map_in_order
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError, decode_image, verify_image
from accel_flowers.data.label_sets import label_sets
from accel_flowers.data.sources.load import is_dataset_folder, load_images
from accel_flowers.data.table import ImageTable

_log = logging.getLogger(__name__)

MAX_MEASURED = 5000
"""Images whose size is looked at; of more, evenly spread ones."""


class Photos:
    """Where the photos of a run are.

    Args:
        source: the run's data.path, or where they are now: a folder, a .zip, or hub:OWNER/NAME.
        labels: where the run's labels stand; None = nothing was said. With several labels a picture a folder's CSV is read, too.

    Attributes:
        problem: why there is none at all; empty where there is something.
    """

    def __init__(self, source: str | None, labels: LabelWords | None = None) -> None:
        self.source = source or ""
        said = labels or LabelWords(label_column=None, label_separator=None, label_columns=(), label_fixes=None)
        self._labels = LabelWords(**{**said, "label_fixes": None})  # what they leave out can be looked at all the same
        self.problem = ""
        self._root: Path | None = None
        self._table: ImageTable | None = None
        path = Path(self.source).expanduser()
        if self.source and os.path.isdir(path) and not is_dataset_folder(path):
            self._root = path
            if self._labels["label_separator"] is not None or self._labels["label_columns"]:
                self._load_archive()
                self.problem = ""  # without its CSV the photos are there all the same
        elif self.source:
            self._load_archive()
        else:
            self.problem = "the run does not say where its pictures were"
        if self.problem:
            _log.info(f"the page shows no photos, say with --data DIR where they are: {self.problem}")

    def _load_archive(self) -> None:
        try:
            self._table = load_images(self.source, **self._labels)
        except UserError as error:
            self.problem = str(error)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """File → its classes, as an archive, a dataset of the hub or a CSV of several labels says it; empty for a folder, whose
        paths say it."""
        table = self._table
        if table is None:
            return {}
        sets = (tuple(table.class_names[label] for label in labels) for labels in label_sets(table.labels))
        return dict(zip(table.files, sets, strict=True))

    @property
    def classes(self) -> dict[str, str]:
        """The same where each has one class; empty where there may be several."""
        several = self._table is not None and self._table.several_labels
        return {} if several else {file: labels[0] for file, labels in self.labels.items()}

    def _path(self, file: str) -> Path | None:
        """Where an image of the folder should be; None for a name that leads out of it."""
        leads_out = Path(file).is_absolute() or ".." in Path(file).parts
        return None if leads_out or self._root is None else self._root / file

    def has(self, file: str) -> bool:
        """Whether the image is there."""
        if self._table is not None:
            return self._table.has(file)
        path = self._path(file)
        return path is not None and os.path.isfile(path)

    def read(self, file: str) -> bytes:
        """The encoded image.

        Raises:
            OSError: it is not there, or is no file that can be read.
            BadImageError: the data set cannot give it.
        """
        if self._table is not None and self._table.has(file):
            return self._table.read(self._table.row_of(file))
        path = self._path(file)
        if path is None:
            raise FileNotFoundError(file)
        return read_file(path, max_bytes=MAX_BYTES)

    def open(self, file: str) -> Image.Image | None:
        """The upright RGB image; None where it is gone or can no longer be read."""
        try:
            return decode_image(self.read(file), file)
        except (OSError, BadImageError):
            return None

    def open_all(self, files: Sequence[str]) -> dict[str, Image.Image | None]:
        """Several at once; reading and decoding leave Python's lock."""
        wanted = list(dict.fromkeys(files))
        return dict(zip(wanted, map_in_order(self.open, wanted, threads=4), strict=True))

    def sizes(self, files: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Width and height in pixels of each image that can be read, upright; of many, `MAX_MEASURED` of them."""
        step = max(1, -(-len(files) // MAX_MEASURED))
        wanted = files[::step]

        def measure(file: str) -> tuple[int, int] | None:
            try:
                info = verify_image(self.read(file), file)
            except (OSError, BadImageError):
                return None
            return info.width, info.height

        found = zip(wanted, map_in_order(measure, wanted, threads=4), strict=True)
        return {file: size for file, size in found if size is not None}
