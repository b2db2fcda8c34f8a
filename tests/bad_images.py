"""A folder of bad images, and of sound ones that look bad, each with what must become of it.

`write_corpus` makes it, always the same: class folders under `photos`, named after the kind of file, and beside them
`unloadable`, whose names the loader of image folders cannot take. `scripts/bad_images.py` is its command line.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from tests import images
from tests.conftest import draw_image
from tests.images import KINDS, ORIENTATION, png_chunk, save, scene

REFUSED, ACCEPTED, IGNORED = "refused", "accepted", "ignored"
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Verdict:
    """What must become of a file."""

    verdict: str
    """refused: told by its name and the cause; accepted: an image like any other; ignored: no image by its name."""
    because: str
    """What is special about the file."""
    words: str = ""
    """Part of the cause that is told where it is refused."""


def write_corpus(root: Path) -> dict[str, Verdict]:
    """Write all files and `verdicts.json`.

    Args:
        root: new or empty folder.

    Returns:
        File, relative to `root` with forward slashes → verdict.
    """
    verdicts = {}
    for name, make, verdict in _all_files():
        path = root / os.fsdecode(name.encode(errors="surrogateescape"))
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        verdicts[name] = verdict
    (root / "outside.txt").write_text("no picture\n")
    (root / "outside.dat").write_bytes(_drawn(99))
    told = {name: asdict(verdict) for name, verdict in sorted(verdicts.items())}
    (root / "verdicts.json").write_text(json.dumps(told, indent=1) + "\n")
    return verdicts


def _all_files() -> Iterator[tuple[str, Make, Verdict]]:
    for kind, files in {
        "jpeg": (*_jpegs(), *_jpegs_by_header(), *_not_images()),
        "png": _pngs(),
        "webp": _webps(),
        "gif": _gifs(),
        "tiff": _tiffs(),
        "other": _others(),
        "not files": _not_files(),
        "names": _names(),
    }.items():
        for name, make, verdict in files:
            yield f"photos/{kind}/{name}", make, verdict
    for name, make, verdict in _unloadable_names():
        yield f"unloadable/names/{name}", make, verdict


File = tuple[str, Make, Verdict]


def _refused(name: str, data: bytes, words: str, because: str) -> File:
    return name, lambda path: path.write_bytes(data), Verdict(REFUSED, because, words)


def _accepted(name: str, data: bytes, because: str) -> File:
    return name, lambda path: path.write_bytes(data), Verdict(ACCEPTED, because)


def _kind(name: str) -> bytes:
    return KINDS[name][0]()


def _drawn(number: int) -> bytes:
    """An image like no other."""
    return save(draw_image("rose", number), "PNG")


def _cut(name: str, data: bytes, ending: str) -> Iterator[File]:
    """The file cut short at several places behind its first bytes."""
    for share in (10, 50, 90):
        words = f"{name} file"
        yield _refused(f"cut at {share} %{ending}", data[: max(16, len(data) * share // 100)], words, "cut short")


def _flipped(data: bytes, place: int, mask: int = 0xFF) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def _textured(size: int = 64) -> Image.Image:
    """An image with something everywhere, so that its file has a middle."""
    return draw_image("tulip", 5, (size, size))


def _jpegs() -> Iterator[File]:
    whole = save(_textured(), "JPEG", quality=90)
    progressive = save(_textured(), "JPEG", quality=90, progressive=True)
    yield _refused("empty.jpg", b"", "the file is empty", "zero bytes, as an interrupted copy leaves")
    yield from _cut("JPEG", whole, ".jpg")
    yield _refused("without its end.jpg", whole[:-40], "cut short", "the last lines are missing")
    yield _refused("progressive, cut.jpg", progressive[: len(progressive) // 2], "cut short", "half of the scans")
    yield _refused("header alone.jpg", whole[: whole.index(b"\xff\xda")], "JPEG file", "no pixels behind the header")
    yield _refused("three bytes.jpg", b"\xff\xd8\xff", "JPEG file", "the first bytes alone")
    yield _refused("many scans.jpg", _many_scans(), "scans takes too long", "100 KB that take minutes to decode")
    scan = whole.index(b"\xff\xda") + 40
    yield _accepted("flipped in the scan.jpg", _flipped(whole, scan), "damage that no viewer notices either")
    yield _accepted("CMYK.jpg", _kind("jpeg cmyk"), "print colours")
    yield _accepted("grey.JPEG", _kind("jpeg grey"), "one channel, and an ending in capitals")
    yield _accepted("progressive.jpe", progressive, "progressive")
    yield _accepted("phone.JPG", save(scene(), "JPEG", exif=images.exif(6)), "held sideways")
    yield _accepted("no exif.jpg", save(scene(), "JPEG", exif=b"Exif\0\0garbage"), "broken EXIF")
    yield _accepted(
        "exif loop.jpg", save(scene(), "JPEG", exif=_exif(0x8769, 4, 1, 8)), "an EXIF block that leads to itself"
    )
    for value in (0, 9, 65535):
        exif = images.exif(value)
        yield _accepted(f"orientation {value}.jpg", save(scene(), "JPEG", exif=exif), "an orientation that is none")
    words = _exif(ORIENTATION, 2, 12, 26) + b"upside down\0"
    yield _accepted("orientation in words.jpg", save(scene(), "JPEG", exif=words), "a text for a number")
    yield _accepted("profile.jpg", save(scene(), "JPEG", icc_profile=b"no profile" * 9), "a broken colour profile")
    yield _accepted("and more.jpg", whole + b"<?php system($_GET['x']); ?>" * 9, "something behind the picture")
    yield _accepted("really a PNG.jpg", _drawn(1), "another kind than its name says")


def _jpegs_by_header() -> Iterator[File]:
    whole = _kind("jpeg")
    quantization, huffman = whole.index(b"\xff\xdb"), whole.index(b"\xff\xc4")
    for width, height in ((65_500, 65_500), (13_400, 13_400)):
        data = images.of_size(whole, width, height)
        yield _refused(f"{width} wide.jpg", data, "pixels allowed", "a few bytes that claim a giant")
    yield _refused("0 high.jpg", images.of_size(whole, 48, 0), "JPEG file", "no height")
    yield _accepted("larger than it is.jpg", images.of_size(whole, 640, 480), "ten times its pixels: the rest is grey")
    yield _refused("a line.jpg", images.of_size(whole, 1, 20_000), "is a line", "resizing makes a giant of it")
    data = images.without_segment(whole, b"\xff\xc0")
    yield _refused("no frame.jpg", data, "JPEG file", "without the segment that tells its size")
    data = whole[: huffman + 5] + b"\xff" * 16 + whole[huffman + 21 :]
    yield _refused("huffman table.jpg", data, "JPEG file", "a table with impossible codes")
    yield _refused("length.jpg", _flipped(whole, quantization + 2), "JPEG file", "a segment longer than the file")
    tiny = save(Image.new("RGB", (1, 1), "red"), "JPEG")
    yield _accepted("1 pixel.jpg", tiny, "the smallest picture there is")


def _many_scans() -> bytes:
    """A progressive JPEG of 16 million pixels whose last scan, of nothing, is repeated."""
    data = save(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + data[-2:]


def _exif(tag: int, kind: int, count: int, value: int) -> bytes:
    """A block of one entry, followed by itself."""
    return b"Exif\0\0II*\0" + struct.pack("<LHHHLLL", 8, 1, tag, kind, count, value, 8)


def _not_images() -> Iterator[File]:
    """What downloads and disguises leave under the name of an image."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("1.jpg"), b"x")
    contents = {
        "text": b"To whom it may concern\n",
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "pdf": b"%PDF-1.4\n1 0 obj << /OpenAction << /S /JavaScript >> >> endobj",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n(id) (r) file",
        "zip": packed.getvalue(),
        "gzip": gzip.compress(_kind("jpeg"), mtime=0),
        "program": b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff" + bytes(200),
        "elf": b"\x7fELF\2\1\1" + bytes(200),
        "icon": struct.pack("<HHH", 0, 1, 1) + bytes(100),
        "zeros": bytes(5000),
        "noise": b"\1" + random.Random(1).randbytes(5000),
        "pickle": b"\x80\4\x95cos\nsystem\n(S'exit'\ntR.",
    }
    for name, data in contents.items():
        yield _refused(f"{name}.jpg", data, "not a JPEG, PNG", f"{name} under the name of a picture")
    yield _refused("iphone.jpg", b"\0\0\0\x18ftypheic" + bytes(50), "HEIC", "a kind that is not read")


def _pngs() -> Iterator[File]:
    whole = save(_textured(), "PNG")
    middle, data_start = len(whole) // 2, whole.index(b"IDAT")
    yield from _cut("PNG", whole, ".png")
    yield _refused("header alone.png", whole[: data_start - 4], "PNG file", "nothing behind the size")
    yield _refused("signature.png", whole[:8], "PNG file", "the first bytes alone")
    yield _refused("checksum of the header.png", _flipped(whole, 20, 1), "PNG file", "a size that its checksum denies")
    yield _refused("pixels.png", _flipped(whole, middle), "PNG file", "a byte of the pixels flipped")
    broken = images.repaired_png(_flipped(whole, data_start + 4))
    yield _refused("no zlib.png", broken, "PNG file", "pixels that are not compressed data, with a right checksum")
    short = images.png_of_size(64, 64) + png_chunk(b"IEND", b"")
    yield _refused("too few pixels.png", short, "PNG file", "less data than its size needs")
    for width, height in ((30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        data = images.png_of_size(width, height)
        yield _refused(f"{width} wide.png", data, "pixels allowed", "a few bytes that claim a giant")
    yield _refused("bomb.png", _png_bomb(20_000), "pixels allowed", "50 KB that unpack to 400 megapixels")
    yield _refused("0 wide.png", images.png_of_size(0, 5), "width or height of zero", "no width")
    yield _refused("a line.png", save(Image.new("L", (1, 20_000)), "PNG"), "is a line", "resizing makes a giant of it")
    bomb = zlib.compress(bytes(50_000_000), 9)
    for kind, content in {
        "zTXt": b"Comment\0\0" + bomb,
        "iTXt": b"Comment\0\1\0\0\0" + bomb,
        "iCCP": b"profile\0\0" + bomb,
    }.items():
        data = images.png(images.corners(images.COLOURS), 2, png_chunk(kind.encode(), content))
        yield _refused(f"{kind}.png", data, "PNG file", "a text or profile that unpacks to 50 MB")
    palette = _kind("png palette")
    at = palette.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">L", palette, at)
    yield _refused(
        "no palette.png", palette[:at] + palette[at + 12 + length :], "PNG file", "colours by number, unnamed"
    )
    for kind in ("palette alpha", "grey16", "rgba16", "rgba", "1-bit", "interlaced", "animated"):
        yield _accepted(f"{kind}.png", _kind(f"png {kind}"), f"a PNG of the kind {kind}")
    yield _accepted("no end.png", whole[:-12], "the mark of the end alone is missing")
    yield _accepted("1 pixel.PNG", save(Image.new("RGB", (1, 1), "blue"), "PNG"), "the smallest picture there is")
    animation = images.png(images.corners(images.COLOURS), 2, png_chunk(b"acTL", bytes(8)))
    yield _accepted("no frames.apng", animation, "an animation without frames: its picture is there")


def _png_bomb(side: int) -> bytes:
    """Bit by bit as small as a PNG can be."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">LLBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


_WEBP_BOMB = "524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03"
"""16,383 x 16,383 black pixels, as `Image.save` writes them in seconds and with a gigabyte of memory."""


def _webps() -> Iterator[File]:
    whole = save(_textured(), "WEBP", quality=90)
    animated = _kind("webp animated")
    yield from _cut("WEBP", whole, ".webp")
    yield _refused("animated, cut.webp", animated[: len(animated) // 2], "WEBP file", "an animation without its end")
    yield _refused("header alone.webp", whole[:12], "WEBP file", "the first bytes alone")
    yield _refused("kind.webp", whole.replace(b"VP8 ", b"VP9 "), "WEBP file", "an unknown kind of pixels")
    yield _refused("bomb.webp", bytes.fromhex(_WEBP_BOMB), "pixels allowed", "34 bytes that unpack to a gigabyte")
    for kind in ("webp", "webp alpha", "webp animated", "webp lossless"):
        yield _accepted(f"{kind}.webp", _kind(kind), f"a WebP of the kind {kind}")


def _gifs() -> Iterator[File]:
    whole = save(_textured().quantize(64), "GIF")
    start = whole.index(b",\0\0\0\0")
    yield from _cut("GIF", whole, ".gif")
    yield _refused("signature.gif", b"GIF89a", "GIF file", "the first bytes alone")
    yield _refused("no frames.gif", whole[:start] + b";", "GIF file", "an end without a picture")
    huge = images.of_size(_kind("gif grey"), 65_535, 65_535)
    yield _refused("giant.gif", huge, "pixels allowed", "a few bytes that claim a giant")
    beyond = bytearray(_kind("gif grey"))
    frame = beyond.rindex(b",\0\0\0\0")
    beyond[frame + 1 : frame + 5] = b"\xff\xff\xff\xff"
    yield _refused("frame far out.gif", bytes(beyond), "pixels allowed", "a frame far outside of the picture")
    for kind in ("gif", "gif animated", "gif transparent", "gif grey"):
        yield _accepted(f"{kind}.gif", _kind(kind), f"a GIF of the kind {kind}")


def _tiffs() -> Iterator[File]:
    whole = save(_textured(), "TIFF")
    packed = save(_textured(), "TIFF", compression="tiff_lzw")
    plain = images.tiff(images.corners(images.GREYS), 1)
    yield _refused("cut.tif", whole[: len(whole) // 2], "TIFF file", "cut short")
    yield _refused("cut lzw.tif", packed[: len(packed) // 2], "TIFF file", "compressed and cut short")
    yield _refused("header alone.tif", whole[:8], "TIFF file", "nothing behind the header")
    yield _refused("far.tif", b"II*\0\xff\xff\xff\xff", "TIFF file", "a directory four gigabytes away")
    many = b"II*\0" + struct.pack("<LH", 8, 65_535) + struct.pack("<HHLL", 256, 3, 1, 48) * 9
    yield _refused("many tags.tif", many, "TIFF file", "a directory of 65,535 tags, nine of them there")
    yield _refused("giant.tif", images.of_size(plain, 60_000, 60_000), "pixels allowed", "claims a giant")
    counts = plain.replace(struct.pack("<HHLL", 279, 4, 1, 48 * 32), struct.pack("<HHLL", 279, 4, 2**30, 8))
    yield _accepted("strips.tif", counts, "a billion strips, of which one holds all")
    sizes = packed.index(struct.pack("<HH", 279, 4)) + 8
    absurd = packed[:sizes] + b"\xff" * 4 + packed[sizes + 4 :]
    yield _refused("strip of gigabytes.tif", absurd, "TIFF file", "a compressed strip of four gigabytes")
    far = plain.replace(struct.pack("<HHL", 273, 4, 1), struct.pack("<HHL", 273, 2, 1))
    yield _refused("offset in words.tif", far, "TIFF file", "a text for a number")
    depth = images.tiff(images.corners((0, 1, 2, 70_000), "int32"), 1)
    yield _refused("depth.tif", depth, "its grey values go from 0 to 70000", "values whose white nobody knows")
    end = struct.unpack_from("<H", plain, 8)[0] * 12 + 10
    loop = plain[:end] + struct.pack("<L", 8) + plain[end + 4 :]
    yield _accepted("loop.tif", loop, "a second page that is the first: only the first is read")
    yield _accepted("odd tag.tif", images.tiff_with_odd_tag(), "a note that is longer than the file")
    for kind in ("tiff rgb16", "tiff cmyk", "tiff float to 1", "tiff pages", "tiff palette"):
        yield _accepted(f"{kind}.tiff", _kind(kind), f"a TIFF of the kind {kind}")


def _others() -> Iterator[File]:
    bmp = _kind("bmp")
    yield _refused("cut.bmp", bmp[: len(bmp) // 2], "BMP file", "cut short")
    yield _refused("header alone.bmp", bmp[:54], "BMP file", "no pixels behind the header")
    yield _refused("giant.bmp", images.of_size(bmp, 2**31 - 1, 2**31 - 1), "pixels allowed", "claims a giant")
    yield _refused("-48 wide.bmp", images.of_size(bmp, -48, 32), "pixels allowed", "a negative width")
    rle = images.of_size(_kind("bmp rle"), 9000, 9000)
    yield _refused("run-length.bmp", rle, "BMP file", "a thousand times less than its size needs")
    yield _refused("cut.ppm", _kind("ppm")[:200], "cut short", "cut short")
    yield _refused("giant.ppm", b"P6\n2147483647 2147483647\n255\n", "pixels allowed", "claims a giant")
    yield _refused("in words.ppm", b"P3\nmany lines\n255\n", "PPM file", "words for numbers")
    yield _refused("one of many.pbm", b"P1\n9000 9000\n1", "PPM file", "one of 81 million pixels")
    yield _accepted("top down.bmp", images.of_size(bmp, 48, -32), "rows from the top, told by a negative height")
    for kind in ("bmp palette", "bmp rle", "pgm16", "ppm plain"):
        yield _accepted(f"{kind}.{kind[:3]}", _kind(kind), f"a picture of the kind {kind}")


def _not_files() -> Iterator[File]:
    """What has the name of an image and is no file."""
    gone = Verdict(REFUSED, "a link to nothing", "not there|No such file")
    yield "folder.jpg", Path.mkdir, Verdict(REFUSED, "a folder", "a folder, not a picture|Is a directory")
    yield "broken link.jpg", lambda path: path.symlink_to("nowhere.jpg"), gone
    loop = Verdict(REFUSED, "a link to itself", "not there|Too many levels")
    yield "loop.jpg", lambda path: path.symlink_to(path.name), loop
    yield "pipe.jpg", os.mkfifo, Verdict(REFUSED, "a pipe, for which a reader waits for ever", "not a regular file")
    yield (
        "device.jpg",
        lambda path: path.symlink_to("/dev/zero"),
        Verdict(REFUSED, "a link to a device without end", "not there|not a regular file"),
    )
    text = Verdict(REFUSED, "a link to a text outside of the folder", "not a JPEG")
    yield "text outside.jpg", lambda path: path.symlink_to("../../outside.txt"), text
    image = Verdict(ACCEPTED, "a link to a picture outside of the folder")
    yield "picture outside.jpg", lambda path: path.symlink_to("../../outside.dat"), image
    yield "giant.jpg", _write_giant, Verdict(REFUSED, "two gigabytes, most of them a hole", "larger than")
    if os.geteuid() != 0:  # who may read everything
        forbidden = Verdict(REFUSED, "a file that may not be read", "Permission denied")
        yield "forbidden.jpg", lambda path: (path.write_bytes(_drawn(2)), path.chmod(0)), forbidden
    for number in range(3, 6):
        yield _accepted(f"sound {number}.jpg", _drawn(number), "a picture, so that the class has some")


def _write_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(2**31)


ODD_NAMES = (
    "two  spaces.jpg", " in front.jpg", "it's.jpg", 'say "x".jpg', "new\nline.jpg", "tab\t.jpg", "bell\a.jpg",
    "colour\x1b[31m.jpg", "reversed\u202egpj.jpg", "zero\u200bwidth.jpg", "玫瑰.jpg", "وردة.jpg", "цветок.jpg", "🌹.jpg",
    "e\u0301.jpg", "é.jpg", "-rf.jpg", "--help.jpg", "a;b&c|d.jpg", "$(id).jpg", "`id`.jpg", "<b>.jpg", "*.jpg",
    "[a].jpg", "{a,b}.jpg", "a?.jpg", "#1.jpg", "%2e%2e.jpg", "back\\slash.jpg", "two..dots.jpg", "x.jpg.exe.jpg",
    "CON.jpg", "trailing .jpg", f"{'long' * 60}.jpg", "=1+1.jpg", "http:x.jpg", "~.jpg", "UPPER.JPG", "a::b.jpg", "$HOME.jpg",
)  # fmt: skip


def _names() -> Iterator[File]:
    """Sound images with odd names; a bad one whose name would forge a line; and what is no image by its name."""
    for number, name in enumerate(ODD_NAMES):
        yield _accepted(name, _drawn(100 + number), "an odd name")
    forged = "x.jpg: fine\nall pictures are fine.jpg"
    yield _refused(forged, b"", "the file is empty", "a name that would add a line to a message")
    yield _refused("IMG.heic", b"x", "not a JPEG, PNG", "the name of a photo of a kind that is not read")
    for name in (".hidden.jpg", "Thumbs.db", "notes.txt", "noending"):
        yield name, lambda path: path.write_bytes(b"x"), Verdict(IGNORED, "no picture by its name, or hidden")


def _unloadable_names() -> Iterator[File]:
    for number, name in enumerate((os.fsdecode(b"caf\xe9.jpg"),)):
        yield _accepted(name, _drawn(200 + number), "a name that a folder for training may not hold")
