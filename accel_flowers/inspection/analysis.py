"""One image file → what an inspection keeps of it: a few hundred bytes, whatever the image's size.

Runs in worker processes, so it imports what decoding needs and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from accel_flowers.data.decoding.pillow import BadImageError, decode_thumbnail
from accel_flowers.data.sources.source import ImageSource, read_image

_SIDE = 64
"""Of the small image that the hashes and the features are taken from, in pixels; the hashes look at 32 at most."""
NUM_COLOURS, NUM_DETAILS = 12, 15
NUM_FEATURES = NUM_COLOURS + NUM_DETAILS


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in one file; `cause` says why it cannot be read, and then nothing else is known."""

    cause: str | None = None
    digest: str = ""
    """Of the bytes; equal exactly for identical files."""
    num_bytes: int = 0
    width: int = 0
    """Upright, in pixels, as `height`."""
    height: int = 0
    mode: str = ""
    """How the file stores colours, in Pillow's words: "RGB", "CMYK", "P", "I;16", ..."""
    format: str = ""
    orientation: int = 1
    """Of EXIF: 1 is upright, 2 to 8 ask for a turn or a mirror image."""
    phash: int = 0
    """64 bits: signs of the low frequencies of the brightness."""
    sketch: npt.NDArray[np.uint8] | None = None
    """[256]: brightness of a grid of 16 x 16."""
    features: npt.NDArray[np.float16] | None = None
    """[NUM_FEATURES]: see `features_of`."""


def look_at_rows(images: ImageSource, rows: Sequence[int]) -> list[Seen]:
    """`analyze_image` for a few images: the unit of work of a process."""
    return [_look_at(images, row) for row in rows]


def _look_at(images: ImageSource, row: int) -> Seen:
    try:
        data = read_image(images, row)
    except BadImageError as error:
        return Seen(cause=error.cause)
    return analyze_image(data, images.names[row])


def analyze_image(data: bytes, name: str) -> Seen:
    """Decode one image, and keep what matters.

    Args:
        data: the encoded image.
        name: what to call it in messages.
    """
    try:
        glance = decode_thumbnail(data, name, side=_SIDE)
    except BadImageError as error:
        return Seen(cause=error.cause)
    return Seen(
        digest=hashlib.blake2b(data, digest_size=16).hexdigest(),
        num_bytes=len(data),
        width=glance.info.width,
        height=glance.info.height,
        mode=glance.info.mode,
        format=glance.info.format,
        orientation=glance.orientation,
        phash=_as_number(imagehash.phash(glance.small)),
        sketch=np.asarray(glance.small.convert("L").resize((16, 16), Image.Resampling.BOX)).ravel(),
        features=features_of(glance.small),
    )


def _as_number(bits: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(bits.hash).tobytes(), "big")


def features_of(image: Image.Image) -> npt.NDArray[np.float16]:
    """Which colours are where, and how much detail there is from fine to coarse.

    Returns:
        float16 [NUM_FEATURES]: means of brightness and two colour differences (Y, Cb, Cr, 0 to 255) in each quarter;
        then, as log2(1 + x), the standard deviations of the three and their detail in four octaves, from single pixels of
        64 x 64 to cells of 8.
    """
    pixels = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("YCbCr"), dtype=np.float32)
    half = _SIDE // 2
    quarters = pixels.reshape(2, half, 2, half, 3).mean(axis=(1, 3))
    details = [pixels.std(axis=(0, 1))]
    for _ in range(4):
        side = len(pixels) // 2
        coarse = pixels.reshape(side, 2, side, 2, 3).mean(axis=(1, 3))
        rest = pixels - coarse.repeat(2, axis=0).repeat(2, axis=1)
        details.append(np.sqrt((rest**2).mean(axis=(0, 1))))
        pixels = coarse
    return np.concatenate([quarters.ravel(), np.log2(1 + np.concatenate(details))]).astype(np.float16)
