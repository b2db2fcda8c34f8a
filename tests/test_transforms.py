"""Lists of transforms as recipes write them: what they build, what they refuse, and the pixels that come out."""

from __future__ import annotations

import inspect
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.config.schema import Config
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.data.transforms.build import ImageTransform, build_transform, check_repeatable, transform_names
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.preprocessing import settle_preprocessing

FIELD = "data.train_transforms"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(*specs: TransformSpec) -> tuple[ImageTransform, tuple[int, int]]:
    return build_transform(specs, field=FIELD)


def refusal(*specs: Any) -> str:
    with pytest.raises(UserError) as error:
        build(*specs)
    return str(error.value)


def photo(width: int = 310, height: int = 270, seed: int = 0) -> Image.Image:
    """Smooth with some noise, as photos are."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    coarse = Image.fromarray(chance.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = chance.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


# --- lists that recipes hold

LISTS: dict[str, tuple[list[Any], tuple[int, int]]] = {
    "fine-tuning": (
        [
            {"RandomResizedCrop": {"size": 224}},
            "RandomHorizontalFlip",
            {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}},
            {"RandomRotation": {"degrees": 15}},
            {"RandomAffine": {"degrees": 0, "translate": [0.1, 0.1]}},
        ],
        (224, 224),
    ),
    "crop after turning": (
        [
            {"RandomRotation": {"degrees": 30}},
            {"CenterCrop": {"size": 448}},
            "RandomHorizontalFlip",
            "RandomVerticalFlip",
            {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}},
            {"Resize": {"size": [224, 224], "antialias": True}},
        ],
        (224, 224),
    ),
    "grey": ([{"Resize": {"size": [64, 48]}}, {"RandomGrayscale": {"p": 0.5}}], (64, 48)),
    "erasing": ([{"RandomResizedCrop": {"size": 64}}, {"RandomErasing": {"p": 1.0}}], (64, 64)),
    "AutoAugment": ([{"AutoAugment": {"policy": "imagenet"}}, {"RandomResizedCrop": {"size": 64}}], (64, 64)),
    "RandAugment": ([{"RandAugment": {"magnitude": 7}}, {"RandomResizedCrop": {"size": 64}}], (64, 64)),
    "TrivialAugmentWide": ([{"RandomResizedCrop": {"size": 64}}, "TrivialAugmentWide"], (64, 64)),
    "AugMix": ([{"RandomResizedCrop": {"size": 64}}, {"AugMix": None}], (64, 64)),
    "nested": (
        [
            {"RandomApply": {"transforms": [{"GaussianBlur": {"kernel_size": 5}}, "RandomVerticalFlip"], "p": 0.4}},
            {"RandomChoice": {"transforms": ["RandomAutocontrast", {"RandomApply": {"transforms": ["RandomInvert"]}}]}},
            {"RandomCrop": {"size": 100, "pad_if_needed": True}},
        ],
        (100, 100),
    ),
    "interpolation": (
        [{"Resize": {"size": [70, 80], "interpolation": "bicubic"}}, {"RandomRotation": {"degrees": 5, "interpolation": "bilinear"}}],
        (70, 80),
    ),
    "tensors on the way": (["ToImage", {"Resize": {"size": [32, 32]}}, "RandomHorizontalFlip"], (32, 32)),
    "three equal channels": ([{"Grayscale": {"num_output_channels": 3}}, {"CenterCrop": {"size": [20, 30]}}], (20, 30)),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_build_and_make_images_of_the_size_they_say(name: str) -> None:
    specs, size = LISTS[name]
    transform, told = build(*specs)
    assert told == size
    for image in (photo(), photo(100, 333), photo(640, 480)):
        for _ in range(3):
            pixels = transform(image)
            assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, *size))


@pytest.mark.parametrize("name", LISTS)
def test_chance_follows_from_the_seed_of_torch_alone(name: str) -> None:
    transform, _ = build(*LISTS[name][0])
    image = photo()

    def at(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    first = [at(seed) for seed in range(6)]
    np.random.seed(3)
    assert all(torch.equal(at(seed), pixels) for seed, pixels in enumerate(first))
    random_params = name not in ("three equal channels",)
    assert any(not torch.equal(first[0], pixels) for pixels in first) is random_params


def test_building_leaves_the_seed_of_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    transform, _ = build(*LISTS["fine-tuning"][0])
    with pytest.raises(UserError):
        check_repeatable(transform, field=FIELD)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_image_given_is_not_changed() -> None:
    image = photo()
    before = np.array(image)
    for specs, _ in LISTS.values():
        build(*specs)[0](image)
    assert np.array_equal(np.asarray(image), before)


def test_erasing_works_wherever_it_stands() -> None:
    """Also inside another transform, and before a resize."""
    erase = {"RandomErasing": {"p": 1.0, "value": [255, 0, 0], "scale": [0.3, 0.4]}}
    white = Image.new("RGB", (64, 64), "white")
    for specs in (
        [erase],
        [{"RandomApply": {"transforms": [erase], "p": 1.0}}],
        [erase, {"Resize": {"size": [64, 64]}}],
    ):
        pixels = build({"CenterCrop": {"size": 64}}, *specs)[0](white)
        assert 0.25 < (pixels[1] == 0).float().mean() < 0.45
        assert (pixels[0] == 255).all()


def test_arguments_reach_the_transform() -> None:
    flip, _ = build({"CenterCrop": {"size": 30}}, {"RandomHorizontalFlip": {"p": 1.0}})
    plain, _ = build({"CenterCrop": {"size": 30}})
    assert torch.equal(flip(photo()), plain(photo()).flip(2))


def test_interpolation_by_name_is_the_one_of_that_name() -> None:
    results = set()
    for name in ("nearest", "bilinear", "bicubic"):
        pixels = build({"Resize": {"size": [40, 50], "interpolation": name}})[0](photo())
        expected = v2.Resize((40, 50), interpolation=v2.InterpolationMode(name))(photo())
        assert np.array_equal(pixels.permute(1, 2, 0), expected)
        results.add(pixels.numpy().tobytes())
    assert len(results) == 3


def test_names_are_those_of_torchvision() -> None:
    names = transform_names()
    assert {"Resize", "RandomResizedCrop", "ColorJitter", "TrivialAugmentWide"} <= set(names)
    assert not {"Normalize", "ToTensor", "Lambda", "MixUp", "Transform", "InterpolationMode"} & set(names)
    assert all(hasattr(v2, name) for name in names)


# --- evaluation


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (256, 256), (97, 61), (1000, 333)], ids=str)
@pytest.mark.parametrize("kind", [v1, v2], ids=["v1", "v2"])
def test_default_evaluation_gives_the_classic_pixels(kind: Any, size: tuple[int, int]) -> None:
    transform, told = build_transform(
        settle_preprocessing(Config())[0].data.preprocessing().eval_transforms, field="data.eval_transforms"
    )
    classic = kind.Compose([kind.Resize(256), kind.CenterCrop(224)])
    image = photo(*size)
    assert told == (224, 224)
    assert np.array_equal(transform(image).permute(1, 2, 0), np.asarray(classic(image)))


@pytest.mark.parametrize(
    "spec",
    ["RandomHorizontalFlip", {"RandomResizedCrop": {"size": 32}}, {"ColorJitter": {"brightness": 0.1}},
     {"RandomErasing": {}}, {"RandomRotation": {"degrees": 3}}, "TrivialAugmentWide", {"GaussianBlur": {"kernel_size": 3}},
     {"RandomApply": {"transforms": ["RandomVerticalFlip"]}}, {"RandomGrayscale": {"p": 0.3}}],
    ids=str,
)  # fmt: skip
def test_chance_has_no_place_in_evaluation(spec: TransformSpec) -> None:
    transform, _ = build_transform([spec, {"Resize": {"size": [32, 32]}}], field="data.eval_transforms")
    with pytest.raises(
        UserError, match=r"data\.eval_transforms holds a random transform, .*keep chance in data\.train"
    ):
        check_repeatable(transform, field="data.eval_transforms")


@pytest.mark.parametrize(
    "specs",
    [
        settle_preprocessing(Config())[0].data.preprocessing().eval_transforms,
        [{"Resize": {"size": [32, 32]}}, {"Pad": {"padding": 4}}, {"Grayscale": {"num_output_channels": 3}}],
        [{"CenterCrop": {"size": 32}}, {"RandomEqualize": {"p": 1.0}}],
    ],
    ids=["default", "pad and grey", "a random transform that always acts"],
)
def test_what_is_the_same_each_time_may_evaluate(specs: Any) -> None:
    transform, _ = build_transform(specs, field="data.eval_transforms")
    check_repeatable(transform, field="data.eval_transforms")


# --- what is refused

WRITE = r"data\.train_transforms: write 'Name' or 'Name: \{argument: value\}' for a transform, not "
CROP = {"CenterCrop": {"size": 32}}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        pytest.param(
            ["RandomHorizontalFlipp"],
            r"data\.train_transforms: torchvision has no transform 'RandomHorizontalFlipp'\. "
            r"Did you mean 'RandomHorizontalFlip'\? Names are those of torchvision\.transforms\.v2, such as Resize,",
            id="misspelt",
        ),
        pytest.param(
            ["Blurr42"], r"data\.train_transforms: torchvision has no transform 'Blurr42'\. Names", id="unknown"
        ),
        pytest.param(["InterpolationMode"], "torchvision has no transform 'InterpolationMode'", id="no transform"),
        pytest.param([{3: {}}], "torchvision has no transform '3'", id="number as a name"),
        pytest.param(
            [{"Resize": {"siz": 3}}],
            r"data\.train_transforms: Resize has no argument 'siz' and needs size; "
            r"it takes size, interpolation, max_size, antialias\.",
            id="unknown argument",
        ),
        pytest.param(
            [{"ColorJitter": {"brightnes": 1, "colour": 2}}],
            r"ColorJitter has no argument 'brightnes', 'colour'; it takes brightness, contrast, saturation, hue\.",
            id="two unknown arguments",
        ),
        pytest.param(["Resize"], r"Resize needs size; it takes size, interpolation", id="missing argument"),
        pytest.param([{"Resize": None}], r"Resize needs size; it takes", id="missing argument, colon typed"),
        pytest.param(
            [{"ToImage": {"size": 3}}], r"ToImage has no argument 'size'; it takes no arguments\.", id="none taken"
        ),
        pytest.param(
            [{"Resize": 256}],
            r"Resize takes arguments by name: \{size, interpolation, max_size, antialias\}, not 256\.",
            id="argument without name",
        ),
        pytest.param([{"Resize": [256]}], r"Resize takes arguments by name: .*, not \[256\]\.", id="list of arguments"),
        pytest.param([3], WRITE + r"3\.", id="number"),
        pytest.param([None], WRITE + r"None\.", id="nothing"),
        pytest.param([["Resize"]], WRITE + r"\['Resize'\]\.", id="list"),
        pytest.param([{}], WRITE + r"\{\}\.", id="empty mapping"),
        pytest.param(
            [{"Resize": {"size": 3}, "CenterCrop": {"size": 3}}], WRITE + r"\{'Resize': .*\}\.", id="two names in one"
        ),
        pytest.param(
            [{"Normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}],
            r"Normalize does not belong in the list: it follows by itself; its numbers are data\.mean and data\.std\.",
            id="Normalize",
        ),
        pytest.param(
            ["ToTensor"], r"ToTensor does not belong in the list: tensors are made by themselves", id="ToTensor"
        ),
        pytest.param(
            [{"ToDtype": {"scale": True}}], r"ToDtype does not belong in the list: pictures stay", id="ToDtype"
        ),
        pytest.param(["MixUp"], r"MixUp does not belong in the list: it mixes a batch", id="MixUp"),
        pytest.param(["Lambda"], r"Lambda does not belong in the list: code does not belong", id="Lambda"),
        pytest.param(
            [{"Resize": {"size": "big"}}],
            r"Resize does not take \{'size': 'big'\}: size can be an int",
            id="wrong kind",
        ),
        pytest.param(
            [{"ColorJitter": {"brightness": -1}}],
            r"ColorJitter does not take \{'brightness': -1\}: ",
            id="out of range",
        ),
        pytest.param(
            [{"ColorJitter": {"brightness": [1]}}],
            r"ColorJitter does not take \{'brightness': \[1\]\}: ",
            id="too short",
        ),
        pytest.param(
            [{"Resize": {"size": 32, "interpolation": "smooth"}}],
            r"interpolation 'smooth' is not allowed; take one of nearest, nearest-exact, bilinear, bicubic",
            id="unknown interpolation",
        ),
        pytest.param(
            [{"Resize": {"size": 32, "interpolation": 224}}],
            r"interpolation 224 is not allowed; take one of nearest, ",
            id="number of interpolation",
        ),
        pytest.param(
            [{"RandomErasing": {"scale": []}}], r"RandomErasing does not take \{'scale': \[\]\}: ", id="no numbers"
        ),
        pytest.param(
            [{"AutoAugment": {"policy": "flowers"}}],
            r"policy 'flowers' is not allowed; take one of imagenet, cifar10, svhn\.",
            id="unknown policy",
        ),
        pytest.param(
            [{"RandomApply": {"transforms": ["RandomHorizontalFlipp"]}}],
            r"no transform 'RandomHorizontalFlipp'\. Did you mean 'RandomHorizontalFlip'\?",
            id="misspelt inside another",
        ),
        pytest.param(
            [{"RandomApply": {"transforms": "RandomHorizontalFlip"}}],
            r"train_transforms: transforms inside a transform must be a list of such, not 'RandomHorizontalFlip'\.",
            id="inner list that is none",
        ),
    ],
)
def test_mistakes_in_a_list(specs: list[Any], message: str) -> None:
    told = refusal(*specs, CROP)
    assert re.search(message, told), told


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        pytest.param(
            [],
            r"data\.train_transforms makes pictures of different sizes \(97 x 61, 320 x 240, 200 x 450\), which fit into "
            r"no batch: end the list with RandomResizedCrop, CenterCrop or 'Resize: \{size: \[224, 224\]\}'\.",
            id="empty list",
        ),
        pytest.param(
            [{"Resize": {"size": 64}}], r"different sizes \(85 x 64, 101 x 64, 64 x 144\)", id="shorter side given"
        ),
        pytest.param([{"RandomCrop": {"size": 90}}], r"cannot be applied to a picture of 97 x 61 pixels: ", id="crop too large"),
        pytest.param([{"Grayscale": {}}, CROP], r"makes torch\.uint8 of shape \[1, 32, 32\]; what is needed is uint8", id="one channel"),
        pytest.param([{"FiveCrop": {"size": 32}}], r"cannot be applied to a picture of 320 x 240", id="five pictures"),
        pytest.param(["RandomIoUCrop"], r"cannot be applied to a picture of 320 x 240 pixels: .*bounding boxes", id="boxes"),
        pytest.param(["GaussianNoise", CROP], r"cannot be applied to a picture of 320 x 240 pixels: ", id="tensors only"),
        pytest.param([{"RandAugment": {"magnitude": 40}}, CROP], r"cannot be applied to a picture of 320 x 240 .*40", id="beyond"),
        pytest.param([{"Resize": {"size": [0, 0]}}], r"cannot be applied to a picture of 320 x 240 pixels: ", id="no size"),
    ],
)  # fmt: skip
def test_lists_that_make_no_batch(specs: list[Any], message: str) -> None:
    told = refusal(*specs)
    assert told.startswith(FIELD)
    assert re.search(message, told), told


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(-2, 2)
    | st.sampled_from(["bilinear", "reflect", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
    max_leaves=4,
)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@given(st.sampled_from([name for name in transform_names() if name != "JPEG"]), st.data())
def test_whatever_is_typed_ends_in_a_transform_or_a_message(name: str, data: st.DataObject) -> None:
    known = list(inspect.signature(getattr(v2, name)).parameters)
    arguments = data.draw(st.dictionaries(st.sampled_from(known), VALUES) if known else st.just({}))
    try:
        transform, (height, width) = build({name: arguments}, {"Resize": {"size": [16, 16]}})
    except UserError:
        return  # the messages themselves are looked at above
    assert (height, width) == (16, 16)
    assert tuple(transform(photo()).shape) == (3, 16, 16)


# --- normalisation


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("numbers", [IMAGENET, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0, 0), (1, 1, 1))], ids=str)
def test_normaliser_does_what_torchvision_does(numbers: tuple[Any, Any], channels_last: bool) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2 * 3 * 4).reshape(2, 3, 32, 32)
    before = pixels.clone()
    classic = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*map(list, numbers))])
    normalizer = Normalizer(*numbers, channels_last=channels_last)
    for _ in range(2):  # it keeps its numbers, not its results
        result = normalizer(pixels)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, classic(pixels), rtol=0, atol=1e-6)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last], ids=["from planes", "from channels"])
def test_normaliser_gives_the_layout_asked_for(given: torch.memory_format, channels_last: bool) -> None:
    pixels = torch.zeros(2, 3, 8, 6, dtype=torch.uint8).contiguous(memory_format=given)
    result = Normalizer(*IMAGENET, channels_last=channels_last)(pixels)
    wanted, other = (torch.channels_last, torch.contiguous_format)[:: 1 if channels_last else -1]
    assert result.is_contiguous(memory_format=wanted)
    assert not result.is_contiguous(memory_format=other)


# --- transforms of the user's own


class Flipped(v2.RandomHorizontalFlip):
    """Somebody's own that inherits from one of torchvision's, and does something else."""

    def forward(self, image: Any) -> Any:
        return image.rotate(90) if torch.rand(()) < 0.5 else image


def to_tensor() -> Callable[[Image.Image], torch.Tensor]:
    return lambda image: v2.functional.pil_to_tensor(image)


@pytest.fixture(autouse=True)
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", {})
    register("transform", "my/flip")(Flipped)
    register("transform", "my/tensor")(to_tensor)
    register("transform", "my/local")(lambda: lambda image: image)
    register("transform", "my/array")(lambda: np.asarray)
    register("transform", "my/float")(lambda: lambda image: v2.functional.pil_to_tensor(image).float())
    register("transform", "my/chance")(
        lambda: lambda image: image.rotate(180 * int(np.random.default_rng().integers(2)))
    )
    register("transform", "my/number")(lambda: 3)


SQUARE = [{"Resize": {"size": [24, 24]}}]


@pytest.mark.parametrize(
    "specs",
    [
        [*SQUARE, "my/flip"],
        ["my/flip", *SQUARE],
        [*SQUARE, {"my/flip": {"p": 0.3}}, "RandomVerticalFlip"],
        [*SQUARE, {"RandomApply": {"transforms": ["my/flip"], "p": 0.7}}],
        ["my/tensor", *SQUARE],
    ],
    ids=str,
)
def test_a_transform_of_ones_own_is_the_same_on_all_ways(specs: list[Any]) -> None:
    transform, size = build_transform(specs, field=FIELD)
    assert size == (24, 24)
    assert transform.on_device() is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    sent = pickle.loads(pickle.dumps(transform))
    seen = set()
    for key in range(20):
        made = transform.of_file(stream.getvalue(), "x", key)
        assert torch.equal(made, transform.of_file(stream.getvalue(), "x", key))
        assert torch.equal(made, sent.of_file(stream.getvalue(), "x", key))
        plain = transform.plainly().of_file(stream.getvalue(), "x", key)
        assert (made.int() - plain.int()).abs().max() <= 1
        seen.add(made.numpy().tobytes())
    assert len(seen) > 1 or specs[0] == "my/tensor"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("my/rain", r"the transform 'my/rain' is not known here\..* Registered: .*my/flip.* add --import MODULE"),
        ("my/flop", r"the transform 'my/flop' is not known here\. Did you mean 'my/flip'\?"),
        ({"my/flip": {"q": 1}}, r"my/flip does not take \{'q': 1\}: .*unexpected keyword argument 'q'"),
        ({"my/flip": [1]}, r"my/flip takes arguments by name, not \[1\]"),
        ("my/number", r"my/number made a int; a transform is called with a Pillow image"),
        ("my/array", r"my/array returned a ndarray; a Pillow image or a uint8 tensor \[3, H, W\] is needed"),
        ("my/float", r"my/float returned a tensor torch\.float32 \[3, 240, 320\]"),
        ("my/chance", r"with one seed my/chance makes another picture each time.* take all chance from torch"),
    ],
    ids=str,
)
def test_transforms_of_ones_own_that_are_refused(spec: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_transform([*SQUARE, spec] if spec == "my/chance" else [spec, *SQUARE], field=FIELD)


def test_what_workers_cannot_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    build_transform(["my/flip", *SQUARE], field=FIELD)[0].check_can_be_sent()
    transform, _ = build_transform(["my/local", *SQUARE], field=FIELD)
    with pytest.raises(UserError, match=r"'my/local' is defined in a notebook.*--data\.num-workers 0"):
        transform.check_can_be_sent()
