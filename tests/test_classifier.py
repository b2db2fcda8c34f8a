"""Normaliser, network and temperature as one module: its numbers, its state, and what `torch.export` makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.find import build_network
from accel_flowers.models.normalizer import Normalizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Patches(nn.Module):
    """A network that wants its images contiguous: one convolution, as a vision transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 8, stride=8)
        self.head = nn.Linear(12, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(pixels).flatten(2).mean(dim=2))
        return scores


def network(channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    made = build_network("shufflenet_v2_x0_5", 4)[0] if channels_last else Patches()
    assert wants_channels_last(made) == channels_last
    return made.eval()


def pixels(batch: int, *, seed: int = 0) -> Tensor:
    """As a loader gives them: their channels lie together."""
    random = np.random.default_rng(seed).integers(0, 256, (batch, 32, 40, 3), dtype=np.uint8)
    return torch.from_numpy(random).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_its_numbers_are_those_of_its_parts(channels_last: bool) -> None:
    made = network(channels_last)
    classifier = Classifier(made, MEAN, STD, temperature=1.7).eval()
    images = pixels(3)
    inputs = Normalizer(MEAN, STD, channels_last=channels_last)(images)
    if channels_last:
        assert made.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert inputs.is_contiguous(memory_format=torch.channels_last)
    else:
        assert inputs.is_contiguous()
    assert torch.equal(classifier.logits(images), made(inputs))
    assert torch.equal(classifier(images), (made(inputs) / 1.7).softmax(dim=1))
    plain = Classifier(made, MEAN, STD).eval()
    assert torch.equal(plain(images), made(inputs).softmax(dim=1))


def test_its_state_is_the_networks() -> None:
    made = network(True)
    classifier = Classifier(made, MEAN, STD, temperature=2.0)
    assert set(classifier.state_dict()) == {f"network.{name}" for name in made.state_dict()}
    assert {name for name, _ in classifier.named_buffers()} >= {"temperature", "normalizer.scale", "normalizer.shift"}
    assert not Normalizer(MEAN, STD, channels_last=True).state_dict()


@torch.no_grad()
def test_scores_of_a_half_precision_network_are_float32() -> None:
    classifier = Classifier(network(False), MEAN, STD).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier.network(classifier.normalizer(pixels(2))).dtype == torch.bfloat16
        assert classifier.logits(pixels(2)).dtype == classifier(pixels(2)).dtype == torch.float32


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_normalizer_in_one_kernel_gives_the_same_numbers(channels_last: bool) -> None:
    """As on a GPU; a product and a sum that are rounded once differ in the last digit from two that are rounded each."""
    normalizer = Normalizer(MEAN, STD, channels_last=channels_last)
    given = pixels(3).contiguous()
    expected, made = normalizer(given), normalizer.in_one_kernel(given)
    assert made.dtype == torch.float32
    assert made.stride() == expected.stride()
    torch.testing.assert_close(made, expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_exported_normalizer_gives_the_same_bits(channels_last: bool) -> None:
    normalizer = Normalizer(MEAN, STD, channels_last=channels_last)
    exported = torch.export.export(normalizer, (pixels(3),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for batch in (1, 2, 7):
        made, expected = exported(pixels(batch, seed=batch)), normalizer(pixels(batch, seed=batch))
        assert torch.equal(made, expected)
        assert made.stride() == expected.stride() or batch == 1


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_it_is_exported_with_a_batch_of_any_size(channels_last: bool, layout: torch.memory_format) -> None:
    classifier = Classifier(network(channels_last), MEAN, STD, temperature=0.8).eval()
    example = pixels(2).contiguous(memory_format=layout)
    program = torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 2, 5, 16):
        images = pixels(batch, seed=batch).contiguous(memory_format=layout)
        torch.testing.assert_close(program.module()(images), classifier(images), rtol=1e-5, atol=1e-6)
