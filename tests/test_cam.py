"""Where a network looked: the right layer of every family, the right place in an image, a fallback where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.find import find_backbone
from accel_flowers.models.saved import SavedModel
from accel_flowers.models.spec import ModelSpec
from accel_flowers.report.cam import explain, last_feature_map, overlay

LAYERS = {
    "resnet18": "layer4",
    "squeezenet1_1": "features",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "shufflenet_v2_x0_5": "conv5",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "swin_t": None,
}
SLOW_LAYERS = {"convnext_tiny": "features", "regnet_y_400mf": "trunk_output", "googlenet": "inception5b", "vit_b_16": None, "vgg11": "avgpool",
               "mnasnet0_5": "layers", "alexnet": "avgpool", "maxvit_t": "blocks.3"}  # fmt: skip


def saved(name: str, size: int = 64) -> SavedModel:
    torch.manual_seed(0)
    backbone = find_backbone(name)
    classifier = Classifier(backbone.build(3)[0], (0.5,) * 3, (0.25,) * 3).eval()
    specs = ({"Resize": {"size": [size, size]}},)
    spec = ModelSpec(architecture=name, class_names=("a", "b", "c"), transforms=specs, mean=(0.5,) * 3, std=(0.25,) * 3)
    return SavedModel(spec, classifier, build_transform(specs, field="here")[0], backbone)


def images(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for _ in range(count)]


def check_layer(name: str, expected: str | None, size: int) -> None:
    model = saved(name, size)
    example = model.normalizer(torch.zeros((1, 3, size, size), dtype=torch.uint8))
    found = last_feature_map(model.network, example, model.backbone.head(model.network))
    assert found == expected
    result = explain(model, images(2), [0, 2])
    assert [image.size for image in result.images] == [(size, size)] * 2
    assert (f"({found})" in result.method) if found else "no convolutional feature map" in result.method


@pytest.mark.parametrize(("name", "expected"), LAYERS.items())
def test_last_feature_map(name: str, expected: str | None) -> None:
    check_layer(name, expected, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), SLOW_LAYERS.items())
def test_last_feature_map_of_more_families(name: str, expected: str | None) -> None:
    check_layer(name, expected, 224)


def test_every_image_of_several_batches_is_explained() -> None:
    assert len(explain(saved("squeezenet1_1"), images(19), [1] * 19).images) == 19
    assert explain(saved("squeezenet1_1"), [], []).images == ()


class Corner(nn.Module):
    """Says "0" for what is bright in an image's upper left; two convolutions, as a real network has more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            for module in (self.features[0], self.features[2], self.fc):
                module.weight.zero_()
                module.bias.zero_()
            self.features[0].weight[0] = 1.0
            self.features[2].weight[0, 0] = 1.0
            self.fc.weight[0, 0] = 1.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(pixels).mean(dim=(2, 3)))


def test_the_layer_lies_where_the_evidence_is() -> None:
    model = saved("squeezenet1_1")
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    black[8:24, 8:24] = 255
    model = SavedModel(
        model.spec, Classifier(Corner(), (0.5,) * 3, (0.25,) * 3).eval(), model.transform, model.backbone
    )
    found = np.asarray(explain(model, [Image.fromarray(black)], [0]).images[0]).astype(int)
    colour = np.ptp(found, axis=2)  # grey where nothing spoke for the answer
    assert colour[10:22, 10:22].mean() > 60
    assert colour[40:, 40:].mean() < 5


def test_a_layer_of_no_heat_leaves_a_grey_image() -> None:
    found = np.asarray(overlay(torch.full((3, 8, 8), 128, dtype=torch.uint8), torch.zeros(8, 8)))
    assert (np.ptp(found, axis=2) == 0).all()
