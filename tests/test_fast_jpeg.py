"""The fast way of JPEGs: the same boxes and chance as the plain way, pixels within one level, everything else handed on."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from accel_flowers.config import TransformSpec
from accel_flowers.data.decode import decode_image
from accel_flowers.data.fast_jpeg import FastTransform
from accel_flowers.data.transforms import PictureTransform, build_transform
from tests.bad_pictures import write_corpus

COLOUR: list[TransformSpec] = [
    {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
    {"RandomRotation": {"degrees": 10}},
    {"RandomGrayscale": {"p": 0.2}},
]
LISTS: dict[str, list[TransformSpec]] = {
    "train": [{"RandomResizedCrop": {"size": 224}}, "RandomHorizontalFlip"],
    "small": [{"RandomResizedCrop": {"size": [64, 96], "scale": [0.5, 1.0]}}, "RandomVerticalFlip"],
    "eval": [{"Resize": {"size": 256}}, {"CenterCrop": {"size": 224}}],
    "square": [{"Resize": {"size": [100, 80]}}],
    "padded": [{"Resize": {"size": 64}}, {"RandomCrop": {"size": 72, "padding": 8}}],
    "colour": [{"RandomResizedCrop": {"size": 128}}, "RandomHorizontalFlip", *COLOUR],
}


def build(name: str) -> PictureTransform:
    return build_transform(LISTS[name], field="test")[0]


def smooth_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blobs of colour, as photos have them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def both_ways(transform: PictureTransform, data: bytes, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    plain = transform(decode_image(data, "x"))
    after = torch.rand(1)
    torch.manual_seed(seed)
    fast = transform.of_file(data, "x")
    assert torch.equal(torch.rand(1), after), "as much chance was used"
    return plain.int(), fast.int()


PICTURES = {
    "photo": jpeg(smooth_picture(499, 665)),
    "wide": jpeg(smooth_picture(700, 300, 1)),
    "4:4:4": jpeg(smooth_picture(320, 240, 2), subsampling=0),
    "4:2:2": jpeg(smooth_picture(321, 243, 3), subsampling=1),
    "progressive": jpeg(smooth_picture(400, 400, 4), progressive=True),
    "tiny": jpeg(smooth_picture(9, 7, 5)),
    "12 megapixels": jpeg(smooth_picture(4000, 3000, 6)),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", LISTS)
def test_pixels_are_within_one_level(name: str, picture: str) -> None:
    transform = build(name)
    fast_way = transform._fast
    assert isinstance(fast_way, FastTransform)
    assert fast_way(PICTURES[picture]) is not None, "it is taken"
    for seed in range(3):
        plain, fast = both_ways(transform, PICTURES[picture], seed)
        difference = (plain - fast).abs()
        if name == "colour":  # a level before a change of hue or contrast can become several after it
            assert difference.float().mean() < 0.5
        else:
            assert difference.max() <= 1
            assert difference.float().mean() < 0.1


def exif_turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(smooth_picture(120, 80), exif=exif.tobytes())


OTHERS = {
    "turned": exif_turned(6),
    "grey": jpeg(smooth_picture(120, 80).convert("L")),
    "CMYK": jpeg(smooth_picture(120, 80).convert("CMYK")),
    "cut short": PICTURES["photo"][: len(PICTURES["photo"]) // 2],
    "PNG": (lambda file: (smooth_picture(120, 80).save(file, "PNG"), file.getvalue())[1])(io.BytesIO()),
    "no picture": b"\xff\xd8\xff" + bytes(100),
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_unusual_goes_the_plain_way(kind: str) -> None:
    transform = build("train")
    assert transform._fast is not None
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert transform._fast(OTHERS[kind]) is None
    assert torch.equal(torch.rand(1), expected), "no chance is used"
    if kind in ("turned", "grey", "CMYK", "PNG"):
        plain, fast = both_ways(transform, OTHERS[kind], 3)
        assert torch.equal(plain, fast)


def test_an_exif_block_without_a_turn_is_taken() -> None:
    assert build("train")._fast(exif_turned(1)) is not None  # type: ignore[misc]


@pytest.mark.parametrize(
    "specs",
    [
        [{"ColorJitter": {"hue": 0.1}}, {"Resize": {"size": [64, 64]}}],
        ["RandomHorizontalFlip", {"Resize": {"size": [64, 64]}}],
        [{"Resize": {"size": [64, 64], "interpolation": "bicubic"}}],
    ],
    ids=str,
)
def test_lists_without_a_fast_way(specs: list[TransformSpec]) -> None:
    assert build_transform(specs, field="test")[0]._fast is None


def test_the_corpus_gets_the_same_verdicts_and_pixels(tmp_path: Path) -> None:
    """Of every odd picture: both ways refuse it, or both take it and differ by one level at most."""
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
        taken += transform._fast(data) is not None  # type: ignore[misc]
        assert (plain - transform.of_file(data, file.name).int()).abs().max() <= 1, file.name
    assert taken >= 5


def test_real_photos_within_one_level() -> None:
    if "ACCEL_FLOWERS_TEST_PHOTOS" not in os.environ:
        pytest.skip("ACCEL_FLOWERS_TEST_PHOTOS names no folder of photos")
    files = sorted(Path(os.environ["ACCEL_FLOWERS_TEST_PHOTOS"]).rglob("*.jpg"))[::29]
    assert len(files) > 20
    for name in ("train", "eval"):
        transform = build(name)
        for seed, file in enumerate(files):
            plain, fast = both_ways(transform, file.read_bytes(), seed)
            assert (plain - fast).abs().max() <= 1, file
