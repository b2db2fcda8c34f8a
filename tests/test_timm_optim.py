"""timm's optimizers: taken by their names, saved and put back to the bit, refused where that cannot be."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.state import whole_optimizer_state
from accel_flowers.models.layers import HEAD
from accel_flowers.training.checkpoint import _fitted
from accel_flowers.training.optim import build_optimizer, set_lr
from accel_flowers.training.timm_optim import why_refused
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import metrics, tiny_config

optim = pytest.importorskip("timm.optim")


def build(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    names = [path for path, _ in network.named_parameters()]
    layers = {"stage_1": names[:4], HEAD: names[4:]}
    config = OptimConfig(name=f"timm/{name}", weight_decay=0.1, decay_norms_and_biases=False, layer_decay=0.5)
    return network, build_optimizer(network, config, layers=layers)


def take(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, *, head_only: bool = False) -> None:
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        for place, parameter in enumerate(network.parameters()):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if head_only and place < 4 else gradient
        set_lr(optimizer, 1e-2 / (1 + number))
        optimizer.step()
        optimizer.zero_grad()


def test_all_go_on_to_the_bit() -> None:
    """Each that is not refused: from a checkpoint after two steps of the head alone and two of all."""
    names = [name for name in optim.list_optimizers() if why_refused(name) is None]
    assert {"lion", "muon", "lamb", "nadamw", "adan"} <= set(names)
    for name in names:
        (one, of_one), (other, of_other) = build(name), build(name)
        take(one, of_one, range(2), head_only=True)
        take(one, of_one, range(2, 4))
        file = io.BytesIO()
        torch.save(whole_optimizer_state(one, of_one), file)
        file.seek(0)
        other.load_state_dict(one.state_dict())
        of_other.load_state_dict(_fitted(torch.load(file, weights_only=True), of_other))
        for network, optimizer in ((one, of_one), (other, of_other)):
            take(network, optimizer, range(4, 7))
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, its), name
            assert mine.isfinite().all(), name


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lionn", {}, r"timm has no optimizer 'lionn'.*Did you mean 'lion'"),
        ("kron", {}, r"timm/kron draws chance that no checkpoint holds\. Allowed: .*muon"),
        ("cadafactorbv", {}, "state of other shapes"),
        ("lion", {"speed": 3}, r"optim\.options: timm/lion does not take \{'speed': 3\}"),
    ],
)
def test_mistakes_are_told(name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name=f"timm/{name}", options=options))


def test_a_run_with_muon(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=8)
    settings = {"name": "timm/muon", "lr": 1e-3, "options": {"nesterov": True}}
    train(tiny_config(photos, tmp_path / "run", optim=settings, train={"epochs": 2, "head_epochs": 0.5}))
    first, last = metrics(tmp_path / "run", "val/loss")
    assert last < first
