"""Proof: an exported file answers as the model does, on real pictures, from the file to the probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.plural import number_of
from accel_flowers.data.decoding.pillow import decode_image
from accel_flowers.export.pictures import Picture
from accel_flowers.models.saved import SavedModel

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Answer = Callable[[Sequence[bytes]], Floats]
"""Encoded images → probabilities [N, C], from the file to the answer."""

TOLERANCE = 1e-4
"""Largest difference of probabilities in float32: sums in another order differ by some 1e-6, a wrong mean by a hundred times that."""
_LEVELS = 1
_LEVELS_OF_FEW = 2
_FEW = 1e-3
"""Share of values that may be two levels off: cubic filters overshoot where pictures are enlarged, and round in between."""
_LEAST_SPREAD = 1e-3
"""Standard deviation of some class's probability over the pictures, below which a model says the same of all of them."""


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        num_pictures: that were compared.
        difference: largest one of a probability.
        tolerance: what was allowed.
        same: pictures of which both say the same class.
        worst: the picture of the largest difference.
        levels: largest difference of a prepared picture's values, in grey levels; None where the preparation is no part of the file.
        level_effect: what these differences change of the model's own probabilities, at most; None likewise. `difference` is then
            that of the network alone, on the same pixels.
    """

    num_pictures: int
    difference: float
    tolerance: float
    same: int
    worst: str
    levels: int | None = None
    level_effect: float | None = None


def pixels_of(saved: SavedModel, pictures: Sequence[Picture]) -> Bytes:
    """What the model's network takes of them, prepared by Pillow, uint8 [N, 3, H, W]."""
    plain = saved.transform.plainly()
    return np.stack([plain.of_file(picture.data, picture.name).numpy() for picture in pictures])


def reference(saved: SavedModel, pixels: Bytes, *, batch: int = 32) -> Floats:
    """What the model says, in float32, [N, C]."""
    said = []
    with torch.inference_mode():
        for first in range(0, len(pixels), batch):
            said.append(saved.classifier(torch.from_numpy(pixels[first : first + batch])).numpy())
    return np.concatenate(said)


def compare(
    saved: SavedModel,
    pictures: Sequence[Picture],
    answer: Answer,
    *,
    made: Callable[[bytes], Bytes] | None = None,
    tolerance: float = TOLERANCE,
) -> Parity:
    """See that a file answers as the model.

    Args:
        saved: the model.
        pictures: real ones.
        answer: the file's, end to end.
        made: a picture as the file prepares it, uint8 [3, H, W], where that is in the file.
        tolerance: of probabilities; where the preparation is in the file, on the pixels that it makes.

    Raises:
        UserError: it does not, or the model says the same of all pictures, so that nothing would be proven.
    """
    pixels = pixels_of(saved, pictures)
    ours = reference(saved, pixels)
    if len(pictures) < 2 or ours.std(axis=0).max() < _LEAST_SPREAD:
        raise UserError(
            f"The model says the same of {'all' if len(pictures) > 1 else 'the'} {number_of(len(pictures), 'picture')}, as one that "
            "was not trained does: no comparison would prove anything. Give pictures of its classes with --data DIR, or train it first."
        )
    effect = levels = None
    if made is not None:
        its_pixels, levels = _check_levels(pixels, pictures, made)
        plain, ours = ours, reference(saved, its_pixels)
        effect = float(np.abs(ours - plain).max())
    theirs = answer([picture.data for picture in pictures])
    apart = np.abs(theirs - ours).max(axis=1)
    worst = int(apart.argmax())
    same = int((theirs.argmax(axis=1) == ours.argmax(axis=1)).sum())
    if not np.isfinite(theirs).all() or apart[worst] > tolerance:
        raise UserError(
            f"The exported file does not answer as the model does: probabilities differ by up to {apart[worst]:.2g}, where "
            f"{tolerance:.2g} is allowed; {same} of {number_of(len(pictures), 'picture')} get the same class. Worst: "
            f"'{printable(pictures[worst].name)}'. Nothing was written."
        )
    return Parity(len(pictures), float(apart[worst]), tolerance, same, pictures[worst].name, levels, effect)


def _check_levels(pixels: Bytes, pictures: Sequence[Picture], made: Callable[[bytes], Bytes]) -> tuple[Bytes, int]:
    """The file's own pixels, and their largest difference from Pillow's, in grey levels."""
    its = np.stack([made(picture.data) for picture in pictures])
    apart = np.abs(its.astype(np.int16) - pixels)
    for picture, one in zip(pictures, apart, strict=True):
        if one.max() > _LEVELS_OF_FEW or (one > _LEVELS).mean() > _FEW:
            raise UserError(
                f"The exported file prepares '{printable(picture.name)}' otherwise than the model: values differ by up to "
                f"{number_of(int(one.max()), 'grey level')}, where 1 is allowed (2 in one of a thousand values). Nothing was written."
            )
    return its, int(apart.max())


def upright(data: bytes) -> Bytes:
    """An encoded image as a picture, uint8 [height, width, 3]."""
    return np.asarray(decode_image(data, ""))
