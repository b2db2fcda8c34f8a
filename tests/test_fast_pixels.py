"""The fast ways: the same boxes and chance as the plain way, pixels within one level, everything else handed on."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.data.decoding.jpeg import decode_pixels, decode_rows, read_header
from accel_flowers.data.decoding.pillow import BadImageError, decode_image, decode_thumbnail, verify_image
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.data.transforms.cpu.hue import adjust_hue, hsv_to_rgb
from accel_flowers.data.transforms.cpu.transform import FastTransform
from tests.bad_images import write_corpus
from tests.images import check_no_lean, jpeg_sampled

COLOUR: list[TransformSpec] = [
    {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
    {"RandomRotation": {"degrees": 10}},
    {"RandomGrayscale": {"p": 0.2}},
]
LISTS: dict[str, list[TransformSpec]] = {
    "train": [{"RandomResizedCrop": {"size": 224}}, "RandomHorizontalFlip"],
    "small": [{"RandomResizedCrop": {"size": [64, 96], "scale": [0.5, 1.0]}}, "RandomVerticalFlip"],
    "eval": [{"Resize": {"size": 256}}, {"CenterCrop": {"size": 224}}],
    "bicubic": [{"Resize": {"size": 256, "interpolation": "bicubic"}}, {"CenterCrop": {"size": 224}}],
    "square": [{"Resize": {"size": [100, 80]}}],
    "padded": [{"Resize": {"size": 64}}, {"RandomCrop": {"size": 72, "padding": 8}}],
    "erasing": [{"RandomResizedCrop": {"size": 64}}, {"RandomErasing": {"p": 0.7, "value": [9, 0, 250]}}],
    "colour": [{"RandomResizedCrop": {"size": 128}}, "RandomHorizontalFlip", *COLOUR],
}


def build(name: str) -> ImageTransform:
    return build_transform(LISTS[name], field="test")[0]


def smooth_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blobs of colour, as photos have them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def both_ways(transform: ImageTransform, data: bytes, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    plain = transform.plainly().of_file(data, "x", seed)
    after = torch.rand(1)
    fast = transform.of_file(data, "x", seed)
    assert torch.equal(torch.rand(1), after), "as much chance was used"
    return plain.int(), fast.int()


PICTURES = {
    "photo": jpeg(smooth_image(499, 665)),
    "wide": jpeg(smooth_image(700, 300, 1)),
    "4:4:4": jpeg(smooth_image(320, 240, 2), subsampling=0),
    "4:2:2": jpeg(smooth_image(321, 243, 3), subsampling=1),
    "progressive": jpeg(smooth_image(400, 400, 4), progressive=True),
    "tiny": jpeg(smooth_image(9, 7, 5)),
    "12 megapixels": jpeg(smooth_image(4000, 3000, 6)),
}


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("image", PICTURES)
@pytest.mark.parametrize("name", LISTS)
def test_pixels_are_within_one_level(name: str, image: str) -> None:
    transform = build(name)
    fast_way = transform._fast
    assert isinstance(fast_way, FastTransform)
    assert fast_way.of_jpeg(PICTURES[image]) is not None, "it is taken"
    for seed in range(3):
        plain, fast = both_ways(transform, PICTURES[image], seed)
        difference = (plain - fast).abs()
        if name == "colour":  # a level before a change of hue or contrast can become several after it
            assert difference.float().mean() < 0.5
        else:
            # Two intermediate roundings of a filter with negative weights.
            assert difference.max() <= (2 if name == "bicubic" else 1)
            assert (difference > 1).float().mean() < 5e-4
            assert difference.float().mean() < 0.1


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("name", LISTS)
def test_decoded_images_give_what_their_files_give(name: str) -> None:
    """Only the wrong half of a level's rounding may lie between them, in the rows at the edge of a crop."""
    transform = build(name)
    for data in (PICTURES["photo"], PICTURES["wide"], PICTURES["tiny"], PICTURES["progressive"]):
        header = read_header(data)
        assert header is not None
        whole = decode_rows(data, header, header.height)
        assert whole is not None
        for seed in range(5):
            assert torch.equal(transform.of_pixels(whole, "x", seed), transform.of_file(data, "x", seed))


def test_lists_without_a_fast_way_take_decoded_images() -> None:
    specs: list[TransformSpec] = [{"ColorJitter": {"hue": 0.1}}, {"Resize": {"size": [64, 64]}}]
    transform = build_transform(specs, field="test")[0]
    pixels = torch.from_numpy(np.array(smooth_image(120, 80)))
    made = transform.of_pixels(pixels, "x", 3)
    torch.manual_seed(3)
    assert torch.equal(made, transform(smooth_image(120, 80)))


@pytest.mark.parametrize("image", ["photo", "wide", "4:4:4", "4:2:2", "progressive", "tiny"])
def test_the_rows_that_were_asked_for_are_right(image: str) -> None:
    data = PICTURES[image]
    header = read_header(data)
    assert header is not None
    assert (header.frame > 0) == (image != "progressive")
    whole = decode_rows(data, header, header.height)
    assert whole is not None
    rng = np.random.default_rng(0)
    for rows in {1, header.height, *rng.integers(1, header.height + 1, 40).tolist()}:
        part = decode_rows(data, header, rows)
        assert part is not None
        assert torch.equal(part[:rows], whole[:rows]), rows


@pytest.mark.parametrize("specs", [[{"CenterCrop": {"size": 64}}], [{"Resize": {"size": [665, 499]}}]], ids=str)
def test_a_image_outlives_the_next_one(specs: list[TransformSpec]) -> None:
    """Also where nothing was resized, so that it could still lie where it was decoded."""
    transform = build_transform(specs, field="test")[0]
    first = transform.of_file(PICTURES["photo"], "x")
    before = first.clone()
    transform.of_file(jpeg(smooth_image(499, 665, 9)), "x")
    assert torch.equal(first, before)


def test_damage_is_read_over_or_refused_as_on_the_plain_way() -> None:
    """Bytes of the pixels' part changed at random: both ways refuse, or their pixels (noise, then) are nearly the same."""
    transform, rng, refused = build("train"), np.random.default_rng(0), 0
    for _ in range(120):
        kind = str(rng.choice(["photo", "wide", "4:4:4", "progressive"]))
        data = bytearray(PICTURES[kind])
        for place in rng.integers(len(data) // 3, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data) // 2, len(data)) :]
        seed = int(rng.integers(100))
        try:
            plain = transform.plainly().of_file(bytes(data), "x", seed)
        except BadImageError:
            refused += 1
            with pytest.raises(BadImageError):
                transform.of_file(bytes(data), "x", seed)
            continue
        difference = (plain.int() - transform.of_file(bytes(data), "x", seed).int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.1
    assert 10 < refused < 110


def test_a_jpeg_in_very_many_scans_is_left_to_pillow() -> None:
    """Which refuses it: a hundred kilobytes would take minutes."""
    data = jpeg(Image.new("RGB", (3000, 3000)), progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 1500 + data[-2:]
    assert read_header(data) is not None
    assert read_header(many) is None
    with pytest.raises(BadImageError, match="scans takes too long"):
        build("eval").of_file(many, "x")


def test_a_resize_to_a_giant_is_refused_on_all_ways() -> None:
    transform = build_transform([{"Resize": {"size": 1400}}, {"CenterCrop": {"size": 64}}], field="test")[0]
    data = jpeg(smooth_image(780, 8))
    for way in (transform, transform.plainly()):
        with pytest.raises(BadImageError, match="Resize makes a picture of"):
            way.of_file(data, "x")


def test_a_header_with_padding_is_read() -> None:
    data = PICTURES["photo"]
    header = read_header(data)
    assert header is not None
    padded = read_header(data[:2] + b"\xff\xff" + data[2:])
    assert padded is not None
    assert padded.frame == header.frame + 2


def test_every_hue_saturation_and_value_becomes_what_pillow_makes_of_it() -> None:
    for first in range(0, 256, 32):
        bands = np.meshgrid(*(np.arange(n, dtype=np.uint8) for n in (256, 256)), indexing="ij")
        hue, saturation = (np.repeat(band, 32, axis=1) for band in bands)
        value = np.tile(np.arange(first, first + 32, dtype=np.uint8), (256, 256))
        expected = Image.merge("HSV", [Image.fromarray(band) for band in (hue, saturation, value)]).convert("RGB")
        assert np.array_equal(np.asarray(hsv_to_rgb(hue, saturation, value)), np.asarray(expected))


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.003, 0.0, 0.05, 0.3, 0.5])
def test_hue_is_turned_as_torchvision_turns_it(turn: float) -> None:
    image = smooth_image(120, 80, 7)
    assert np.array_equal(np.asarray(adjust_hue(image, turn)), np.asarray(functional.adjust_hue(image, turn)))


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize(
    "arguments",
    [{"hue": 0.1}, {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.5}, {"contrast": [0.2, 3.0]}],
    ids=str,
)
def test_colour_is_exactly_torchvisions(arguments: dict[str, Any]) -> None:
    """Of the same pixels the fast way makes the same image to the last bit."""
    specs: list[TransformSpec] = [{"Resize": {"size": [80, 120]}}, {"ColorJitter": arguments}, "RandomInvert"]
    transform = build_transform(specs, field="test")[0]
    pixels = torch.from_numpy(np.array(smooth_image(120, 80, 8)))
    for seed in range(20):
        plain = transform.plainly().of_pixels(pixels, "x", seed)
        assert torch.equal(transform.of_pixels(pixels, "x", seed), plain)


def exif_turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(smooth_image(120, 80), exif=exif.tobytes())


OTHERS = {
    "turned": exif_turned(6),
    "grey": jpeg(smooth_image(120, 80).convert("L")),
    "CMYK": jpeg(smooth_image(120, 80).convert("CMYK")),
    "cut short": PICTURES["photo"][: len(PICTURES["photo"]) // 2],
    "PNG": (lambda file: (smooth_image(120, 80).save(file, "PNG"), file.getvalue())[1])(io.BytesIO()),
    "no picture": b"\xff\xd8\xff" + bytes(100),
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_unusual_goes_the_plain_way(kind: str) -> None:
    transform = build("train")
    assert transform._fast is not None
    assert transform._fast.of_jpeg(OTHERS[kind]) is None
    if kind in ("turned", "grey", "CMYK", "PNG"):
        plain, fast = both_ways(transform, OTHERS[kind], 3)
        assert (plain - fast).abs().max() <= 1
        decoded = torch.from_numpy(np.array(decode_image(OTHERS[kind], "x")))
        assert torch.equal(transform.of_pixels(decoded, "x", 3).int(), fast), "files and decoded pictures agree"


def test_an_exif_block_without_a_turn_is_taken() -> None:
    assert build("train")._fast.of_jpeg(exif_turned(1)) is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "specs",
    [
        [{"ColorJitter": {"hue": 0.1}}, {"Resize": {"size": [64, 64]}}],
        ["RandomHorizontalFlip", {"Resize": {"size": [64, 64]}}],
        [{"Resize": {"size": [64, 64], "interpolation": "nearest"}}],
    ],
    ids=str,
)
def test_lists_without_a_fast_way(specs: list[TransformSpec]) -> None:
    assert build_transform(specs, field="test")[0]._fast is None


def test_the_corpus_gets_the_same_verdicts_and_pixels(tmp_path: Path) -> None:
    """Of every odd image: both ways refuse it, or both take it and differ by one level at most."""
    write_corpus(tmp_path)
    transform, taken = build("eval"), 0
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 2**24):
        data = file.read_bytes()
        try:
            plain = transform(decode_image(data, file.name)).int()
        except (ValueError, RuntimeError):
            with pytest.raises(ValueError, match=r".+"):
                transform.of_file(data, file.name)
            continue
        taken += transform._fast.of_jpeg(data) is not None  # type: ignore[union-attr]
        assert (plain - transform.of_file(data, file.name).int()).abs().max() <= 1, file.name
    assert taken >= 5


def test_real_photos_within_one_level() -> None:
    if "ACCEL_FLOWERS_TEST_PHOTOS" not in os.environ:
        pytest.skip("ACCEL_FLOWERS_TEST_PHOTOS names no folder of photos")
    files = sorted(Path(os.environ["ACCEL_FLOWERS_TEST_PHOTOS"]).rglob("*.jpg"))[::29]
    assert len(files) > 20
    for name in ("train", "eval"):
        transform = build(name)
        ways = [both_ways(transform, file.read_bytes(), seed) for seed, file in enumerate(files)]
        for file, (plain, fast) in zip(files, ways, strict=True):
            difference = (plain - fast).abs()
            assert difference.max() <= 1, file
            assert difference.float().mean() < 0.1, file
        plain, fast = (torch.stack(way) for way in zip(*ways, strict=True))
        check_no_lean(plain, fast)


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
@pytest.mark.parametrize("luma", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1)], ids=str)
def test_what_the_fast_decoder_does_not_know_goes_to_the_general_one(luma: tuple[int, int]) -> None:
    """Every kind of sampling that Pillow reads, every command reads, and says the same of it."""
    data = jpeg_sampled(luma)
    plain = decode_image(data, "x")
    info = verify_image(data, "x")
    assert (info.width, info.height) == plain.size == (32 * luma[0], 32 * luma[1])
    assert decode_thumbnail(data, "x", side=16).info == info
    assert (decode_pixels(data, "x").int() - torch.from_numpy(np.array(plain)).int()).abs().max() <= 1
    for name in ("train", "eval"):
        slow, fast = both_ways(build(name), data, 0)
        assert (slow - fast).abs().max() <= 1


@pytest.mark.parametrize("first", [0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x24, 0x31, 0x33, 0x41, 0x42, 0x44, 0x00, 0x51])
def test_any_sampling_is_read_or_refused_by_name_everywhere(first: int) -> None:
    whole = PICTURES["4:4:4"]
    frame = whole.index(b"\xff\xc0")
    for second in (0x11, 0x12, 0x21, 0x22, 0x41, 0x14):
        data = bytearray(whole)
        data[frame + 11], data[frame + 14] = first, second
        answers = set()
        for act in (decode_image, verify_image, decode_pixels, build("eval").of_file):
            try:
                act(bytes(data), "x")
                answers.add("read")
            except BadImageError:
                answers.add("refused")
        assert len(answers) == 1, (second, answers)
