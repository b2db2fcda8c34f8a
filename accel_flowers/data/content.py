"""What a process sees under the names of a data set, small enough to be compared with what the others see."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.sampler import random_key
from accel_flowers.data.sources.folder import FolderImages
from accel_flowers.data.table import ImageTable, content_digest

_SAMPLED = 256
"""Images whose bytes are compared. Where one in fifty is another one, 256 hold one in 99 of 100 cases."""


def table_facts(table: ImageTable) -> dict[str, object]:
    """What every process must have found in the same folder: names and classes."""
    return {
        "number of pictures": len(table.files),
        "digest of their names and classes": random_key(*table.files, content_digest(table.labels.tobytes())),
    }


def content_facts(table: ImageTable, files: Sequence[str], *, seed: int) -> dict[str, object]:
    """Sizes of all, and digests of a sample that every process chooses alike.

    A machine with an older copy of the photos has the same names, and would train on other images without a word.

    Args:
        table: the images.
        files: those that are used.
        seed: chooses the sample.

    Returns:
        Name of a fact → its value. What cannot be read is a value, too: whoever else needs it says so.
    """
    facts: dict[str, object] = {}
    if isinstance(table.images, FolderImages):
        facts["digest of the pictures' sizes"] = random_key(*(_size(f"{table.images.root}/{file}") for file in files))
    chosen = np.random.default_rng(random_key(seed, "compared content")).permutation(len(files))[:_SAMPLED]
    for file in sorted(files[place] for place in chosen):
        facts[f"content of '{file}'"] = _digest(table, file)
    return facts


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _digest(table: ImageTable, file: str) -> str:
    try:
        return content_digest(table.read(table.row_of(file)))[:12]
    except BadImageError as error:
        return error.cause
