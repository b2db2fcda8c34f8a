"""Depthwise convolutions on a CPU: they learn in float32 under bf16, and nothing else about the network changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from accel_flowers.models.depthwise import learn_depthwise_in_float32
from accel_flowers.models.find import build_network


def depthwise(*, padding: int | str = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, 3, padding=padding, groups=8)


def pixels() -> Tensor:
    return torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


def answer(layer: nn.Module, x: Tensor, *, bf16: bool = True) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found: Tensor = layer(x)
    return found


def test_it_learns_in_float32_and_hands_on_bf16() -> None:
    """The gradients of weights and input are float32's, but for the rounding of what is handed on."""
    plain, changed = depthwise(), depthwise()
    learn_depthwise_in_float32(nn.Sequential(changed))
    found = {}
    for name, layer, bf16 in (
        ("exact", plain, False),
        ("bf16", copy.deepcopy(plain), True),
        ("changed", changed, True),
    ):
        x = pixels().requires_grad_()
        y = answer(layer, x, bf16=bf16)
        assert y.dtype == (torch.bfloat16 if bf16 else torch.float32)
        (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        assert layer.weight.grad is not None
        assert x.grad is not None
        found[name] = torch.cat([layer.weight.grad.flatten(), x.grad.flatten()])
    errors = {name: float((found[name] - found["exact"]).norm() / found["exact"].norm()) for name in found}
    assert 0 < errors["changed"] < errors["bf16"]


@pytest.mark.parametrize("way", ["float32", "asked alone", "frozen"])
def test_nothing_changes_elsewhere(way: str) -> None:
    """To the bit: in float32, without a backward pass, where the layer and all before it are frozen."""
    plain, changed = depthwise(), depthwise()
    learn_depthwise_in_float32(nn.Sequential(changed))
    if way == "frozen":
        plain.requires_grad_(False)
        changed.requires_grad_(False)
    with torch.set_grad_enabled(way != "asked alone"):
        found = [answer(layer, pixels(), bf16=way != "float32") for layer in (plain, changed)]
    assert found[0].dtype == (torch.float32 if way == "float32" else torch.bfloat16)
    assert torch.equal(*found)


def test_only_depthwise_convolutions_are_changed_and_only_once() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(1, 4, 3), depthwise())
    before = [type(each) for each in layers]
    learn_depthwise_in_float32(layers)
    learn_depthwise_in_float32(layers)
    after = [type(each) for each in layers]
    assert after[:3] == before[:3]
    assert issubclass(after[3], nn.Conv2d)
    assert after[3].__mro__.count(nn.Conv2d) == 1
    assert [each.__name__ for each in after[3].__mro__].count("_LearnsInFloat32") == 1
    assert list(layers.state_dict()) == [f"{place}.{name}" for place in range(4) for name in ("weight", "bias")]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/tf_efficientnet_lite0"])
def test_a_copy_is_a_network_of_its_own(name: str) -> None:
    """As the moving average's is; timm's own kinds of convolutions, which pad by themselves, go along."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    network, _ = build_network(name, 3)
    learn_depthwise_in_float32(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.randn(2, 3, 64, 64)
    y = answer(network.train(), x)
    assert y.float().std() > 0
    assert answer(twin.train(), x).float().std() == 0
    y.float().sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in network.parameters())
    assert all(each.grad is None for each in twin.parameters())
