"""Sharpness-aware steps: the gradient by hand, and that nothing but the gradient is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.training.graph import graphed
from accel_flowers.training.sam import SharpnessAwareStep, climbed, sharpness_aware
from accel_flowers.training.step import LocalEngine, TrainStep, loaded_whole
from accel_flowers.training.tasks import classification
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import metrics, tiny_config


class Net(nn.Module):
    """Batch norm and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout))
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.body(inputs))
        return scores


def batch_of(number: int, size: int = 8) -> Batch:
    """Random pictures of 8 x 8 pixels."""
    chance = torch.Generator().manual_seed(number)
    labels = torch.randint(3, (size,), generator=chance)
    pixels = torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=chance)
    return Batch(pixels=pixels, labels=labels, samples=labels, micro_batch=number)


def step_of(network: nn.Module, rho: float | None, scale: Callable[[Tensor], Tensor] | None = None) -> TrainStep:
    """Whose optimizer changes nothing, so that gradients and weights can be looked at."""
    set_training_mode(network)
    optimizer = torch.optim.SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.0)
    optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    step = TrainStep(
        LocalEngine(), network, optimizer, classification(cross_entropy), loaded_whole, lambda pixels: pixels / 255
    )
    return sharpness_aware(step, rho, scale)


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


def usual_gradients(network: nn.Module, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients at the weights as they are; none are left in the network."""
    loss = cross_entropy(network(batch["pixels"] / 255), batch["labels"])
    found = torch.autograd.grad(loss, list(network.parameters()))
    return float(loss.detach()), dict(zip(dict(network.named_parameters()), found, strict=True))


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_gradient_is_that_of_the_worst_weights_nearby(rho: float) -> None:
    """By hand: g at w, then the gradient at w + rho g / |g|."""
    network, batch = Net(0.0), batch_of(0)
    output = step_of(network, rho)(batch)
    found, before = gradients_of(network), Net(0.0)
    set_training_mode(before)
    loss, uphill = usual_gradients(before, batch)
    norm = torch.cat([each.flatten() for each in uphill.values()]).norm()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True)), "to the bit"
    with torch.no_grad():
        for name, parameter in before.named_parameters():
            parameter += rho * uphill[name] / norm
    nearby, expected = usual_gradients(before, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert float(output.loss) == pytest.approx(loss), "what is logged is the loss of the weights as they are"
    assert float(output.parts["loss_nearby"]) == pytest.approx(nearby, rel=1e-4)
    assert nearby > loss
    assert not output.loss.requires_grad


def test_statistics_and_right_answers_are_those_of_the_weights_as_they_are() -> None:
    """One look at the pictures, not two."""
    usual, climbing = Net(0.0), Net(0.0)
    outputs = [step_of(usual, None)(batch_of(1)), step_of(climbing, 3.0)(batch_of(1))]
    for name, buffer in usual.named_buffers():
        assert torch.equal(buffer, climbing.get_buffer(name)), name
    assert climbing.get_buffer("body.1.num_batches_tracked") == 1
    assert torch.equal(outputs[0].parts["accuracy"], outputs[1].parts["accuracy"])


def test_both_passes_drop_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A climb of next to nothing gives the usual gradient, and chance afterwards stands where it does after a usual step."""
    found, chance = [], []
    for rho in (None, 1e-9):
        network = Net(0.5)
        step = step_of(network, rho)
        torch.manual_seed(7)
        step(batch_of(2))
        found.append(gradients_of(network))
        chance.append(torch.get_rng_state())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)
    assert torch.equal(*chance)


@pytest.mark.holds("Each forward pass climbs by itself")
def test_micro_batches_add_up() -> None:
    """What the one before has left in the gradients does not turn the next one's climb."""
    alone = []
    for number in (3, 4):
        network = Net(0.0)
        step_of(network, 1.0)(batch_of(number))
        alone.append(gradients_of(network))
    network = Net(0.0)
    step = step_of(network, 1.0)
    for number in (3, 4):
        step(batch_of(number))
    for name, gradient in gradients_of(network).items():
        torch.testing.assert_close(gradient, alone[0][name] + alone[1][name], atol=1e-5, rtol=1e-4)


def test_what_is_frozen_neither_climbs_nor_counts() -> None:
    network = Net(0.0)
    network.body[0].requires_grad_(False)
    step_of(network, 1.0)(batch_of(5))
    assert "body.0.weight" not in gradients_of(network)
    moved = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    with climbed(moved, [torch.tensor([3.0, 4.0]), None], 0.5):
        assert torch.allclose(moved[0], torch.tensor([0.3, 0.4]))
        assert torch.equal(moved[1], torch.zeros(3))
        assert torch.is_grad_enabled()
    assert torch.equal(moved[0], torch.zeros(2))


@pytest.mark.parametrize("gradient", [[1.0, torch.inf], [torch.nan, 1.0], [0.0, 0.0]])
def test_a_gradient_that_is_no_number_moves_nothing(gradient: list[float]) -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    with climbed([weights], [torch.tensor(gradient)], 0.5):
        assert torch.equal(weights, torch.tensor([1.0, 2.0]))


def test_weights_come_back_after_an_error() -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="out"), climbed([weights], [torch.ones(2)], 0.5):
        raise RuntimeError("out of memory")
    assert torch.equal(weights, torch.tensor([1.0, 2.0]))


def test_a_scaled_loss_climbs_the_same_way() -> None:
    found = []
    for scale in (None, lambda loss: loss * 65536):
        network = Net(0.0)
        step_of(network, 0.5, scale)(batch_of(6))
        found.append(gradients_of(network))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_without_it_the_step_is_the_usual_one() -> None:
    assert type(step_of(Net(0.0), None)) is TrainStep
    assert type(step_of(Net(0.0), 0.1)) is SharpnessAwareStep
    with pytest.raises(ValueError, match="greater than 0"):
        Config.model_validate({"optim": {"sam_rho": 0}})


def test_no_cuda_graph_of_it() -> None:
    config = Config.model_validate({"optim": {"sam_rho": 0.1}, "train": {"cuda_graph": "on"}})
    with pytest.raises(UserError, match=r"two forward passes.*--optim\.sam-rho"):
        graphed(step_of(Net(0.0), 0.1), config, device=torch.device("cuda"), plan=BatchPlan(100, 1, 8))


@pytest.mark.parametrize(
    "sections", [{}, {"train": {"head_epochs": 0.5}, "ema": {"decay": 0.9}}], ids=["plain", "phases"]
)
def test_a_run_with_it(tmp_path: Path, sections: dict[str, Any]) -> None:
    """Clipping, dropout, accumulation; the loss nearby is above the loss."""
    photos = make_folder(tmp_path / "photos", per_class=8)
    config = tiny_config(
        photos, tmp_path / "run", model={"dropout": 0.2},
        **{**sections, "optim": {"lr": 1e-3, "sam_rho": 0.05, "max_grad_norm": 1.0}},
    )  # fmt: skip
    train(config)
    usual, nearby = (metrics(tmp_path / "run", f"train/{name}") for name in ("loss", "loss_nearby"))
    assert len(usual) == len(nearby) == len(metrics(tmp_path / "run", "train/accuracy"))
    assert all(b > a for a, b in zip(usual, nearby, strict=True)), (usual, nearby)
