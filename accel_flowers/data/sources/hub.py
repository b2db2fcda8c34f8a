"""A dataset of the Hugging Face hub → its table; `datasets` downloads, converts and holds it."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

import datasets
import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import refused
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError
from accel_flowers.data.table import HUB_PREFIX, SPLIT_FOLDERS, ImageTable, quoted


@dataclass(frozen=True, eq=False)
class HubImages:
    """Rows of a dataset of the hub, an `ImageSource`.

    Attributes:
        rows: their column "image" holds bytes or a path, not decoded; without a mapping of indices.
        names: "train/00000000" and so on.
        labels: int64 [N].
        class_names: in the dataset's order.
        given_parts: part of each row, where the dataset has several.
        digests: None, for nobody has looked at the images yet.
    """

    rows: datasets.Dataset
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    given_parts: tuple[str, ...] | None = None
    digests: None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> bytes:
        """The image that the row holds, or that of the file it names.

        Raises:
            OSError: the file cannot be read, is no regular file, or is larger than any image.
            BadImageError: the row holds neither.
        """
        # Arrow is asked directly: a row through `datasets` takes three times as long.
        image = self.rows.data.column("image")[row]
        data: bytes | None = image["bytes"].as_py() if image.is_valid else None
        if data is not None:
            return data
        path: str | None = image["path"].as_py() if image.is_valid else None
        if path is None:
            raise BadImageError(self.names[row], "the row holds no picture")
        return read_file(path, max_bytes=MAX_BYTES)


def load_hub(source: str) -> ImageTable:
    """Load a dataset of the hub.

    Args:
        source: "hub:OWNER/NAME".

    Raises:
        UserError: it cannot be loaded, has not one column of images and one of labels, or no part to train on.
    """
    name = source.removeprefix(HUB_PREFIX)
    loaded = _download(source, name)
    image_column, label_column = _columns(name, next(iter(loaded.values())).features)
    parts = _parts(name, loaded)
    columns = {image_column: "image", label_column: "label"}
    tables = [
        loaded[split]
        .select_columns(list(columns))
        .rename_columns(columns)
        .cast_column("image", datasets.Image(decode=False))
        for split in parts
    ]
    rows = datasets.concatenate_datasets(tables)
    given = tuple(part for part, table in zip(parts.values(), tables, strict=True) for _ in range(len(table)))
    names = tuple(f"{split}/{row:08d}" for split, table in zip(parts, tables, strict=True) for row in range(len(table)))
    labels = rows.with_format("arrow")["label"].to_pylist()
    unknown = sum(label is None or label < 0 for label in labels)
    if unknown:
        raise UserError(f"{unknown} pictures of the dataset '{name}' have no label.")
    images = HubImages(
        rows=rows,
        names=names,
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(rows.features["label"].names),
        given_parts=given if len(parts) > 1 else None,
    )
    return ImageTable(source=source, images=images, labels=images.labels, class_names=images.class_names)


def _download(source: str, name: str) -> Mapping[str, datasets.Dataset]:
    """Split → its rows."""
    if not name.strip("/"):
        raise UserError(f"'{source}' names no dataset: type {HUB_PREFIX}OWNER/NAME.")
    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        # It would take the files of the folder we stand in for that data set.
        raise UserError(f"'{source}' is a loader of the library datasets, no dataset: type {HUB_PREFIX}OWNER/NAME.")
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(name)
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
    return loaded


def _columns(name: str, features: datasets.Features) -> tuple[str, str]:
    """Names of the columns of images and of labels."""
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"The dataset '{name}' needs one column of pictures and one of class labels, it has "
            f"{len(images)} and {len(labels)}: {', '.join(features)}."
        )
    return images[0], labels[0]


def _parts(name: str, loaded: Mapping[str, datasets.Dataset]) -> dict[str, str]:
    """Split → "train", "val" or "test", of those that are known."""
    parts = {split: SPLIT_FOLDERS.get(split.lower()) for split in loaded}
    known = {split: part for split, part in parts.items() if part is not None}
    if len(set(known.values())) < len(known) or "train" not in known.values():
        raise UserError(f"The dataset '{name}' has the parts {quoted(parts)}; train is needed, val and test are known.")
    return known
