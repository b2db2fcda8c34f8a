"""JPEGs without the detour over Pillow: decoded into arrays, and no further down than is needed.

Pixels are within one level of Pillow's. What this way does not take (another colour space, an EXIF turn, damage) goes
through `decode_image`.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accel_flowers.data.decoding.ballast import ballast
from accel_flowers.data.decoding.exif import exif_orientation
from accel_flowers.data.decoding.pillow import MAX_ASPECT, MAX_PIXELS, MAX_SCANNED, decode_image
from accel_flowers.data.decoding.turbo import jpeg_pixels, jpeg_size

_UNIT = 16
"""Rows of pixels that are coded together, or a multiple of them."""


class JpegHeader(NamedTuple):
    """What a JPEG says of itself before its pixels."""

    height: int
    width: int
    frame: int
    """Where the frame's height stands, two bytes; 0 where rows do not follow one another in the file (progressive)."""


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG of the usual kind, upright and in colour; None for all others."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    said = None if ballast(data) else jpeg_size(data)
    if said is None:
        return None
    height, width, colour = said
    is_line = max(height, width) > MAX_ASPECT * min(height, width)
    if colour != "YCbCr" or height * width > MAX_PIXELS or is_line:
        return None
    place, frame, exif = 2, 0, b""
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == 0xDA:  # start of scan; three components at once, or rows do not follow one another
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = place + 5 if marker in (0xC0, 0xC1) else 0
        if marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4):
            if exif:
                return None  # which one holds is for Pillow to say
            exif = data[place + 4 : place + 2 + length]
        place += 2 + length
    else:
        return None
    if exif and exif_orientation(exif) != 1:
        return None
    if not frame and data.count(b"\xff\xda") * height * width > MAX_SCANNED:
        return None
    whole = data[place + 4] == 3 and data.endswith(b"\xff\xd9")
    return JpegHeader(height, width, frame if whole else 0)


def decode_rows(data: bytes, header: JpegHeader, rows: int, *, passing: bool = False) -> Tensor | None:
    """Decode a JPEG from the top to a row.

    Args:
        data: the file.
        header: what `read_header` said of it.
        rows: how many of its rows are needed.
        passing: whether the result may be overwritten by this thread's next image, which spares memory its way through
            the caches.

    Returns:
        uint8 [height, width, 3], where whatever lies below `rows` may be anything; None where the file is damaged in a
        way that Pillow may know how to read over, or can tell about.
    """
    # Where the file is said to be less high, decoding ends there. One row more, because the colours of the last one are
    # smoothed with those of the next.
    height = -(-(rows + 1) // _UNIT) * _UNIT
    shape = (header.height, header.width, 3)
    pixels = _scratch(math.prod(shape)).reshape(shape) if passing else np.empty(shape, dtype=np.uint8)
    shortened = header.frame > 0 and height < header.height
    frame: bytes | bytearray = data
    if shortened:
        frame = bytearray(data)
        frame[header.frame : header.frame + 2] = height.to_bytes(2, "big")
    # Strict is the whole image only: of a shortened one the rest is "extraneous bytes". Of other damage to a file that has
    # its end Pillow reads over the same.
    options = {"fastdct": False, "fastupsample": False, "strict": not shortened}
    return None if jpeg_pixels(frame, "RGB", buffer=pixels, **options) is None else torch.from_numpy(pixels)


_of_thread = threading.local()


def _scratch(size: int) -> npt.NDArray[np.uint8]:
    """Bytes of this thread, the same each time."""
    held: npt.NDArray[np.uint8] | None = getattr(_of_thread, "scratch", None)
    if held is None or len(held) < size:
        held = _of_thread.scratch = np.empty(size, dtype=np.uint8)
    return held[:size]


def decode_pixels(data: bytes, name: str) -> Tensor:
    """Decode a whole image of any kind, on the quickest way.

    Args:
        data: the file.
        name: for messages.

    Returns:
        Upright RGB, uint8 [height, width, 3].

    Raises:
        BadImageError: it cannot be decoded.
    """
    header = read_header(data)
    pixels = decode_rows(data, header, header.height) if header else None
    return torch.from_numpy(np.array(decode_image(data, name))) if pixels is None else pixels
