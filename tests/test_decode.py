"""Every kind of image comes out upright, RGB and with the right colours; everything else is refused by name."""

import contextlib
import os
import pickle
import random
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding import pillow as decode
from accel_flowers.data.decoding.kinds import IMAGE_EXTENSIONS, READ_EXTENSIONS, START, Jpeg, begins_like_image
from accel_flowers.data.decoding.pillow import MAX_PIXELS, BadImageError, ImageInfo, decode_image, verify_image
from tests import images
from tests.images import COLOURS, HEIGHT, KINDS, WIDTH

# Where the four corners of the upright scene lie in the file, by EXIF orientation: what a camera stores.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def corpus() -> dict[str, bytes]:
    return {kind: make() for kind, (make, _, _) in KINDS.items()}


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    """Nothing may change what belongs to the whole process."""
    before = list(warnings.filters)
    yield
    assert warnings.filters == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def assert_shows(image: Image.Image, colours: object, tolerance: int) -> None:
    """Upright RGB, each quarter (but for its rim, where lossy formats ring) within the tolerance of its colour."""
    assert image.mode == "RGB"
    assert image.size == (WIDTH, HEIGHT)
    difference = np.abs(np.asarray(image).astype(int) - images.corners(colours))
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[4:12, 4:20] = inside[4:12, 28:44] = inside[20:28, 4:20] = inside[20:28, 28:44] = True
    assert difference[inside].max() <= tolerance


def stored(orientation: int) -> Image.Image:
    """The scene as a camera held sideways stores it along with this orientation."""
    turn = STORED[orientation]
    return images.scene() if turn is None else images.scene().transpose(turn)


def cause_of(data: bytes, name: str = "folder/rose.jpg") -> str:
    """The cause that both functions must give alike."""
    with pytest.raises(BadImageError) as decoded:
        decode_image(data, name)
    with pytest.raises(BadImageError) as verified:
        verify_image(data, name)
    assert str(decoded.value) == str(verified.value) == f"{name}: {decoded.value.cause}"
    assert decoded.value.name == name
    return decoded.value.cause


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_the_scene(kind: str, corpus: dict[str, bytes]) -> None:
    _, colours, tolerance = KINDS[kind]
    image = decode_image(corpus[kind], kind)
    assert_shows(image, colours, tolerance)
    assert type(image) is Image.Image
    assert not image.info
    info = verify_image(corpus[kind], kind)
    assert (info.width, info.height) == (WIDTH, HEIGHT)


def test_info() -> None:
    data = images.save(stored(6).convert("CMYK"), "JPEG", exif=images.exif(6))
    assert verify_image(data, "rose.jpg") == ImageInfo(WIDTH, HEIGHT, "CMYK", "JPEG")
    png = images.save(images.cut_out(), "PNG")
    assert verify_image(png, "rose.png") == ImageInfo(WIDTH, HEIGHT, "RGBA", "PNG")


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation(kind: str, options: dict[str, object], orientation: int) -> None:
    data = images.save(stored(orientation), kind, exif=images.exif(orientation), **options)
    image = decode_image(data, "rose")
    assert_shows(image, COLOURS, 6)
    assert image.getexif().get(images.ORIENTATION, 1) == 1  # or the next reader turns it again
    info = verify_image(data, "rose")
    assert (info.width, info.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(3, "H"), (4, "L")])
def test_orientation_in_both_byte_orders_and_integer_types(order: str, kind: int, code: str) -> None:
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + code, 6).ljust(4, b"\0")
    block = head + struct.pack(order + "LH", 8, 1) + struct.pack(order + "HHL", 0x0112, kind, 1) + value
    data = images.save(stored(6), "JPEG", quality=95, exif=b"Exif\0\0" + block)
    assert_shows(decode_image(data, "rose.jpg"), COLOURS, 6)  # though the block lacks its last 4 bytes


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"garbage that is no TIFF header",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\x05\x01\x12",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",  # there is no orientation 9
        b"MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\x7f\xff\xff\xff\0\0\0\x7f",  # a resolution of 16 GiB
    ],
)
def test_broken_exif_is_ignored(block: bytes, jfif: bool) -> None:
    data = images.save(images.scene(), "JPEG", quality=95, exif=b"Exif\0\0" + block)
    if not jfif:  # as cameras write it; Pillow then looks for the resolution in the EXIF block
        data = images.without_segment(data, b"\xff\xe0")
    assert_shows(decode_image(data, "rose.jpg"), COLOURS, 6)
    verify_image(data, "rose.jpg")


def test_odd_metadata_is_ignored_without_warnings(corpus: dict[str, bytes]) -> None:
    mpo = corpus["jpeg mpo"]
    at = mpo.index(b"MPF\0") + 12  # the number of entries in the list of further frames
    assert_shows(decode_image(mpo[:at] + b"\xff\xff" + mpo[at + 2 :], "rose.jpg"), COLOURS, 6)
    broken_animation = images.png_chunk(b"acTL", bytes(8))
    for png in (
        images.png(images.corners(COLOURS), 2, broken_animation),
        corpus["png"][:-12] + broken_animation + corpus["png"][-12:],
    ):
        assert_shows(decode_image(png, "rose.png"), COLOURS, 0)
    assert_shows(decode_image(images.tiff_with_odd_tag(), "rose.tif"), COLOURS, 0)


def test_grey_of_many_levels_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, WIDTH).astype(np.uint16)
    want = np.rint(ramp / 257).astype(np.uint8)
    data = images.png(np.tile(ramp, (HEIGHT, 1)), 0)
    got = np.asarray(decode_image(data, "x-ray.png"))
    assert np.array_equal(got[0], np.repeat(want[:, None], 3, axis=1))
    assert len(np.unique(got)) == WIDTH


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([0, 1, 2, 256], np.float32), "from 0 to 256; only 0 to 1 or 0 to 255"),
        (np.array([-0.5, 0, 1, 1], np.float32), "from -0.5 to 1"),
        (np.array([0, np.nan, 1, 1], np.float32), "nan"),
        (np.array([0, np.inf, 1, 1], np.float32), "inf"),
        (np.array([0, 1, 2, 65536], np.int32), "from 0 to 65536; only 0 to 255 or 0 to 65535"),
        (np.array([-1, 0, 1, 2], np.int16), "from -1 to 2"),
    ],
)
def test_grey_without_a_known_white_is_refused(values: NDArray[Any], words: str) -> None:
    assert words in cause_of(images.tiff(images.corners(values, values.dtype), 1), "depth.tif")


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    image = images.scene().convert("RGBA")
    image.putalpha(128)
    want = [tuple(round(255 + (channel - 255) * 128 / 255) for channel in colour) for colour in COLOURS]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert_shows(decode_image(images.save(image, kind, **options), "rose"), want, 1)


def test_errors_are_for_the_user_and_survive_pickling() -> None:
    error = BadImageError("rose.jpg", "the file is empty")
    assert isinstance(error, UserError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, again.cause, str(again)) == ("rose.jpg", "the file is empty", "rose.jpg: the file is empty")


def test_empty_file() -> None:
    assert cause_of(b"") == "the file is empty"


@pytest.mark.parametrize(
    "content", [b"To whom it may concern\n", b"<html>404</html>", b"\0", bytes(1000), b"%!PS-Adobe"]
)
def test_no_image(content: bytes) -> None:
    assert cause_of(content).startswith("not a JPEG, PNG,")


RAW_TIFF = {254: 1, 330: 8}  # a smaller version of another image of the file, which is named


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG XL", b"\xff\x0a" + bytes(50)),
        ("raw", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
        ("raw", b"FUJIFILMCCD-RAW 0201"),
        ("raw", b"II*\0\x10\0\0\0CR\2\0" + bytes(50)),
        ("raw", images.save(images.scene(), "TIFF", tiffinfo=RAW_TIFF)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_photos_that_are_not_read_are_called_by_their_kind(kind: str, content: bytes) -> None:
    told = cause_of(content)
    assert kind in told
    assert told.endswith("a kind that is not read here: convert it to JPEG")
    assert begins_like_image(content[:START])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_avif_is_read_upright(orientation: int) -> None:
    data = images.save(images.scene(), "AVIF", quality=95, exif=images.exif(orientation))
    plain = decode_image(images.save(images.scene(), "JPEG", quality=95, exif=images.exif(orientation)), "x")
    image = decode_image(data, "x")
    assert image.size == plain.size
    assert np.abs(np.asarray(image, float) - np.asarray(plain, float)).mean() < 6
    info = verify_image(data, "x")
    assert (info.width, info.height, info.format) == (*image.size, "AVIF")
    for length in range(0, len(data), 7):
        decoded, verified = outcome(data[:length])
        assert decoded == verified, length
    dice = random.Random(orientation)
    for _ in range(150):
        decoded, verified = outcome(damaged(data, dice))
        assert decoded == verified


@pytest.mark.parametrize("kind", ["jpeg", "jpeg progressive", "jpeg cmyk", "png", "gif", "bmp", "ppm", "tiff", "webp"])
def test_cut_short(kind: str, corpus: dict[str, bytes]) -> None:
    for part in (0.5, 0.75):
        cause = cause_of(corpus[kind][: int(len(corpus[kind]) * part)])
        assert "cut short" in cause
        assert kind.split()[0] in cause.lower()


def test_damaged_header(corpus: dict[str, bytes]) -> None:
    png = bytearray(corpus["png"])
    png[20] ^= 1  # width, without its checksum
    assert "PNG file is damaged" in cause_of(bytes(png))


def test_damage_that_pillow_answers_with_odd_errors(corpus: dict[str, bytes]) -> None:
    """Each stands for a kind of error of Pillow that a list of only the likely ones would let through."""
    whole = corpus["png palette"]
    palette = whole.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">L", whole, palette)
    no_palette = whole[:palette] + whole[palette + 12 + length :]  # AssertionError
    empty_profile = corpus["png"][:-12] + images.png_chunk(b"iCCP", b"") + corpus["png"][-12:]  # IndexError
    tiff = corpus["tiff palette"]
    wide_palette = tiff.replace(struct.pack("<HHL", 320, 3, 768), struct.pack("<HHL", 320, 4, 768))  # OverflowError
    wordy_offset = tiff.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 2))  # TypeError
    for data in (no_palette, empty_profile, wide_palette, wordy_offset):
        assert "is damaged" in cause_of(data)


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_too_many_pixels(size: tuple[int, int]) -> None:
    cause = cause_of(images.png_of_size(*size))
    assert f"{size[0]} x {size[1]}" in cause
    assert f"{MAX_PIXELS:,} pixels" in cause


def test_too_many_pixels_in_other_formats(corpus: dict[str, bytes]) -> None:
    claims = ("bmp", "jpeg", "gif grey")
    huge = [images.of_size(corpus[kind], 30_000, 30_000) for kind in claims]
    tiff = images.tiff(np.zeros((1, 1), np.uint8), 1)
    for data in (*huge, images.of_size(tiff, 60_000, 60_000), b"P6\n30000 30000\n255\n"):
        assert f"more than the {MAX_PIXELS:,} pixels allowed" in cause_of(data)


def test_pillows_own_limit_gives_no_warning(corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of what is larger than this, and refuses what is twice as large."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    for kind in ("jpeg", "png", "png animated", "webp", "gif", "tiff", "tiff lzw", "bmp", "ppm"):
        decode_image(corpus[kind], kind)
        verify_image(corpus[kind], kind)


def test_lines_are_refused_by_their_header() -> None:
    for size in ((1, 101), (101, 1), (3000, 20)):
        assert f"{size[0]} x {size[1]} is a line" in cause_of(images.png_of_size(*size))
    assert decode_image(images.save(Image.new("RGB", (1, 100)), "PNG"), "rose").size == (1, 100)


def test_jpeg_of_thousands_of_scans_is_refused(corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus["jpeg progressive"]
    scans = data.count(b"\xff\xda")
    monkeypatch.setattr(decode, "MAX_SCANNED", scans * WIDTH * HEIGHT)
    decode_image(data, "rose")
    monkeypatch.setattr(decode, "MAX_SCANNED", scans * WIDTH * HEIGHT - 1)
    assert f"in {scans} scans takes too long" in cause_of(data)


def test_one_large_image_at_a_time(corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of images just within the limit, on as many cores as there are, must not fill the memory."""
    for large, held in ((0, True), (WIDTH * HEIGHT, False)):
        monkeypatch.setattr(decode, "_LARGE", large)
        for kind in ("jpeg", "png animated", "gif"):
            with decode._open(corpus[kind], "rose"):
                assert decode._large_lock.locked() is held
            assert not decode._large_lock.locked()
    monkeypatch.setattr(decode, "_LARGE", 0)
    cause_of(corpus["png"][:60])
    assert not decode._large_lock.locked(), "damage gives it back, too"


def test_zero_size() -> None:
    assert "width or height of zero" in cause_of(images.png_of_size(0, 5))
    assert "width or height of zero" in cause_of(b"P5\n0 7\n255\n")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (8, 8), (9, 17)])
def test_tiny_images(size: tuple[int, int]) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        data = images.save(Image.new("RGB", size, "red"), kind)
        assert decode_image(data, kind).size == size
        info = verify_image(data, kind)
        assert (info.width, info.height) == size


def test_extensions_are_known_to_the_libraries() -> None:
    folder_builder = pytest.importorskip("datasets.packaged_modules.imagefolder.imagefolder").ImageFolder
    assert set(folder_builder.EXTENSIONS) >= READ_EXTENSIONS - {".avif", ".avifs", ".mpo"}
    assert set(Image.registered_extensions()) >= READ_EXTENSIONS
    assert Path("Rose.JPG").suffix.lower() in IMAGE_EXTENSIONS


def test_threads_do_not_disturb_each_other(corpus: dict[str, bytes]) -> None:
    odd = images.tiff_with_odd_tag()
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(BytesIO(odd))
    files = [(odd, 0), (corpus["gif"], 4), (odd, 0), (corpus["jpeg"], 6), (odd, 0), (corpus["png animated"], 0)] * 50
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often enough to meet in the middle of everything
    try:
        with ThreadPoolExecutor(8) as threads:
            decoded = list(threads.map(lambda file: decode_image(file[0], "rose"), files))
    finally:
        sys.setswitchinterval(interval)
    for image, (_, tolerance) in zip(decoded, files, strict=True):
        assert_shows(image, COLOURS, tolerance)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_while_another_thread_decodes(corpus: dict[str, bytes]) -> None:
    """A data loader's worker must not wait for a thread that only its parent has."""
    inside, leave = threading.Event(), threading.Event()

    def decode_slowly() -> None:
        with decode._large_lock, decode._quiet():
            inside.set()
            leave.wait(timeout=10)

    thread = threading.Thread(target=decode_slowly)
    thread.start()
    inside.wait(timeout=10)
    threading.Timer(0.1, leave.set).start()
    child = os.fork()
    if child == 0:
        free = all(lock.acquire(timeout=2) for lock in (decode._quiet_lock, decode._large_lock))
        os._exit(0 if free else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def outcome(data: bytes) -> tuple[object, object]:
    """What the two functions make of a file, in terms that can be compared; any other error than theirs passes through."""
    results: list[object] = []
    for function in (decode_image, verify_image):
        try:
            result = function(data, "rose")
        except BadImageError as error:
            results.append(str(error))
        else:
            results.append((result.width, result.height))
    return results[0], results[1]


def test_truncation_anywhere(corpus: dict[str, bytes]) -> None:
    """Both functions draw the line between whole and cut short at the same byte."""
    for kind in ("jpeg", "jpeg progressive", "jpeg restart", "jpeg ycck", "jpeg grey"):
        data = corpus[kind]
        for length in range(1, len(data)):
            decoded, verified = outcome(data[:length])
            assert decoded == verified, (kind, length)


def test_who_reads_the_pixels_of_a_jpeg(corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow is asked only where the quick reader does not vouch for the file."""
    asked = []
    really = Jpeg.load

    def load(image: Any) -> Any:
        asked.append(kind)
        return really(image)

    spotted = bytearray(corpus["jpeg"])
    spotted[-30:-26] = b"\xff\xd3\xff\xd5"  # markers of a restart that nobody announced
    files = {kind: data for kind, data in corpus.items() if data.startswith(b"\xff\xd8\xff")}
    files |= {
        "trailing": corpus["jpeg"] + b"rest of another file",
        "no end": corpus["jpeg"].removesuffix(b"\xff\xd9"),
        "spotted": bytes(spotted),
    }
    for kind, data in files.items():
        decoded, verified = outcome(data)
        assert decoded == verified, kind
    monkeypatch.setattr(Jpeg, "load", load)
    for kind, data in files.items():
        with contextlib.suppress(BadImageError):
            verify_image(data, kind)
    assert {"jpeg ycck", "jpeg cmyk", "no end", "spotted"} <= set(asked)
    assert not {"jpeg", "jpeg progressive", "jpeg restart", "jpeg grey", "trailing"} & set(asked)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A file with some bytes changed, removed or added, more often near its start, where they mean more."""
    content = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(min(len(content), dice.choice((64, 256, len(content)))))
        match dice.randrange(8):
            case 0:
                del content[at + 1 :]
            case 1:
                del content[at : at + dice.choice((1, 4)) if at else 1]
            case 2:
                content[at:at] = dice.randbytes(dice.choice((1, 4)))
            case _:
                content[at] = dice.choice((0, 1, 255, content[at] ^ 1 << dice.randrange(8), dice.randrange(256)))
        if not content:
            break
    return bytes(content)


def test_damage_ends_in_a_image_or_the_right_error(
    corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)  # sizes that became huge would only take long
    dice = random.Random(20)
    kinds = [*corpus.items()]
    kinds += [("exif", images.save(stored(6), kind, exif=images.exif(6))) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    good = 0
    for round_ in range(3000):
        kind, data = kinds[round_ % len(kinds)]
        broken = damaged(data, dice)
        if broken.startswith(b"\x89PNG") and dice.random() < 0.5:
            broken = images.repaired_png(broken)
        decoded, verified = outcome(broken)
        assert decoded == verified, (kind, round_)
        good += isinstance(decoded, tuple)
    assert 300 < good < 2400  # the damage is neither harmless nor always fatal at the first byte
    capfd.readouterr()  # the C library for TIFF writes about each of them to the terminal
