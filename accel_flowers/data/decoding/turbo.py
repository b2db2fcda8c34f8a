"""The one door to simplejpeg: what it refuses, for whatever reason, is None, and Pillow is asked instead.

It knows fewer JPEGs than Pillow does, though both decode with libjpeg-turbo, and has several errors for what it does not
know: a ValueError for damage, a KeyError for colours that are sampled in a way it has no name for (4:4:1, which a lossless
turn of a 4:1:1 photo leaves). None of them says whether the image can be read: that is for the general decoder to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

_REFUSALS = (ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError)


def jpeg_size(data: bytes) -> tuple[int, int, str] | None:
    """Height, width and colour space ("YCbCr", "Gray", ...) of a JPEG; None for what is none, or is not known here."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except _REFUSALS:
        return None
    return height, width, colour


def jpeg_pixels(data: bytes | bytearray, colour: str, **options: Any) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG.

    Args:
        data: the file.
        colour: "RGB" or "GRAY".
        options: of `simplejpeg.decode_jpeg`.

    Returns:
        uint8 [H, W, channels]; None where it is damaged, or not known here.
    """
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colour, **options)
    except _REFUSALS:
        return None
    return pixels
