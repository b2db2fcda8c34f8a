"""The orientation that an EXIF block asks for."""

import struct
from typing import Final

from PIL.ExifTags import Base as Tag
from PIL.Image import Transpose

TURNS: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation -> what brings the image upright


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block asks for; 1 where it asks for none.

    Read by hand, as Pillow's reader warns about, or stumbles over, damage in parts that do not matter here.
    """
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some writers put it twice
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == Tag.Orientation:
                (value,) = struct.unpack_from(order + ("L" if kind == 4 else "H"), tiff, entry + 8)
                return value if value in TURNS else 1
    except struct.error:  # the block ends too early
        pass
    return 1
