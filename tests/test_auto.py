"""`model.name: auto`: recognised by the file of weights, or chosen for the machine; remembered by the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from accel_flowers.config.loading import read_config
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.models.auto import recognise, settle_model
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_spec
from accel_flowers.training.train import train
from tests.runs import tiny_config


def settled(weights: object) -> tuple[str, list[str]]:
    config, told = settle_model(Config.model_validate({"model": {"name": "auto", "weights": str(weights)}}))
    return config.model.name, told


@pytest.mark.parametrize(
    "name", ["resnet34", pytest.param("timm/tf_efficientnet_lite0", marks=pytest.mark.slow), "swin_t"]
)
def test_a_file_of_weights_says_whose_it_is(name: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    network, _ = build_network(name, 7)
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in network.state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    found, told = settled(tmp_path / "w.safetensors")
    assert found == name
    assert told == [f"model.name auto: {name}, for the tensors of {tmp_path / 'w.safetensors'} are its"]


def test_a_part_of_the_weights_is_enough_and_another_network_is_not_guessed() -> None:
    network, _ = build_network("resnet18", 7)
    part = {key: tensor for key, tensor in network.state_dict().items() if "layer4.1" not in key}
    assert recognise(part, source="it") == "resnet18"
    with pytest.raises(UserError, match=r"it holds the weights of no network.*nearest: .* --model\.name resnet18"):
        recognise({"layer.weight": torch.zeros(3, 3)}, source="it")


@pytest.mark.parametrize(
    ("gpu", "use_cpu", "timm", "name"),
    [
        (False, "false", True, "timm/tf_efficientnet_lite0"),
        (False, "false", False, "resnet18"),
        (True, "false", False, "convnext_tiny"),
        (True, "true", False, "resnet18"),
        (True, "1", False, "resnet18"),
    ],
)
def test_without_a_file_it_follows_from_the_machine(
    gpu: bool, use_cpu: str, timm: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if timm else None)
    for weights in ("imagenet", "none"):
        found, told = settled(weights)
        assert found == name
        assert told[0].startswith(f"model.name auto: {name}, a good one for a ")


def test_a_run_goes_on_with_the_network_that_it_chose(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(tiny_config(folder, first, train={"epochs": 1}))  # squeezenet1_1, which is not chosen by itself
    again = tiny_config(folder, tmp_path / "run", model={"name": "auto", "weights": str(first)}, train={"epochs": 1})
    train(again)
    assert load_spec(tmp_path / "run/model").architecture == "squeezenet1_1"
    assert read_config(tmp_path / "run/config.yaml", what="it").model.name == "squeezenet1_1"
    (first / "model/config.json").unlink()
    result = train(again.model_copy(update={"resume": "auto"}))
    assert result.best_epoch == 1, "what it was chosen by is not looked at again"
