"""Image files in, upright 8-bit RGB images out.

People's folders hold more than plain JPEGs: sideways phone photos, CMYK scans, 16-bit greys, cut-outs with
transparent edges, half-downloaded files. Everything that reads images goes through this module, so that all of them
either become the image that a person sees in an image viewer or are refused with the file's name and the cause.

Not here: finding files, resizing, tensors, colour management (embedded ICC profiles are ignored), frames after the
first, and formats that are not for photographs. A file's kind is told by its first bytes, never by its name.

All functions may be called from several threads at once.
"""

import contextlib
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    PngImagePlugin,
)
from PIL.ExifTags import Base as Tag

from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding.ballast import ballast
from accel_flowers.data.decoding.exif import TURNS, exif_orientation
from accel_flowers.data.decoding.kinds import NOT_READ_KINDS, PLUGINS, Jpeg, Tiff, not_read
from accel_flowers.data.decoding.turbo import jpeg_pixels, jpeg_size

MAX_PIXELS: Final = 178_956_970
"""Largest width times height that is decoded: where Pillow takes a file for an attack and refuses it by default."""
MAX_ASPECT: Final = 100
"""Largest ratio of the longer to the shorter side: resizing the shorter side of a line to 256 makes a giant of it."""
MAX_BYTES: Final = 2**30
"""Largest image file that is read, for whoever reads it."""
MAX_SCANNED: Final = 10**10
"""Largest number of scans of a JPEG times its pixels. Photographs have ten scans; thousands of empty ones, for which
a hundred kilobytes suffice, take minutes to decode."""
_LARGE: Final = 2**25
"""Pixels from which on one thread decodes at a time: a few images of `MAX_PIXELS` at once would fill the memory."""

# What Pillow 13 lets out for damaged files, as fuzzing showed. It is so wide because its readers are mostly Python that
# trusts the file: a flipped byte ends in whatever unpacking, indexing or an `assert` raises then (AttributeError where
# `python -O` leaves the asserts out). SyntaxError is Pillow's word for a bad header, OSError for bad pixel data.
_PILLOW_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError,
    EOFError, MemoryError, RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip

_SUBFILE, _SUB_IFDS, _DNG = 254, 330, 50706
"""Tags of a TIFF: 1 for a smaller version of another image in the file; where more images are; the version of a DNG."""


class BadImageError(UserError):
    """An image file that cannot be used.

    Attributes:
        name: The file, as the caller named it.
        cause: Why it cannot be used, in plain words.
    """

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)  # both go into `args`, so that the error can be pickled between processes
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `verify_image` learnt: upright `width` and `height` in pixels, Pillow's `mode` and `format` of the file."""

    width: int
    height: int
    mode: str
    format: str


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decodes an image file into an upright RGB image.

    Transparent pixels are laid on white: the colours hidden under them are leftovers that no viewer shows, and a model
    must not learn from what a person cannot see. Grey of more than 8 bits is scaled, not clipped. Of an animation or
    a file of several pages, the first is taken. A broken EXIF block is ignored.

    Args:
        data: The whole file.
        name: What to call the file in errors.

    Returns:
        An image of mode "RGB" (three uint8 channels), turned as its EXIF orientation asks, without metadata.

    Raises:
        BadImageError: The file is empty, damaged, cut short, no image or not of a known kind, has more than
            `MAX_PIXELS` pixels, is a line, or has grey values of which the white point cannot be told.
    """
    with _open(data, name) as image:
        return _upright(image, name)


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """As `decode_image`, of an image that Pillow has opened or that was made by it.

    Args:
        image: Of any mode; it stays as it is.
        name: What to call it in errors.

    Raises:
        BadImageError: As `decode_image`.
    """
    try:
        if refusal := _refusal(image, b""):
            raise BadImageError(name, refusal)
        return _upright(image.copy(), name)
    except BadImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise BadImageError(name, _cause(error, image.format or "picture")) from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    rgb = _load_rgb(image, name)
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = image.copy()  # a plain image that does not hold on to its file
    rgb.info.clear()  # whoever finds the EXIF block in there would turn the image once more
    return rgb


def verify_image(data: bytes, name: str) -> ImageInfo:
    """Checks that `decode_image` can decode an image file, at less cost where the format allows.

    Args:
        data: The whole file.
        name: What to call the file in errors.

    Returns:
        The size as `decode_image` would return it, and how the file stores it.

    Raises:
        BadImageError: Exactly when `decode_image` would raise it.
    """
    with _open(data, name) as image:
        (width, height), mode = image.size, image.mode
        if isinstance(image, Jpeg):
            if not _is_flawless(data):
                image.draft(None, (1, 1))  # 1/8 scale: still reads every byte, yet skips most of the arithmetic
                image.load()  # 8-bit L, RGB or CMYK: nothing after this can fail
        else:
            _load_rgb(image, name)
        if _orientation(image) >= 5:
            width, height = height, width
    return ImageInfo(width, height, mode, image.format or "")


def _is_flawless(data: bytes) -> bool:
    """Whether a JPEG of the usual kind is read to its end without a warning, so that Pillow reads it, too.

    Both decode with libjpeg-turbo. Pillow passes over what it warns of, but takes longer (by half for 96 x 96 pixels, by a
    seventh for 500 x 660): so it is asked about the others only.
    """
    said = jpeg_size(data)
    if said is None or said[2] not in ("YCbCr", "Gray"):
        return False
    # At 1/8 scale, as below.
    return jpeg_pixels(data, "GRAY", min_height=1, min_width=1, min_factor=8) is not None


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What `decode_thumbnail` learnt: `info` as of `verify_image`, the EXIF `orientation` (1 to 8), a `small` upright RGB image."""

    info: ImageInfo
    orientation: int
    small: Image.Image


def decode_thumbnail(data: bytes, name: str, *, side: int) -> Thumbnail:
    """As `verify_image`, and keeps a small version of the image: one decoding for all that an inspection needs.

    Args:
        data: The whole file.
        name: What to call the file in errors.
        side: The small image is reduced by whole numbers as far as both its sides stay at least this long, in pixels.

    Returns:
        The facts and the small image; one that is smaller than `side` keeps its size.

    Raises:
        BadImageError: Exactly when `decode_image` would raise it.
    """
    with _open(data, name) as image:
        (width, height), mode = image.size, image.mode
        stored = image.tag_v2.get(Tag.Orientation, 1) if isinstance(image, Tiff) else None
        if isinstance(image, Jpeg):
            image.draft(None, (side, side))
        rgb = _load_rgb(image, name)  # takes the orientation from a TIFF, which is upright then
        orientation = _orientation(image)
        if orientation >= 5:
            width, height = height, width
        turn = TURNS.get(orientation)
        factor = min(rgb.size) // side
        small = rgb.reduce(factor) if factor > 1 else rgb.copy()
        if stored in TURNS:
            orientation = stored
    info = ImageInfo(width, height, mode, image.format or "")
    return Thumbnail(info, orientation, small if turn is None else small.transpose(turn))


_quiet_lock, _large_lock = threading.Lock(), threading.Lock()
if hasattr(os, "register_at_fork"):  # a worker forked while another thread holds a lock must not find it taken
    for _lock in (_quiet_lock, _large_lock):
        os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops Pillow's warnings; only around what can warn, for the warnings filters belong to the whole process.

    One thread at a time, since interleaved uses would restore each other's filters. Against other code that does the
    same elsewhere no lock can help; hence the filter names Pillow's modules only, harmless should it be left behind.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def _open(data: bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """Opens an image file and turns every error of Pillow in the body of the `with` into a `BadImageError`."""
    if not data:
        raise BadImageError(name, "the file is empty")
    plugin = next((plugin for magic, plugin in PLUGINS if magic.match(data)), None)
    if plugin is None:
        kind = next((kind for magic, kind in NOT_READ_KINDS if magic.match(data)), None)
        raise BadImageError(
            name, not_read(kind) if kind else "not a JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM picture"
        )
    if plugin is Tiff and data[8:10] == b"CR":
        raise BadImageError(name, not_read("a raw photo"))
    if bomb := ballast(data):
        raise BadImageError(name, bomb)
    # Further frames (GIF, animated PNG) and tags (TIFF) are read on opening, with warnings about what is odd in them.
    animated_png = plugin is PngImagePlugin.PngImageFile and b"acTL" in data
    may_warn = animated_png or plugin in (GifImagePlugin.GifImageFile, AvifImagePlugin.AvifImageFile, Tiff)
    try:
        with _quiet() if may_warn else contextlib.nullcontext():
            image = plugin(BytesIO(data))
            pixels = image.width * image.height
            if refusal := _refusal(image, data):
                raise BadImageError(name, refusal)
            if animated_png or (may_warn and pixels > (Image.MAX_IMAGE_PIXELS or pixels)):
                image.load()  # may warn as well: of chunks after the pixels, or once more of the size
        with _large_lock if pixels > _LARGE else contextlib.nullcontext():
            yield image
    except BadImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise BadImageError(name, _cause(error, plugin.format or "picture")) from error


def _refusal(image: Image.Image, data: bytes) -> str | None:
    """Why an image is not decoded at all, judged by its header."""
    size = f"{image.width} x {image.height}"
    pixels = image.width * image.height
    if (
        isinstance(image, Tiff)
        and image.tag_v2.get(_SUBFILE) == 1
        and (_SUB_IFDS in image.tag_v2 or _DNG in image.tag_v2)
    ):
        return not_read("a raw photo")  # what comes first in it is a thumbnail
    if pixels > MAX_PIXELS:
        return f"{size} is more than the {MAX_PIXELS:,} pixels allowed"
    if max(image.size) > MAX_ASPECT * min(image.size):
        return f"{size} is a line: one side may be {MAX_ASPECT} times as long as the other"
    num_scans = data.count(b"\xff\xda") if isinstance(image, Jpeg) else 0
    if num_scans * pixels > MAX_SCANNED:
        return f"a JPEG of {size} in {num_scans:,} scans takes too long to decode"
    return None


def _cause(error: BaseException, kind: str) -> str:
    """Pillow's error in words for somebody who never heard of Pillow; its own words in brackets where they may help."""
    text = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels allowed"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if "truncated" in text.lower():
        return f"the {kind} file is cut short (truncated)"
    if "not identified" in text:
        return f"the {kind} file's header gives a width or height of zero, or an unknown kind of pixel"
    return f"the {kind} file is damaged, cut short or of an unsupported variety ({text or type(error).__name__})"


def _load_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decodes the pixels to mode "RGB", not yet upright (but see `Tiff`): `image` itself where it is just that."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_8_bits(image, name).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of a 16-bit PNG, of which Pillow keeps the high bytes
        image.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba)
    return rgb


def _grey_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scales grey of uint16, int32 or float32 to uint8; Pillow's `convert` would clip it at 255 instead."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, Tiff) else {}
    whites: tuple[int, ...] = (65535,)
    if image.mode == "F":
        whites = (1, 255)
    elif image.mode == "I" and tags:
        whites = (255, 65535)  # of 32 bits, nobody uses all
    elif tags.get(Tag.BitsPerSample) == (12,):
        whites = (4095,)
    low, high = float(values.min()), float(values.max())
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        ranges = " or ".join(f"0 to {white}" for white in whites)
        raise BadImageError(name, f"its grey values go from {low:g} to {high:g}; only {ranges} can be shown")
    grey = np.rint(values.astype(np.float32) * (255 / white)).astype(np.uint8)
    if tags.get(Tag.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    if "transparency" in image.info:  # the one value that stands for a transparent pixel
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of a loaded image; 1 where there is none, or none that can be read."""
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1
