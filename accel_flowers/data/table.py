"""The images of a data set as rows: names, labels, and where their bytes are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import IMAGE_EXTENSIONS, MAX_BYTES

HUB_PREFIX = "hub:"
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
    """The images of a data set, sorted by name.

    Attributes:
        source: what the user gave.
        dataset: one row an image: `image` (a dict of `bytes` and `path`, not decoded) and `label`.
        files: name of each row, relative to the folder, with forward slashes.
        labels: class of each row, int64 [N].
        class_names: sorted, or in the order of the hub's dataset; a label is the index into them.
        given_parts: part of each row where the data set comes with train, val and test; else None.
        unreadable: files that look like images but are not files (broken links, folders), with the cause.
        ignored: files that are no images by their name.
    """

    source: str
    dataset: datasets.Dataset
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    given_parts: tuple[str, ...] | None
    unreadable: dict[str, str]
    ignored: tuple[str, ...]


def read_bytes(image: dict[str, Any]) -> bytes:
    """The encoded image of a row: its bytes where the row holds them, else the file it names.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than any image.
    """
    data: bytes | None = image["bytes"]
    return data if data is not None else read_file(image["path"], max_bytes=MAX_BYTES)


def content_digest(data: bytes) -> str:
    """Digest of an encoded image."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def looks_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def quoted(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(f"'{name}'" for name in shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
