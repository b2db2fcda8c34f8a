"""Which images a model has seen: so that `evaluate` can tell the score on new images from that on those it was trained on.

`model/seen.safetensors` holds a number for each image of the training and of the validation part, the beginning of the digest
of its file: 8 bytes an image, from which nothing of the image can be made. An image that was saved anew, smaller or in another
format, is another file, and is not recognised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_durably
from accel_flowers.core.reading import read_file

SEEN_FILE = "seen.safetensors"
SEEN_PARTS = ("train", "val")
"""What a run learns from, and what it chooses its epoch and its temperature by."""

Digests = npt.NDArray[np.int64]
_MAX_BYTES = 2**30
"""Size of the file: that of a hundred million images."""


def short_digests(digests: Sequence[str]) -> Digests:
    """The first 8 bytes of each (of a million images two are alike in one of 37 million data sets), int64 [N]."""
    return np.array(
        [int.from_bytes(bytes.fromhex(each)[:8], "little", signed=True) for each in digests], dtype=np.int64
    )


def save_seen(path: Path, seen: Mapping[str, Digests]) -> None:
    """Write the file: each part sorted, so that equal parts give equal bytes.

    Args:
        path: the file.
        seen: "train" and "val" → digests of their images, int64 [N].
    """
    write_durably(path, save({part: np.unique(seen.get(part, np.empty(0, dtype=np.int64))) for part in SEEN_PARTS}))


def load_seen(model_dir: Path) -> dict[str, Digests] | None:
    """Read the file of a model folder; None where there is none, as in the folders of earlier versions.

    Raises:
        UserError: it is damaged or no file of this kind.
    """
    path = model_dir / SEEN_FILE
    if not os.path.exists(path):
        return None
    try:
        found = load(read_file(path, max_bytes=_MAX_BYTES))
        if {name: (each.dtype, each.ndim) for name, each in found.items()} != dict.fromkeys(
            SEEN_PARTS, (np.dtype(np.int64), 1)
        ):
            raise ValueError(f"it does not hold {' and '.join(SEEN_PARTS)}")
    except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
        raise UserError(
            f"{path}, which says what images trained the model, cannot be read: {error}. Without the file, "
            "evaluate cannot tell them apart, but works."
        ) from None
    return dict(found)
