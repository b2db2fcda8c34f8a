"""What kind of image a file is: told by its first bytes, never by its name; and which of Pillow's readers reads it."""

import re
from typing import Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as Tag

READ_EXTENSIONS: Final[frozenset[str]] = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs", ".mpo",
})  # fmt: skip
"""Lower-case file name suffixes, with the dot, of images that are read."""
_NOT_READ_EXTENSIONS: Final[frozenset[str]] = frozenset({
    ".heic", ".heif", ".heics", ".hif", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".jxl", ".jxr",
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw",
    ".3fr", ".erf", ".kdc", ".dcr", ".mrw", ".x3f", ".rwl", ".iiq",
})  # fmt: skip
IMAGE_EXTENSIONS: Final = READ_EXTENSIONS | _NOT_READ_EXTENSIONS
"""Those that count as images: what is not read here is refused by name, and not passed over. What a file is, its content says."""


class Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG that keeps its EXIF block from Pillow, which parses it on opening, for the resolution, and may warn."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF that keeps all but the orientation from Pillow, which turns TIFFs itself on loading, and may warn."""

    def getexif(self) -> Image.Exif:
        exif = Image.Exif()
        exif[Tag.Orientation] = self.tag_v2.get(Tag.Orientation, 1)
        return exif


# The plugins are called directly, not through `Image.open`: that warns about large images before their size can be
# asked, and about JPEGs whose list of further frames is broken, and opens what nobody wants opened by mistake (EPS
# runs Ghostscript).
PLUGINS: Final[tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), Jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), Tiff),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"P[1-6][\s#]"), PpmImagePlugin.PpmImageFile),
    (re.compile(rb"....ftyp(avi[fs]|(mif1|msf1|miaf).{4,48}?avi[fs])", re.DOTALL), AvifImagePlugin.AvifImageFile),
)

# What other photos begin with, and what they are called. Cameras' raw files in the form of a TIFF are seen when it is open.
NOT_READ_KINDS: Final = tuple(
    (re.compile(start, re.DOTALL), kind)
    for start, kind in (
        (
            rb"....ftypcrx|II\x1a\0\0\0HEAPCCDR|II\*\0....CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM",
            "a raw photo",
        ),
        (rb"....ftyp(hei.|hev.|mif1|msf1)", "a HEIC photo"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 photo"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL photo"),
        (rb"II\xbc\x01", "a JPEG XR photo"),
    )
)
NOT_READ: Final = "a kind that is not read here"
START: Final = 80
"""Bytes of a file by which its kind is told."""


def begins_like_image(start: bytes) -> bool:
    """Whether a file of this content, of which the first `START` bytes suffice, is an image, whatever its name."""
    return any(magic.match(start) for magic, _ in (*PLUGINS, *NOT_READ_KINDS))


def not_read(kind: str) -> str:
    return f"{kind}, {NOT_READ}: convert it to JPEG"
