"""Learning rates layer by layer: against a table made by hand, timm's own, and in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.models.backbone import Backbone
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.layers import layers_of
from accel_flowers.models.weights import WeightsReport
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.training.optim import build_optimizer, lr_of_groups, set_lr
from accel_flowers.training.train import train
from tests.runs import tiny_config


def rates(name: str, config: OptimConfig, lr: float = 1.0) -> dict[str, float]:
    """Name of each parameter that trains → its rate."""
    with torch.device("meta"):
        network = build_network(name, 5)[0]
    optimizer = build_optimizer(network, config, layers=layers_of(network, find_backbone(name)))
    set_lr(optimizer, lr)
    name_of = {id(parameter): path for path, parameter in network.named_parameters()}
    found = {name_of[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert len(found) == len(name_of), "each parameter is in one group"
    return found


@pytest.mark.parametrize("spare", [False, True], ids=["decayed", "spared"])
def test_rates_fall_from_the_head_to_the_image(spare: bool) -> None:
    config = OptimConfig(layer_decay=0.5, head_lr_factor=3.0, weight_decay=0.1, decay_norms_and_biases=not spare)
    expected = {
        "conv1": 1 / 32,
        "bn1": 1 / 32,
        "layer1": 1 / 16,
        "layer2": 1 / 8,
        "layer3": 1 / 4,
        "layer4": 1 / 2,
        "fc": 3,
    }
    for path, rate in rates("resnet18", config, lr=0.2).items():
        assert rate == pytest.approx(0.2 * expected[path.partition(".")[0]]), path


def test_a_faster_head_leaves_the_rest_alone() -> None:
    found = rates("mobilenet_v3_small", OptimConfig(head_lr_factor=10.0))
    assert {path for path, rate in found.items() if rate == 10} == {"classifier.3.weight", "classifier.3.bias"}
    assert set(found.values()) == {1.0, 10.0}


def test_what_lies_before_the_head_goes_with_the_last_stage() -> None:
    """VGG has two linear layers between its stages and its head."""
    found = rates("vgg11", OptimConfig(layer_decay=0.5))
    assert (found["classifier.6.weight"], found["classifier.3.weight"], found["classifier.0.bias"]) == (1.0, 0.5, 0.5)
    assert found["features.18.weight"] == 0.5
    assert found["features.16.weight"] == 0.25


def test_rates_of_a_vision_transformer_are_timms() -> None:
    pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    name = "timm/vit_tiny_patch16_224"
    network = build_network(name, 5)[0]
    of_timm = param_groups_layer_decay(network, layer_decay=0.75, weight_decay=0.0)
    name_of = {id(parameter): path for path, parameter in network.named_parameters()}
    expected = {name_of[id(each)]: group["lr_scale"] for group in of_timm for each in group["params"]}
    assert rates(name, OptimConfig(layer_decay=0.75)) == pytest.approx(expected)


def test_of_many_layers_three_curves_are_shown() -> None:
    with torch.device("meta"):
        network = build_network("vit_b_16", 5)[0]
    backbone = find_backbone("vit_b_16")
    optimizer = build_optimizer(network, OptimConfig(layer_decay=0.5), layers=layers_of(network, backbone))
    set_lr(optimizer, 1.0)
    curves = lr_of_groups(optimizer)
    assert list(curves) == ["stage_01", "stage_13", "head"]
    assert (curves["stage_13"], curves["head"]) == (0.5, 1.0)
    freeze(network, "backbone", backbone)
    assert lr_of_groups(optimizer) == {"head": 1.0}, "what does not train has no rate"


class Flat(Backbone):
    """A network of one layer."""

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        del dropout
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
        return network, self.first_weights(network, weights)


def test_a_network_without_stages_is_told(folder: Path, tmp_path: Path) -> None:
    register("model", "my/flat")(Flat)
    model = {"name": "my/flat"}
    with pytest.raises(UserError, match=r"--optim\.layer-decay goes by the stages.*my/flat.*`stages` of its Backbone"):
        train(tiny_config(folder, tmp_path / "one", model=model, optim={"layer_decay": 0.9}))
    train(tiny_config(folder, tmp_path / "two", model=model, optim={"head_lr_factor": 2.0}, train={"epochs": 1}))


def test_a_run_logs_the_rates_of_its_layers(folder: Path, tmp_path: Path) -> None:
    optim = {"name": "adamw", "lr": 1e-3, "layer_decay": 0.5, "weight_decay": 0.1, "decay_norms_and_biases": False}
    schedule = {"name": "step", "step_epochs": 1, "gamma": 0.5}
    train(
        tiny_config(folder, tmp_path / "run", model={"name": "resnet18", "freeze": 3}, optim=optim, schedule=schedule)
    )
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "train/loss" in line]
    found = [{name: line[name] for name in line if name.startswith("lr/")} for line in lines]
    assert found[0] == pytest.approx({"lr/stage_4": 2.5e-4, "lr/stage_5": 5e-4, "lr/head": 1e-3})
    assert found[-1] == pytest.approx({"lr/stage_4": 1.25e-4, "lr/stage_5": 2.5e-4, "lr/head": 5e-4})


def test_equal_steps_with_and_without_layers() -> None:
    """A factor of 1 everywhere changes no weight to the bit."""
    weights: list[list[Tensor]] = []
    for config in (OptimConfig(name="adamw", lr=0.1), OptimConfig(name="adamw", lr=0.1, layer_decay=1.0)):
        torch.manual_seed(0)
        network = build_network("squeezenet1_1", 3)[0]
        optimizer = build_optimizer(network, config, layers=layers_of(network, find_backbone("squeezenet1_1")))
        set_lr(optimizer, 0.05)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        weights.append([parameter.detach() for parameter in network.parameters()])
    assert len(optimizer.param_groups) > 2
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
