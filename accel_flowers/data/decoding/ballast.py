"""Files that are mostly what is no picture: minutes of reading that no photograph needs, seen before a decoder begins.

Decoders step over comments, padding and unknown chunks one by one, some in time that grows with the square of their number.
What is looked at here costs no more than a search through the bytes.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from accel_flowers.data.decoding.turbo import jpeg_size

_HEADER: Final = 2**16
"""Bytes within which a PPM has told its size."""
_FILL: Final = b"\xff" * 2**17
"""Padding in one piece; a segment of a JPEG, in which anything may stand, has half of it."""
_COMMENTS: Final = 1000
"""In a plain PPM: Pillow copies what it has read for each."""
_NUMBER: Final = 24
"""Bytes that a number of a plain PPM takes at most, with what separates it from the next."""
_BALLAST: Final = 2**26
"""Bytes beside the pixels, and so many each pixel may take without compression:"""
_PIXEL: Final = 16

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_PPM = re.compile(rb"P[1-6]" + _SPACE + rb"([0-9]{1,10})" + _SPACE + rb"([0-9]{1,10})[ \t\r\n\v\f#]")


def ballast(data: bytes) -> str | None:
    """Why a file is not given to a decoder; None for all others.

    Args:
        data: the whole file.
    """
    if data[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"):
        return _of_ppm(data)
    pixels = None
    if data.startswith(b"\xff\xd8\xff"):
        if _FILL in data:
            return f"more than {len(_FILL):,} bytes of padding in one piece: that is no photo"
        size = jpeg_size(data) if len(data) > _BALLAST else None
        pixels = size[0] * size[1] if size else None
    elif data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > _BALLAST:
        width, height = struct.unpack_from(">LL", data, 16)
        pixels = width * height
    if pixels is not None and len(data) > _BALLAST + _PIXEL * pixels:
        return f"{len(data):,} bytes for {pixels:,} pixels: most of it is no picture"
    return None


def _of_ppm(data: bytes) -> str | None:
    header = _PPM.match(data, 0, _HEADER)
    if header is None:
        return f"its header has not ended after {_HEADER:,} bytes" if len(data) > _HEADER else None
    pixels = int(header[1]) * int(header[2])
    if data[1:2] in b"123" and (
        len(data) > _HEADER + 3 * _NUMBER * pixels or data.count(b"#", header.end()) > _COMMENTS
    ):
        return f"{len(data):,} bytes of text for {pixels:,} pixels: most of it is no picture"
    return None
