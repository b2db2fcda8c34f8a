"""Images made in memory: one small scene with four differently coloured corners, saved as every kind of file."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageChops
from torch import Tensor

WIDTH, HEIGHT = 48, 32
ORIENTATION, MAKE = 0x0112, 0x010F

COLOURS = ((220, 30, 40), (30, 200, 60), (40, 50, 210), (230, 220, 50))
"""Upper left, upper right, lower left, lower right."""

GREYS = (20, 90, 160, 240)
"""The same corners of the grey scene."""


def corners(values: Any, dtype: Any = np.uint8) -> NDArray[Any]:
    """An array of HEIGHT x WIDTH (x channels) whose four quarters hold the four values."""
    values = np.asarray(values, dtype)
    array = np.empty((HEIGHT, WIDTH, *values.shape[1:]), dtype)
    for quarter, value in enumerate(values):
        rows = slice(0, HEIGHT // 2) if quarter < 2 else slice(HEIGHT // 2, HEIGHT)
        columns = slice(0, WIDTH // 2) if quarter % 2 == 0 else slice(WIDTH // 2, WIDTH)
        array[rows, columns] = value
    return array


def scene() -> Image.Image:
    """The coloured scene."""
    return Image.fromarray(corners(COLOURS))


def grey_scene() -> Image.Image:
    """The grey scene."""
    return Image.fromarray(corners(GREYS))


def cut_out() -> Image.Image:
    """The coloured scene, its upper left quarter transparent: what shows there is white, not the colour under it."""
    image = scene().convert("RGBA")
    image.putalpha(Image.fromarray(corners((0, 255, 255, 255))))
    return image


def grey_cut_out() -> Image.Image:
    """The grey scene, its upper left quarter transparent."""
    image = grey_scene().convert("LA")
    image.putalpha(Image.fromarray(corners((0, 255, 255, 255))))
    return image


def check_no_lean(plain: Tensor, other: Tensor) -> None:
    """See that two ways differ to both sides alike: no channel is brighter, none has more contrast, over all images.

    A level up or down at random is nothing that a network could learn from; a lean would be.

    Args:
        plain: integers of 0..255, [B, 3, H, W].
        other: the same images.
    """
    lean = (other - plain).double().mean(dim=(0, 2, 3))
    contrast = other.double().std(dim=(0, 2, 3)) / plain.double().std(dim=(0, 2, 3))
    assert lean.abs().max() < 0.005, lean
    assert (contrast - 1).abs().max() < 1e-4, contrast


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file of the kind that Pillow knows under this name."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block that asks for this orientation."""
    block = Image.Exif()
    block[ORIENTATION] = orientation
    block[MAKE] = "A camera maker whose name does not fit into four bytes"
    return block.tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file, with its checksum."""
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(array: NDArray[Any], colour_type: int, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of the array as it is, 8 or 16 bits a sample; Pillow does not write all kinds itself."""
    height, width = array.shape[:2]
    header = struct.pack(">LLBBBBB", width, height, 8 * array.itemsize, colour_type, 0, 0, interlaced)
    passes = [array]
    if interlaced:
        steps = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
        passes = [array[top::down, left::right] for top, down, left, right in steps]
    samples = array.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(samples).tobytes() for part in passes for row in part)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(
    array: NDArray[Any], photometric: int, order: str = "<", bits: int | None = None, extra: int | None = None
) -> bytes:
    """An uncompressed TIFF of the array as it is; `extra` says what its last channel is: 1 premultiplied, 2 plain alpha."""
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    pixels = array.astype(array.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    if bits == 12:  # two samples in three bytes
        pairs = array.reshape(-1, 2).astype(np.uint32)
        pixels = b"".join(int(high << 12 | low).to_bytes(3, "big") for high, low in pairs)
    depth = bits or 8 * array.itemsize
    sample_format = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    shorts = {256: width, 257: height, 258: depth, 259: 1, 262: photometric, 277: channels, 278: height}
    shorts[339] = sample_format
    if extra is not None:
        shorts[338] = extra
    entries = {tag: struct.pack(order + "HHLHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    depths = struct.pack(order + f"{channels}H", *[depth] * channels) if channels > 2 else b""
    end = 8 + 2 + 12 * (len(entries) + 2) + 4
    if channels == 2:  # fits into the entry itself
        entries[258] = struct.pack(order + "HHLHH", 258, 3, 2, depth, depth)
    elif channels > 2:
        entries[258] = struct.pack(order + "HHLL", 258, 3, channels, end)
    entries[273] = struct.pack(order + "HHLL", 273, 4, 1, end + len(depths))
    entries[279] = struct.pack(order + "HHLL", 279, 4, 1, len(pixels))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "LH", 8, len(entries))
    return head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + depths + pixels


def bmp_rle8() -> bytes:
    """A run-length coded BMP of the scene, each row two runs of 24 pixels."""
    palette = b"".join(bytes((blue, green, red, 0)) for red, green, blue in COLOURS)
    half = WIDTH // 2
    rows = [bytes((half, 2 * lower, half, 2 * lower + 1, 0, 0)) for lower in [1] * (HEIGHT // 2) + [0] * (HEIGHT // 2)]
    pixels = b"".join(rows) + b"\0\1"
    start = 14 + 40 + len(palette)
    info = struct.pack("<LllHHLLllLL", 40, WIDTH, HEIGHT, 1, 8, 1, len(pixels), 0, 0, len(COLOURS), 0)
    return b"BM" + struct.pack("<LLL", start + len(pixels), 0, start) + info + palette + pixels


def ycck_jpeg() -> bytes:
    """A JPEG as Photoshop writes it: inverted CMYK, its first three channels as YCbCr, and an Adobe marker that says so."""
    cmyk = scene().convert("CMYK")
    inks = Image.merge("RGB", cmyk.split()[:3])
    # Stored are Y, Cb and Cr of the inverse of the stored (inverted) inks. Pillow inverts on saving; so do it twice.
    luma = inks.convert("YCbCr")
    stored = Image.merge("CMYK", [ImageChops.invert(channel) for channel in luma.split()] + [cmyk.split()[3]])
    data = save(stored, "JPEG", quality=95)
    marker = data.index(b"Adobe")
    return data[: marker + 11] + b"\2" + data[marker + 12 :]


def without_segment(data: bytes, marker: bytes) -> bytes:
    """A JPEG without its first segment of this marker."""
    start = data.index(marker)
    (length,) = struct.unpack_from(">H", data, start + 2)
    return data[:start] + data[start + 2 + length :]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = png_chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))


def of_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG, BMP, GIF or TIFF of this module with another size in its header than its pixels have."""
    changed = bytearray(data)
    match data[:2]:
        case b"\xff\xd8":
            frame = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
            changed[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
        case b"BM":
            changed[18:26] = struct.pack("<ll", width, height)
        case b"GI":
            frame = data.rindex(struct.pack("<HH", WIDTH, HEIGHT))
            changed[6:10] = changed[frame : frame + 4] = struct.pack("<HH", width, height)
        case b"II":
            for tag, value in ((256, width), (257, height)):
                at = data.index(struct.pack("<HHL", tag, 3, 1))
                changed[at + 8 : at + 10] = struct.pack("<H", value)
    return bytes(changed)


def tiff_with_odd_tag() -> bytes:
    """A sound image with a tag of which Pillow warns: the name of the camera's maker, longer than the file."""
    sound = save(scene(), "TIFF", tiffinfo={MAKE: "A maker of cameras"})
    count = sound.index(struct.pack("<HHL", MAKE, 2, len("A maker of cameras") + 1)) + 4
    return sound[:count] + struct.pack("<L", 10**6) + sound[count + 4 :]


def repaired_png(data: bytes) -> bytes:
    """A PNG with its checksums put right, so that damage gets past them."""
    result, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, at)
        result += png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return result


def animation() -> dict[str, Any]:
    """Options for a second, black frame."""
    return {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))], "duration": 100}


def _palette() -> Image.Image:
    return scene().quantize(8)


def _index_of_corner() -> int:
    return int(np.asarray(_palette())[2, 2])


def _palette_with_alpha() -> Image.Image:
    image = _palette()
    image.info["transparency"] = bytes(0 if entry == _index_of_corner() else 255 - (entry > 6) for entry in range(8))
    return image


DEEP = tuple(257 * grey for grey in GREYS)
DEEP_COLOURS = tuple(tuple(256 * channel + 7 for channel in colour) for colour in COLOURS)
WHITE_FIRST = ((255, 255, 255), *COLOURS[1:])
GREY_COLOURS = tuple((grey,) * 3 for grey in GREYS)
WHITE_FIRST_GREY = ((255, 255, 255), *GREY_COLOURS[1:])
BLACK_WHITE = ((0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0))

Maker = Callable[[], bytes]

KINDS: dict[str, tuple[Maker, Any, int]] = {
    # name: (maker of the file, colours of the four corners once decoded, tolerance)
    "jpeg": (lambda: save(scene(), "JPEG", quality=95), COLOURS, 6),
    "jpeg subsampled": (lambda: save(scene(), "JPEG", quality=75, subsampling=2), COLOURS, 14),
    "jpeg progressive": (lambda: save(scene(), "JPEG", quality=95, progressive=True), COLOURS, 6),
    "jpeg grey": (lambda: save(grey_scene(), "JPEG", quality=95), GREY_COLOURS, 4),
    "jpeg rgb": (lambda: save(scene(), "JPEG", quality=95, keep_rgb=True), COLOURS, 6),
    "jpeg restart": (lambda: save(scene(), "JPEG", quality=95, restart_marker_blocks=2), COLOURS, 6),
    "jpeg exif": (lambda: save(scene(), "JPEG", quality=95, exif=exif(1)), COLOURS, 6),
    "jpeg cmyk": (lambda: save(scene().convert("CMYK"), "JPEG", quality=95), COLOURS, 6),
    "jpeg ycck": (ycck_jpeg, COLOURS, 8),
    "jpeg cmyk without marker": (
        lambda: without_segment(save(scene().convert("CMYK"), "JPEG", quality=95), b"\xff\xee"),
        COLOURS,  # inverted like Adobe's, as browsers take it
        6,
    ),
    "jpeg mpo": (lambda: save(scene(), "MPO", quality=95, **animation()), COLOURS, 6),
    "png": (lambda: save(scene(), "PNG"), COLOURS, 0),
    "png interlaced": (lambda: png(corners(COLOURS), 2, interlaced=True), COLOURS, 0),
    "png 1-bit": (lambda: save(grey_scene().point(lambda v: 255 * (90 <= v < 200), "1"), "PNG"), BLACK_WHITE, 0),
    "png palette": (lambda: save(_palette(), "PNG"), COLOURS, 4),
    "png palette one transparent": (lambda: save(_palette(), "PNG", transparency=_index_of_corner()), WHITE_FIRST, 4),
    "png palette alpha": (lambda: save(_palette_with_alpha(), "PNG"), WHITE_FIRST, 4),
    "png grey": (lambda: save(grey_scene(), "PNG"), GREY_COLOURS, 0),
    "png grey transparent": (lambda: save(grey_scene(), "PNG", transparency=GREYS[0]), WHITE_FIRST_GREY, 0),
    "png grey alpha": (lambda: save(grey_cut_out(), "PNG"), WHITE_FIRST_GREY, 0),
    "png rgb transparent": (lambda: save(scene(), "PNG", transparency=COLOURS[0]), WHITE_FIRST, 0),
    "png rgba": (lambda: save(cut_out(), "PNG"), WHITE_FIRST, 0),
    "png grey16": (lambda: png(corners(DEEP, np.uint16), 0), GREY_COLOURS, 0),
    "png grey16 transparent": (
        lambda: png(corners(DEEP, np.uint16), 0, png_chunk(b"tRNS", struct.pack(">H", DEEP[0]))),
        WHITE_FIRST_GREY,
        0,
    ),
    "png grey16 alpha": (
        lambda: png(np.dstack([corners(DEEP, np.uint16), corners((0, 65535, 65535, 65535), np.uint16)]), 4),
        WHITE_FIRST_GREY,
        0,
    ),
    "png rgb16": (lambda: png(corners(DEEP_COLOURS, np.uint16), 2), COLOURS, 0),
    "png rgb16 transparent": (
        lambda: png(corners(DEEP_COLOURS, np.uint16), 2, png_chunk(b"tRNS", struct.pack(">3H", *DEEP_COLOURS[0]))),
        WHITE_FIRST,
        0,
    ),
    "png rgba16": (
        lambda: png(np.dstack([corners(DEEP_COLOURS, np.uint16), corners((0, 65535, 65535, 65535), np.uint16)]), 6),
        WHITE_FIRST,
        0,
    ),
    "png animated": (lambda: save(scene(), "PNG", **animation()), COLOURS, 0),
    "webp": (lambda: save(scene(), "WEBP", quality=95), COLOURS, 16),
    "webp lossless": (lambda: save(scene(), "WEBP", lossless=True), COLOURS, 0),
    "webp alpha": (lambda: save(cut_out(), "WEBP", lossless=True), WHITE_FIRST, 0),
    "webp animated": (lambda: save(scene(), "WEBP", lossless=True, **animation()), COLOURS, 0),
    "gif": (lambda: save(_palette(), "GIF"), COLOURS, 4),
    "gif grey": (lambda: save(grey_scene(), "GIF"), GREY_COLOURS, 0),
    "gif transparent": (lambda: save(_palette(), "GIF", transparency=_index_of_corner()), WHITE_FIRST, 4),
    "gif animated": (lambda: save(_palette(), "GIF", **animation()), COLOURS, 4),
    "bmp": (lambda: save(scene(), "BMP"), COLOURS, 0),
    "bmp palette": (lambda: save(_palette(), "BMP"), COLOURS, 4),
    "bmp grey": (lambda: save(grey_scene(), "BMP"), GREY_COLOURS, 0),
    "bmp rle": (bmp_rle8, COLOURS, 0),
    "ppm": (lambda: save(scene(), "PPM"), COLOURS, 0),
    "pgm": (lambda: save(grey_scene(), "PPM"), GREY_COLOURS, 0),
    "pgm16": (lambda: save(Image.fromarray(corners(DEEP, np.uint16)), "PPM"), GREY_COLOURS, 0),
    "ppm plain": (
        lambda: b"P3\n%d %d\n255\n" % (WIDTH, HEIGHT) + b" ".join(b"%d" % v for v in corners(COLOURS).flat) + b"\n",
        COLOURS,
        0,
    ),
    "tiff": (lambda: save(scene(), "TIFF"), COLOURS, 0),
    "tiff lzw": (lambda: save(scene(), "TIFF", compression="tiff_lzw"), COLOURS, 0),
    "tiff jpeg": (lambda: save(scene(), "TIFF", compression="jpeg", quality=95), COLOURS, 8),
    "tiff 1-bit": (
        lambda: save(grey_scene().point(lambda v: 255 * (90 <= v < 200), "1"), "TIFF", compression="group4"),
        BLACK_WHITE,
        0,
    ),
    "tiff palette": (lambda: save(_palette(), "TIFF"), COLOURS, 4),
    "tiff rgba": (lambda: save(cut_out(), "TIFF"), WHITE_FIRST, 0),
    "tiff grey alpha": (lambda: save(grey_cut_out(), "TIFF"), WHITE_FIRST_GREY, 0),
    "tiff grey premultiplied": (
        lambda: tiff(np.asarray(grey_cut_out().convert("La")), 1, extra=1),
        WHITE_FIRST_GREY,
        0,
    ),
    "tiff rgb premultiplied": (lambda: tiff(np.asarray(cut_out().convert("RGBa")), 2, extra=1), WHITE_FIRST, 0),
    "tiff cmyk": (lambda: save(scene().convert("CMYK"), "TIFF"), COLOURS, 2),
    "tiff ycbcr": (lambda: save(scene().convert("YCbCr"), "TIFF", compression="raw"), COLOURS, 3),
    "tiff lab": (lambda: save(scene().convert("LAB"), "TIFF"), COLOURS, 10),
    "tiff grey16": (lambda: tiff(corners(DEEP, np.uint16), 1), GREY_COLOURS, 0),
    "tiff grey16 packed": (
        lambda: save(Image.fromarray(corners(DEEP, np.uint16)), "TIFF", compression="tiff_adobe_deflate"),
        GREY_COLOURS,
        0,
    ),
    "tiff grey16 big-endian": (lambda: tiff(corners(DEEP, np.uint16), 1, ">"), GREY_COLOURS, 0),
    "tiff grey16 white is zero": (lambda: tiff(65535 - corners(DEEP, np.uint16), 0), GREY_COLOURS, 0),
    "tiff grey12": (lambda: tiff(corners(DEEP, np.uint16) >> 4, 1, bits=12), GREY_COLOURS, 1),
    "tiff grey32": (lambda: tiff(corners(DEEP, np.uint32), 1), GREY_COLOURS, 0),
    "tiff grey32 of 8 bits": (lambda: tiff(corners(GREYS, np.int32), 1), GREY_COLOURS, 0),
    "tiff rgb16": (lambda: tiff(corners(DEEP_COLOURS, np.uint16), 2), COLOURS, 0),
    "tiff float to 1": (lambda: tiff(corners(GREYS, np.float32) / 255, 1), GREY_COLOURS, 0),
    "tiff float to 255": (lambda: tiff(corners(GREYS, np.float32), 1), GREY_COLOURS, 0),
    "tiff pages": (lambda: save(scene(), "TIFF", **animation()), COLOURS, 0),
}


def jpeg_sampled(luma: tuple[int, int]) -> bytes:
    """A whole JPEG of noise whose brightness is sampled so many times as often as its colours, across and down.

    Encoders do not write every kind (4:4:1, which is (1, 4), comes of a lossless turn of a 4:1:1 photo). But the kinds of one
    product hold their blocks in the same order: so one that is written has its header changed to another.
    """
    across, down = luma
    written, as_written = {1: ((1, 1), "444"), 2: ((2, 1), "422"), 4: ((4, 1), "411")}[across * down]
    noise = np.random.default_rng(0).integers(0, 256, (4 * 8 * written[1], 4 * 8 * written[0], 3), dtype=np.uint8)
    data = bytearray(simplejpeg.encode_jpeg(noise, colorsubsampling=as_written))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 16 * written[0] + written[1]
    data[frame + 5 : frame + 9] = struct.pack(">HH", 32 * down, 32 * across)
    data[frame + 11] = 16 * across + down
    return bytes(data)
