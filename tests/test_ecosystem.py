"""A model folder is what timm and transformers read: same classes, same probabilities, and what they cannot know is told."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from accel_flowers.models import saved
from accel_flowers.models.ecosystem import crop_of, form_of, lost
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, load_spec, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.timm_names import from_timm, timm_form, to_timm
from accel_flowers.models.weights import clean_state_dict

os.environ.setdefault("HF_HUB_OFFLINE", "1")
NAMES = ("aster", "Glöckchen", "12", 'a "quoted", one', "薔薇")
CROP = ({"Resize": {"size": 70}}, {"CenterCrop": {"size": 64}})
QUICK = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "timm/resnet10t")
SLOWER = (
    "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_v2_s", "convnext_tiny", "vit_b_16", "swin_t", "densenet121",
    "regnet_y_400mf", "regnet_x_400mf", "timm/tf_efficientnet_lite0", "timm/vit_tiny_patch16_224",
)  # fmt: skip
"""With those above, ten kinds of architecture and more."""
OF_ONE_SIZE = ("vit_b_16", "swin_t", "timm/vit_tiny_patch16_224")


def spec_of(name: str, **values: Any) -> ModelSpec:
    usual = {"transforms": CROP, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "class_names": NAMES}
    return ModelSpec.model_validate({"architecture": name, **usual, **values})


def network_of(name: str, num_classes: int = len(NAMES)) -> nn.Module:
    """Not fresh: one whose head is zero, whose scales are tiny, or whose norms are 0 and 1 would hide what is mixed up, and
    fresh networks of inverted residuals say the same of all images. So values are moved, and statistics are of images."""
    torch.manual_seed(3)
    backbone = find_backbone(name)
    network = backbone.build(num_classes)[0]
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point() and (value.ndim < 2 or "layer_scale" in key or "pos_emb" in key):
                value.add_(torch.randn_like(value) * 0.1)
        head = network.get_submodule(backbone.head(network))
        head.weight.normal_(0, 0.1)  # type: ignore[operator]
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        side = 224 if name in OF_ONE_SIZE else 64
        images = nn.functional.interpolate(torch.randn(8, 3, 6, 6), [side, side], mode="bicubic")
        network.train()(images)
        head.weight /= network.eval()(images).std()  # type: ignore[operator]  # so that no class is certain
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
    return network.eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of several shapes and modes."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = []
    for number, (width, height) in enumerate([(90, 120), (200, 71), (64, 64), (301, 300)]):
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        found.append(folder / f"{number}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(found[-1])
    return found


def probabilities(model: Path, pictures: Sequence[Path]) -> Tensor:
    """What this program says, [N, C], of pixels that Pillow prepares: a network at random makes much of a single grey level."""
    ours = saved.load_model(model)
    plain = ours.transform.plainly()
    with torch.inference_mode():
        said: Tensor = ours.classifier(torch.stack([plain.of_file(file.read_bytes(), file.name) for file in pictures]))
    return said


def by_timm(model: Path, pictures: Sequence[Path]) -> Tensor:
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network), is_training=False)
    inputs = torch.stack([prepare(Image.open(file).convert("RGB")) for file in pictures])
    with torch.inference_mode():
        scores: Tensor = network(inputs)
    return scores.softmax(dim=1)


def by_transformers(model: Path, pictures: Sequence[Path]) -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        from transformers import pipeline

        classify = pipeline("image-classification", model=str(model), device="cpu", top_k=len(NAMES))
        answers = [classify(str(file)) for file in pictures]
    assert {row["label"] for row in answers[0]} == set(NAMES)
    return torch.tensor(
        [[{row["label"]: row["score"] for row in answer}[name] for name in NAMES] for answer in answers]
    )


def saved_model(directory: Path, name: str, **values: Any) -> Path:
    if name in OF_ONE_SIZE:
        values = {"transforms": ({"Resize": {"size": 232}}, {"CenterCrop": {"size": 224}}), **values}
    save_model(directory, clean_state_dict(network_of(name)), spec_of(name, **values))
    return directory


def check_all_agree(model: Path, pictures: Sequence[Path]) -> None:
    ours = probabilities(model, pictures)
    assert ours.std(dim=0).max() > 1e-2, "pictures that all look alike to it prove nothing"
    for theirs in (by_timm(model, pictures), by_transformers(model, pictures)):
        assert torch.equal(theirs.argmax(dim=1), ours.argmax(dim=1))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)


@pytest.mark.holds("timm and transformers read a model folder, and say the same")
@pytest.mark.parametrize("name", QUICK)
def test_others_say_the_same(tmp_path: Path, pictures: list[Path], name: str) -> None:
    check_all_agree(saved_model(tmp_path / "model", name), pictures)


@pytest.mark.slow
@pytest.mark.holds("timm and transformers read a model folder, and say the same")
@pytest.mark.parametrize("name", SLOWER)
def test_others_say_the_same_of_more_networks(tmp_path: Path, pictures: list[Path], name: str) -> None:
    check_all_agree(saved_model(tmp_path / "model", name), pictures)


@pytest.mark.parametrize(
    "transforms",
    [
        ({"Resize": {"size": 64, "interpolation": "bicubic"}}, {"CenterCrop": {"size": 64}}),
        ({"Resize": {"size": 73}}, {"CenterCrop": {"size": [64, 64]}}),
        ({"Resize": {"size": [64, 64]}},),
    ],
)
def test_their_preparation_is_ours(tmp_path: Path, pictures: list[Path], transforms: Any) -> None:
    check_all_agree(saved_model(tmp_path / "model", "timm/resnet10t", transforms=transforms), pictures)


def test_a_wrong_preparation_would_be_seen(tmp_path: Path, pictures: list[Path]) -> None:
    """The other side of the tests above: each fault put in on purpose is larger than what they allow."""
    model = saved_model(tmp_path / "model", "timm/resnet10t")
    ours, whole = probabilities(model, pictures), json.loads((model / SPEC_FILE).read_text())
    for fault in (
        {"mean": [0.4, 0.4, 0.3]},
        {"mean": [0.3, 0.4, 0.5]},
        {"interpolation": "nearest"},
        {"crop_pct": 1.0},
    ):
        (model / SPEC_FILE).write_text(json.dumps({**whole, "pretrained_cfg": whole["pretrained_cfg"] | fault}))
        assert (by_timm(model, pictures) - ours).abs().max() > 1e-3, fault


def test_a_vision_transformer_of_another_size(tmp_path: Path, pictures: list[Path]) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=len(NAMES), img_size=96)
    spec = spec_of("timm/vit_tiny_patch16_224", transforms=({"Resize": {"size": 100}}, {"CenterCrop": {"size": 96}}))
    save_model(tmp_path / "model", clean_state_dict(network), spec)
    assert by_timm(tmp_path / "model", pictures).shape == (4, len(NAMES))


def test_several_labels_are_told_by_the_sigmoid(tmp_path: Path, pictures: list[Path]) -> None:
    model = saved_model(tmp_path / "model", "timm/resnet10t", several_labels=True)
    ours = probabilities(model, pictures)
    assert ours.sum(dim=1).max() > 1.2
    torch.testing.assert_close(by_transformers(model, pictures), ours, rtol=0, atol=1e-3)


# Names


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "swin_t"]
)
def test_names_go_there_and_back(name: str) -> None:
    form, state = timm_form(name), models.get_model(name, num_classes=7).state_dict()
    assert form is not None
    theirs = to_timm(state, form)
    assert {key: tensor.shape for key, tensor in theirs.items()} == {
        key: tensor.shape
        for key, tensor in timm.create_model(form.name, num_classes=7, **form.arguments).state_dict().items()
    }
    back = from_timm(dict(sorted(theirs.items())), form, state)
    torch.testing.assert_close(back, dict(state), rtol=0, atol=0)
    assert from_timm(state, form, state).keys() == state.keys(), "what is not timm's stays as it is"


def test_a_file_of_timms_weights_begins_a_network_of_torchvision(tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv3_small_100", num_classes=1000)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    network, report = build_network("mobilenet_v3_small", 5, weights=str(tmp_path / "timm.safetensors"))
    assert report.head_is_new
    assert not report.at_random
    torch.testing.assert_close(network.features[0][0].weight, theirs.conv_stem.weight)  # type: ignore[index]


@pytest.mark.holds("Model folders of earlier versions are read")
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_folder_of_the_first_format_is_read(tmp_path: Path, pictures: list[Path], name: str) -> None:
    new = saved_model(tmp_path / "new", name)
    old = tmp_path / "old"
    old.mkdir()
    content = load_spec(new).model_dump(mode="json", exclude={"training", "parts", "backbones"}) | {"format": 1}
    (old / SPEC_FILE).write_text(json.dumps(content))
    save_file(clean_state_dict(network_of(name)), old / WEIGHTS)
    assert load_spec(old).format == 1
    assert torch.equal(probabilities(old, pictures), probabilities(new, pictures))


# What they cannot know


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, []),
        ({"temperature": 1.5}, ["temperature, 1.5"]),
        ({"tta": "mirror", "temperature": 2}, ["temperature, 2", "mirror image"]),
        ({"transforms": ({"Resize": {"size": 80}}, {"Pad": {"padding": 2}})}, ["preparation of images"]),
        ({"several_labels": True, "thresholds": (0.5,) * 5}, ["threshold of each class"]),
        ({"architecture": "shufflenet_v2_x0_5", "temperature": 2}, ["cannot read this model: timm has no shufflenet"]),
        ({"architecture": "my/net"}, ["cannot read this model: my/net is a network of somebody's own"]),
    ],
)
def test_what_is_lost_is_told(values: dict[str, Any], told: list[str]) -> None:
    spec = spec_of("resnet18").model_copy(update=values)
    sentences = lost(spec)
    assert len(sentences) == len(told)
    for sentence, words in zip(sentences, told, strict=True):
        assert words in sentence
    assert all(sentence in saved.model_card(spec).replace("\\", "") for sentence in sentences), "and stands in the card"


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_network_that_timm_has_not_stands_alone(tmp_path: Path, name: str) -> None:
    model = saved_model(tmp_path / "model", name)
    assert json.loads((model / SPEC_FILE).read_text()).keys() == {"accel_flowers"}
    assert load_file(model / WEIGHTS).keys() == network_of(name).state_dict().keys()
    assert form_of(load_spec(model)) is None


@pytest.mark.parametrize(
    "transforms",
    [(), ("Grayscale",), ({"CenterCrop": {"size": 3}},), ({"Resize": {"size": 8, "max_size": 9}}, {"CenterCrop": {"size": 8}}),
     ({"Resize": {"size": [8, 9]}},), ({"Resize": {"size": [8, 8]}}, {"CenterCrop": {"size": 8}})],
)  # fmt: skip
def test_other_preparations_are_none_of_a_crop(transforms: Any) -> None:
    assert crop_of(transforms) is None
