"""Learning rates against torch's own schedulers, parameter groups, and one step of each optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from accel_flowers.config.schema import OptimConfig, ScheduleConfig
from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.training.optim import build_lr_schedule, build_optimizer, set_lr

LR = 0.4
NAMES = ("constant", "step", "multistep", "cosine", "one_cycle")


def schedule(epochs: int = 30, **options: Any) -> Callable[[float], float]:
    return build_lr_schedule(ScheduleConfig(**options), lr=LR, epochs=epochs)


def rates_of_torch(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], points: int) -> list[float]:
    """The rate at 0, 1, … points - 1 steps of a scheduler."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    rates = []
    for _ in range(points):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        ({"name": "step", "step_epochs": 7, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 7, gamma=0.5)),
        (
            {"name": "multistep", "milestones": (3, 11, 20), "gamma": 0.3},
            lambda o: lr_scheduler.MultiStepLR(o, [3, 11, 20], gamma=0.3),
        ),
        ({"name": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, 30)),
        ({"name": "cosine", "min_factor": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.1 * LR)),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_schedule_equals_torchs(options: dict[str, Any], make: Any) -> None:
    lr_at = schedule(**options)
    assert [lr_at(epoch) for epoch in range(31)] == pytest.approx(rates_of_torch(make, 31), abs=1e-12)


def test_one_cycle_equals_torchs() -> None:
    # Torch counts its two parts in steps and ends them one early, so it is laid over a run of one epoch more.
    lr_at = schedule(name="one_cycle", epochs=30, warmup_epochs=11, min_factor=1 / 25 / 1e4)
    expected = rates_of_torch(
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=LR, total_steps=31, pct_start=12 / 31, cycle_momentum=False), 30
    )
    assert [lr_at(epoch) for epoch in range(30)] == pytest.approx(expected, rel=1e-9)
    assert lr_at(30) == pytest.approx(LR / 25 / 1e4)


def test_one_cycle_rises_for_30_percent_of_the_run_by_default() -> None:
    lr_at = schedule(name="one_cycle", epochs=20)
    assert lr_at(0) == pytest.approx(LR / 25)
    assert lr_at(6) == pytest.approx(LR)
    assert max(lr_at(step / 10) for step in range(201)) == pytest.approx(LR)
    assert lr_at(20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine"])
def test_a_warm_up_rises_evenly_to_the_schedule(name: str) -> None:
    lr_at = schedule(name=name, warmup_epochs=2)
    # LinearLR does not begin at 0, but it may begin right above.
    expected = rates_of_torch(lambda o: lr_scheduler.LinearLR(o, start_factor=1e-12, total_iters=20), 21)
    assert [lr_at(step / 10) for step in range(21)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine"])
def test_no_step_of_a_warm_up_is_wasted(name: str) -> None:
    """Ten steps an epoch, two epochs of warm-up: the first has a twentieth of the rate, the twentieth all of it."""
    lr_at = build_lr_schedule(ScheduleConfig(name=name, warmup_epochs=2), lr=LR, epochs=30, step=0.1)
    assert [lr_at(step / 10) for step in range(20)] == pytest.approx([LR * (step + 1) / 20 for step in range(20)])
    plain = schedule(name=name, warmup_epochs=2)
    assert [lr_at(2 + step / 10) for step in range(50)] == [plain(2 + step / 10) for step in range(50)]


def test_cosine_falls_over_what_the_warm_up_leaves() -> None:
    lr_at, plain = schedule(name="cosine", epochs=25, warmup_epochs=5), schedule(name="cosine", epochs=20)
    assert [lr_at(5 + epoch) for epoch in range(21)] == pytest.approx([plain(epoch) for epoch in range(21)], abs=1e-12)


def test_a_warm_up_does_not_move_the_drops() -> None:
    lr_at = schedule(name="step", step_epochs=5, warmup_epochs=2, gamma=0.1)
    assert (lr_at(4.99), lr_at(5)) == (pytest.approx(LR), pytest.approx(LR / 10))


@pytest.mark.parametrize("warmup", [0.0, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_rate_depends_on_the_epoch_alone(name: str, warmup: float) -> None:
    """It has no memory, so that a resumed run and any number of processes have the same."""
    lr_at = schedule(name=name, warmup_epochs=warmup)
    points = [epoch / 7 for epoch in range(7 * 30 + 1)]
    forwards = [lr_at(point) for point in points]
    assert [lr_at(point) for point in reversed(points)] == forwards[::-1]
    assert [schedule(name=name, warmup_epochs=warmup)(point) for point in points] == forwards
    assert all(0 <= rate <= LR * (1 + 1e-12) for rate in forwards)


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_as_long_as_the_run_does_no_harm(name: str) -> None:
    lr_at = schedule(name=name, epochs=3, warmup_epochs=3)
    assert all(math.isfinite(lr_at(step / 4)) for step in range(13))


# Optimizers


def small() -> nn.Module:
    """A bias, a norm and a weight, each with and without."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False), nn.LayerNorm(1))


def names_in_groups(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    """Weight decay → names of the parameters that have it."""
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        group["weight_decay"]: {name_of[id(parameter)] for parameter in group["params"]}
        for group in optimizer.param_groups
    }


def test_all_parameters_decay_unless_told_otherwise() -> None:
    network = small()
    optimizer = build_optimizer(network, OptimConfig(weight_decay=0.1))
    assert names_in_groups(network, optimizer) == {0.1: {name for name, _ in network.named_parameters()}}


def test_norms_and_biases_can_be_spared_from_decay() -> None:
    network = small()
    optimizer = build_optimizer(network, OptimConfig(weight_decay=0.1, decay_norms_and_biases=False))
    assert names_in_groups(network, optimizer) == {
        0.1: {"0.weight", "2.weight"},
        0.0: {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias"},
    }


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "convnext_tiny", "swin_t"])
def test_norms_and_biases_are_found_in_every_kind_of_network(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, 5)[0]
    optimizer = build_optimizer(network, OptimConfig(weight_decay=0.1, decay_norms_and_biases=False))
    groups = names_in_groups(network, optimizer)
    assert {n for n in groups[0.1] if n.endswith("bias")} == set(), "biases have many names: ViT has an in_proj_bias"
    assert {n for n, p in network.named_parameters() if p.ndim == 1} == groups[0.0]
    assert len(groups[0.0] | groups[0.1]) == len(list(network.named_parameters()))


@pytest.mark.parametrize("spare", [True, False], ids=["spared", "decayed"])
def test_what_is_frozen_is_in_no_group(spare: bool) -> None:
    network = build_network("shufflenet_v2_x0_5", 3)[0]
    freeze(network, "backbone", find_backbone("shufflenet_v2_x0_5"))
    optimizer = build_optimizer(network, OptimConfig(weight_decay=0.1, decay_norms_and_biases=not spare))
    found = names_in_groups(network, optimizer)
    assert found == ({0.1: {"fc.weight"}, 0.0: {"fc.bias"}} if spare else {0.1: {"fc.weight", "fc.bias"}})


def test_nothing_to_train_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"model\.freeze leaves nothing to train.*backbone"):
        build_optimizer(small().requires_grad_(False), OptimConfig())


def test_set_lr_reaches_every_group() -> None:
    optimizer = build_optimizer(small(), OptimConfig(weight_decay=0.1, decay_norms_and_biases=False))
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"name": "sgd", "momentum": 0.8, "nesterov": True}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ({"name": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ({"name": "adam"}, torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ({"name": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ({"name": "rmsprop", "momentum": 0.8}, torch.optim.RMSprop, {"momentum": 0.8}),
    ],
    ids=["nesterov", "sgd", "adam", "adamw", "rmsprop"],
)
def test_an_optimizer_has_its_settings_and_descends(
    options: dict[str, Any], kind: type[torch.optim.Optimizer], expected: dict[str, Any]
) -> None:
    network = nn.Linear(3, 1)
    optimizer = build_optimizer(network, OptimConfig(lr=0.01, weight_decay=0.3, **options))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in ("lr", "weight_decay", *expected)} == {
        "lr": 0.01,
        "weight_decay": 0.3,
        **expected,
    }
    losses = []
    for _ in range(5):
        loss = quadratic(network)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def quadratic(network: nn.Linear) -> Tensor:
    """Squared distance of the weights from 1."""
    return ((network.weight - 1) ** 2).sum() + ((network.bias - 1) ** 2).sum()


def test_weight_decay_pulls_only_what_decays() -> None:
    network = small()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(
        network, OptimConfig(name="sgd", lr=1.0, weight_decay=0.5, momentum=0, decay_norms_and_biases=False)
    ).step()
    values = {name: float(parameter.detach().flatten()[0]) for name, parameter in network.named_parameters()}
    assert values == {name: 0.5 if name in ("0.weight", "2.weight") else 1.0 for name in values}


# One kernel for all parameters


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_fused_step_is_the_same_step(name: str) -> None:
    """Channels last and with a bias that does not decay, as in training; fp16's scaler gets the other kind."""
    networks = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network, _ = build_network("squeezenet1_1", 3)
        network.to(memory_format=torch.channels_last)
        config = OptimConfig(name=name, lr=1e-2, weight_decay=0.1, decay_norms_and_biases=False)
        optimizer = build_optimizer(network, config, scaled=scaled)
        assert all(bool(group.get("fused")) == (not scaled and name != "rmsprop") for group in optimizer.param_groups)
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            for parameter in network.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
        networks.append(network)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "convnext_tiny", "swin_t"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_gradients_lie_in_memory_as_their_parameters_do(name: str, bf16: bool) -> None:
    """A fused step on a CPU takes that for granted without looking."""
    network, _ = build_network(name, 3)
    if wants_channels_last(network):
        network.to(memory_format=torch.channels_last)
    for _ in range(2):
        pixels = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            scores = network(pixels)
        scores.float().square().mean().backward()
    parameters = dict(network.named_parameters())
    assert any(p.dim() == 4 and not p.is_contiguous() for p in parameters.values()) == wants_channels_last(network)
    for path, parameter in parameters.items():
        assert parameter.grad is not None
        assert torch.empty_like(parameter).stride() == parameter.stride(), path
        wide = [place for place, size in enumerate(parameter.shape) if size > 1]
        assert [parameter.grad.stride(place) for place in wide] == [parameter.stride(place) for place in wide], path
