"""Images that lie on the device: the same chance as on the plain way, the same pixels, and nothing of their neighbours."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.config.loading import load_recipe, recipe_names
from accel_flowers.config.schema import ImageSettings
from accel_flowers.data.decoding.pillow import decode_image
from accel_flowers.data.transforms.build import ImageTransform, build_step
from accel_flowers.data.transforms.gpu.store import DeviceImages, bytes_needed
from accel_flowers.data.transforms.gpu.transform import DeviceTransform, make_device_transform
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.samples.draw import draw_sample
from tests.images import check_no_lean

CPU = torch.device("cpu")
COLOUR = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
SHAPES: dict[str, list[Any]] = {
    "crop": [v2.RandomResizedCrop(64)],
    "larger than the picture": [v2.RandomResizedCrop((65, 97), scale=(0.5, 2.0)), v2.RandomVerticalFlip()],
    "square": [v2.Resize((50, 40))],
    "centre": [v2.Resize(40), v2.CenterCrop(36)],
    "centre, with edges": [v2.Resize(40), v2.CenterCrop((51, 45)), v2.RandomHorizontalFlip()],
    "flipped before the crop": [v2.Resize(40), v2.RandomHorizontalFlip(), v2.RandomCrop((36, 40))],
    "turned before the crop": [v2.Resize(40), v2.RandomRotation(20), v2.RandomCrop(40)],
    "turned whole": [v2.RandomRotation(30), v2.CenterCrop(64)],
    "turned whole, between pixels": [
        v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),
        v2.CenterCrop(64),
    ],
    "turned, then resized": [v2.RandomRotation((20, 90)), v2.RandomResizedCrop(48)],
    "flipped, then resized": [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomResizedCrop(48)],
    "padded": [v2.RandomCrop(80, padding=8, pad_if_needed=True)],
    "twice": [v2.CenterCrop(90), v2.RandomResizedCrop(48), v2.RandomHorizontalFlip(), v2.RandomHorizontalFlip()],
    "affine": [v2.Resize((40, 50)), v2.RandomAffine(30, (0.2, 0.1), (0.5, 1.5), (-10, 10, -5, 5))],
    "affine, between pixels": [
        v2.Resize((40, 50)),
        v2.RandomAffine(30, (0.2, 0.1), (0.5, 1.5), (-10, 10), interpolation=v2.InterpolationMode.BILINEAR),
    ],
    "moved": [v2.Resize((40, 50)), v2.RandomAffine(0, (0.2, 0.1))],
}
"""Lists that only move and mix pixels."""
COLOURS: dict[str, list[Any]] = {
    "brightness": [v2.ColorJitter(brightness=0.5)],
    "contrast": [v2.ColorJitter(contrast=0.5)],
    "saturation": [v2.ColorJitter(saturation=0.9)],
    "hue": [v2.ColorJitter(hue=0.5)],
    "three": [v2.ColorJitter(0.5, 0.5, 0.5)],
    "all": [COLOUR],
    "fixed": [v2.ColorJitter((1.3, 1.3), (0.0, 0.0), None, (0.2, 0.2))],
    "grey": [v2.RandomGrayscale(0.5)],
    "always grey": [v2.Grayscale(3)],
    "blurred": [v2.GaussianBlur((5, 9), (0.1, 3.0))],
}
"""Lists that paint images of one size: with the same pixels in front, the very same behind, but for last digits."""


def settled(name: str) -> ImageSettings:
    """What a recipe does to pictures, with nothing left open."""
    return settle_preprocessing(load_recipe(name))[0].data.preprocessing()


RECIPES = {name: [build_step(spec, "test") for spec in settled(name).train_transforms] for name in recipe_names()}
BOXES = {
    "torchvision's own": v2.RandomResizedCrop(64),
    "large": v2.RandomResizedCrop(64, scale=(0.6, 1.0)),
    "mostly refused": v2.RandomResizedCrop(64, scale=(0.5, 1.5), ratio=(1.0, 3.0)),
    "never found": v2.RandomResizedCrop(64, scale=(5.0, 6.0)),
}
SIZES = [(1, 1), (1, 9), (2, 3), (7, 90), (80, 9), (64, 64), (96, 128), (375, 500)]


def smooth(height: int, width: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Drawn flowers, and blobs of every odd size."""
    folder = draw_sample(tmp_path_factory.mktemp("drawn") / "flowers", images_per_class=2, image_size=90)
    flowers = [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.jpg"))]
    return flowers + [smooth(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def stored(images: Sequence[Image.Image]) -> DeviceImages:
    store = DeviceImages([(image.height, image.width) for image in images], CPU)
    store.fill(torch.from_numpy(np.array(image)) for image in images)
    return store


def built(steps: list[Any]) -> DeviceTransform:
    transform = make_device_transform(steps)
    assert transform is not None
    return transform


def both_ways(
    steps: list[Any],
    images: Sequence[Image.Image],
    store: DeviceImages,
    seeds: Sequence[int] = range(2),
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Every image with every seed on the plain way and on the device, [B, 3, H, W]; and they use the same chance."""
    plain_way, transform = ImageTransform(steps), built(steps)
    for name, value in settings.items():
        setattr(transform, name, value)
    plain, random_params, samples = [], [], []
    for sample, image in enumerate(images):
        for seed in seeds:
            torch.manual_seed(1000 * seed + sample)
            plain.append(plain_way(image))
            after = torch.rand(1)
            torch.manual_seed(1000 * seed + sample)
            random_params.append(transform.draw(image.height, image.width))
            assert torch.equal(torch.rand(1), after), "as much chance was used"
            samples.append(sample)
    made = transform.apply(store, torch.tensor(samples), torch.tensor(random_params, dtype=torch.float64))
    assert made.dtype == torch.uint8
    assert made.shape[2:] == transform.size
    return torch.stack(plain).int(), made.int()


def difference(ways: tuple[Tensor, Tensor]) -> Tensor:
    return (ways[0] - ways[1]).abs()


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_torchvisions(name: str, size: tuple[int, int]) -> None:
    step = BOXES[name]
    transform, image = built([step]), torch.empty(1).expand(3, *size)
    boxes = set()
    for seed in range(60):
        torch.manual_seed(seed)
        box = step.make_params([image])
        after = torch.rand(1)
        torch.manual_seed(seed)
        drawn = transform.draw(*size)
        assert drawn == [box["top"], box["left"], box["height"], box["width"], 64, 64]
        assert torch.equal(torch.rand(1), after)
        boxes.add(tuple(drawn))
    if name == "never found":
        assert len(boxes) == 1, "the middle of the picture"
    elif size == (375, 500):
        assert len(boxes) > 20


def test_colours_are_torchvisions() -> None:
    """The order, too: a blend is found before or behind the hue as torchvision's permutation says."""
    transform, size = built([v2.Resize((8, 8)), COLOUR]), (8, 8)
    orders = set()
    for seed in range(200):
        torch.manual_seed(seed)
        params = COLOUR.make_params([torch.empty(3, *size)])
        torch.manual_seed(seed)
        *_, shift = numbers = transform.draw(*size)[6:]
        factors = [params["brightness_factor"], params["contrast_factor"], params["saturation_factor"]]
        order = params["fn_idx"].tolist()
        kinds = [(1.0, 0.0, 0.0)] * 6
        hue = order.index(3)
        for place, kind in enumerate([kind for kind in order if kind != 3]):
            there = place if place < hue else 3 + place - hue
            kinds[there] = (factors[kind], float(kind == 1), float(kind == 2))
        assert numbers[:-1] == [number for kind in kinds for number in kind]
        assert shift == np.int32(params["hue_factor"] * 255).astype(np.uint8)
        orders.add(tuple(order))
    assert len(orders) == 24


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("name", SHAPES)
def test_moved_pixels_are_within_one_level(name: str, images: list[Image.Image]) -> None:
    far = difference(both_ways(SHAPES[name], images, stored(images)))
    # Where two levels are equally near, which is often so in small images made larger, either may be taken; and once
    # across and once down.
    assert far.max() <= 2
    assert (far > 1).float().mean() < 1e-4
    assert far.float().mean() < 0.1


def test_whole_pixels_are_exact(images: list[Image.Image]) -> None:
    """Where nothing is mixed, nothing differs: Pillow's whole-numbered arithmetic of places."""
    store = stored(images)
    for steps in (
        SHAPES["turned whole"],
        SHAPES["padded"],
        [v2.RandomAffine(20, (0.1, 0.3), shear=9), v2.CenterCrop(70)],
    ):
        plain, made = both_ways(steps, images, store, seeds=range(5))
        assert torch.equal(plain, made)
        assert (plain != 0).any()


def test_a_scale_alone_may_move_pixels_by_one_place(images: list[Image.Image]) -> None:
    """Pillow adds up fractions there, so the places of a few pixels differ."""
    far = difference(both_ways([v2.Resize((40, 50)), v2.RandomAffine(0, scale=(0.5, 2))], images, stored(images)))
    assert (far > 1).float().mean() < 0.002


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_pillows(name: str) -> None:
    """On images that need no resize, so that both ways paint the same pixels."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]
    grey = Image.fromarray(np.repeat(np.arange(1600, dtype=np.uint16).reshape(40, 40, 1) % 256, 3, 2).astype(np.uint8))
    pure = Image.fromarray((rng.integers(0, 2, (40, 40, 3)) * 255).astype(np.uint8))
    images = [*noise, grey, pure, *(smooth(40, 40, seed) for seed in range(8))]
    far = difference(both_ways([v2.CenterCrop(40), *COLOURS[name]], images, stored(images), seeds=range(8)))
    assert far.max() <= 1
    assert far.float().mean() < 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_supported(name: str, images: list[Image.Image]) -> None:
    # A level before a change of hue or contrast can become several after it.
    far = difference(both_ways(RECIPES[name], images, stored(images), seeds=range(1)))
    assert far.float().mean() < 0.1
    assert (far > 1).float().mean() < 0.005


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 6


def test_resizes_in_half_precision(images: list[Image.Image]) -> None:
    """Weights of 11 bits, as on a GPU."""
    far = difference(both_ways(SHAPES["crop"], images, stored(images), dtype=torch.float16))
    assert far.max() <= 2
    assert (far > 1).float().mean() < 1e-3
    assert 0 < far.float().mean() < 0.2


@pytest.mark.parametrize(
    "name", ["crop", "twice", "turned before the crop", "turned, then resized", "turned whole", "affine"]
)
def test_a_image_knows_nothing_of_its_batch(name: str, images: list[Image.Image]) -> None:
    """One by one, in parts, with shapes of the batch or of all images: the same."""
    steps = [*SHAPES[name], COLOUR, v2.RandomRotation(10), v2.RandomGrayscale(0.2)]
    transform, store = built(steps), stored(images)
    random_params = torch.tensor([transform.draw(*size) for size in store.sizes], dtype=torch.float64)
    samples = torch.arange(len(store))
    together = transform.apply(store, samples, random_params)

    def same(made: Tensor, numbers: Tensor) -> bool:
        """But for ties, which another order of a sum may decide otherwise."""
        return bool((made != together[numbers]).float().mean() < 1e-4)

    assert same(
        transform.apply(store, samples, random_params, output_extent=transform.output_extent(random_params)), samples
    )
    extent = transform.output_extent(random_params)
    made_before = transform.resizes(random_params, extent)
    transform.max_bytes = 10**6
    in_parts = transform.apply(store, samples, random_params, output_extent=extent)
    planned = transform.apply(store, samples, random_params, output_extent=extent, resizes=made_before)
    assert torch.equal(planned, in_parts), "whoever makes the weights"
    transform.max_bytes = 2**32
    order = torch.randperm(len(store))
    assert same(transform.apply(store, samples[order], random_params[order]), order)
    transform.max_bytes = 10**6
    assert same(transform.apply(store, samples, random_params), samples)
    for sample in samples.split(1):
        alone = transform.apply(
            store, sample, random_params[sample], output_extent=transform.output_extent(random_params[sample])
        )
        assert same(alone, sample)


UNSUPPORTED: dict[str, list[Any]] = {
    "nothing": [],
    "colours of whole pictures": [COLOUR, v2.RandomResizedCrop(64)],
    "grey before the crop": [v2.Resize(64), v2.RandomGrayscale(), v2.CenterCrop(64)],
    "other sizes": [v2.Resize(64)],
    "bicubic": [v2.RandomResizedCrop(64, interpolation=v2.InterpolationMode.BICUBIC)],
    "a longest side": [v2.Resize(64, max_size=80), v2.CenterCrop(64)],
    "expanding": [v2.RandomRotation(10, expand=True), v2.CenterCrop(64)],
    "on red": [v2.CenterCrop(64), v2.RandomRotation(10, fill=(255, 0, 0))],
    "mirrored edges": [v2.RandomCrop(64, padding=4, padding_mode="reflect")],
    "others": [v2.RandomResizedCrop(64), v2.TrivialAugmentWide()],
    "erased": [v2.CenterCrop(64), v2.RandomErasing()],
    "one channel": [v2.CenterCrop(64), v2.Grayscale(1)],
    "blurred beyond its edges": [v2.CenterCrop(4), v2.GaussianBlur(9)],
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_lists_are_refused(name: str) -> None:
    assert make_device_transform(UNSUPPORTED[name]) is None


def test_too_small_a_image_is_refused_on_both_ways() -> None:
    steps = [v2.RandomCrop(64)]
    for refused in (lambda: ImageTransform(steps)(smooth(40, 70, 0)), lambda: built(steps).draw(40, 70)):
        with pytest.raises(ValueError, match=r"crop size \(64, 64\) is larger than input image size \(40, 70\)"):
            refused()


def test_draws_must_be_exact(images: list[Image.Image]) -> None:
    transform = built(SHAPES["crop"])
    with pytest.raises(ValueError, match="draws must be float64"):
        transform.apply(stored(images), torch.zeros(2, dtype=torch.int64), torch.zeros(2, transform.num_columns))


@pytest.mark.parametrize("name", RECIPES)
def test_it_can_be_sent_to_workers(name: str) -> None:
    transform = built(RECIPES[name])
    sent = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(3)
    here = transform.draw(300, 200)
    torch.manual_seed(3)
    assert sent.draw(300, 200) == here


def test_the_store_keeps_every_pixel(images: list[Image.Image]) -> None:
    store = stored(images)
    for sample, image in enumerate(images):
        assert np.array_equal(store.image(sample).numpy(), np.array(image))
    assert len(store) == len(images)
    assert store.flat.nbytes + store.table.nbytes == bytes_needed(store.sizes)


def test_the_store_refuses_other_images() -> None:
    store = DeviceImages([(2, 3), (4, 5)], CPU)
    fitting = [torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(4, 5, 3, dtype=torch.uint8)]

    def endless() -> Iterator[Tensor]:
        yield from fitting
        while True:
            yield fitting[0]

    for wrong, message in [
        (fitting[:1], "1 pictures for 2 places"),
        (endless(), "more pictures for 2 places"),
        (fitting[::-1], "picture 0 is torch.uint8"),
        ([image.float() for image in fitting], "picture 0 is torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.fill(wrong)
    with pytest.raises(ValueError, match="needs pictures"):
        DeviceImages([], CPU)


@pytest.mark.slow
def test_compiled_colours_are_the_same(images: list[Image.Image]) -> None:
    steps = [v2.RandomResizedCrop(48), COLOUR]
    store = stored(images)
    _, here = both_ways(steps, images, store)
    _, compiled = both_ways(steps, images, store, compiled=True)
    far = (here - compiled).abs()
    assert far.float().mean() < 0.01
    assert (far > 1).float().mean() < 0.001


def test_real_photos() -> None:
    if "ACCEL_FLOWERS_TEST_PHOTOS" not in os.environ:
        pytest.skip("ACCEL_FLOWERS_TEST_PHOTOS names no folder of photos")
    files = sorted(Path(os.environ["ACCEL_FLOWERS_TEST_PHOTOS"]).rglob("*.jpg"))[::71]
    assert len(files) > 10
    photos = [decode_image(file.read_bytes(), file.name) for file in files]
    store = stored(photos)
    for steps in ([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()], [v2.Resize(256), v2.CenterCrop(224)]):
        ways = both_ways(steps, photos, store)
        assert difference(ways).max() <= 1
        assert difference(ways).float().mean() < 0.02
        check_no_lean(*ways)
    colour = [
        v2.RandomResizedCrop(224),
        v2.RandomHorizontalFlip(),
        COLOUR,
        v2.RandomRotation(10),
        v2.RandomGrayscale(0.2),
    ]
    far = difference(both_ways(colour, photos, store))
    assert far.float().mean() < 0.02
    assert (far > 1).float().mean() < 0.003
