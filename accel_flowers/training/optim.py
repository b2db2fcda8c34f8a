"""Optimizers, and the learning rate as a pure function of the step.

A schedule object would be one more thing to save, and one that Accelerate advances once for each process; a function
of the step is neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from accel_flowers.config.schema import OptimConfig, ScheduleConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError

LearningRate = Callable[[float], float]
"""Epochs that lie behind (a fraction inside an epoch) → learning rate."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(network: nn.Module, config: OptimConfig, *, scaled: bool = False) -> torch.optim.Optimizer:
    """Make the optimizer of what trains in `network`.

    A step is one fused kernel where torch has one: on a CPU three to nine times as fast as its loop over parameters.

    Args:
        network: on the device where it trains.
        config: which optimizer.
        scaled: whether fp16's gradient scaler takes the steps. It hands a fused optimizer the overflow instead of
            leaving the step out, so that nobody could count what was skipped; then the step is not fused.

    Raises:
        UserError: nothing trains.
    """
    groups = _parameter_groups(network, config)
    if not groups:
        raise UserError("model.freeze leaves nothing to train: take a smaller number, or 'backbone'.")
    on = {parameter.device.type for parameter in network.parameters() if parameter.requires_grad}
    fused = True if not scaled and on <= set(_FUSED_DEVICES) else None
    match config.name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
            )
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)
    part = registry.find("optimizer", config.name)
    assert part is not None, "the configuration was checked"
    try:
        made = part.make(groups, lr=config.lr, **config.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.options: {config.name} does not take {config.options}: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"The optimizer '{config.name}' made a {type(made).__name__}, which is no torch.optim.Optimizer."
        )
    return made


def _parameter_groups(network: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Parameters that decay and, where norms and biases are spared, those that do not."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            exempt = not config.decay_norms_and_biases and (isinstance(module, _NORMS) or name.endswith("bias"))
            (spared if exempt else decayed).append(parameter)
    if not spared:
        return [{"name": "all", "params": decayed, "weight_decay": config.weight_decay}] if decayed else []
    groups: list[dict[str, object]] = [
        {"name": "weights", "params": decayed, "weight_decay": config.weight_decay},
        {"name": "norms_and_biases", "params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def lr_of_groups(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Name of each parameter group → its learning rate."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def build_lr_schedule(config: ScheduleConfig, *, lr: float, epochs: int, step: float = 0.0) -> LearningRate:
    """The learning rate over a run.

    Args:
        config: the course.
        lr: its height.
        epochs: length of the run.
        step: length of an optimizer step in epochs. A warm-up has the rate of the end of each step, so that the first one is
            not 0 and the last one is full.

    Returns:
        A function of the epochs that lie behind, the same on any number of processes.
    """
    warmup = config.warmup_epochs
    if config.name == "one_cycle" and not warmup:
        warmup = 0.3 * epochs  # as torch.optim.lr_scheduler.OneCycleLR

    def after_warmup(epoch: float) -> float:
        match config.name:
            case "constant":
                return 1.0
            case "step":
                return config.gamma ** math.floor(epoch / config.step_epochs)
            case "multistep":
                return config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
            case "cosine" | "one_cycle":
                progress = min(1.0, max(0.0, (epoch - warmup) / max(epochs - warmup, 1e-9)))
                return config.min_factor + (1 - config.min_factor) * (1 + math.cos(math.pi * progress)) / 2

    def lr_at(epoch: float) -> float:
        if epoch >= warmup:
            return lr * after_warmup(epoch)
        if config.name == "one_cycle":
            start = 1 / 25  # OneCycleLR's div_factor
            return lr * (start + (1 - start) * (1 - math.cos(math.pi * epoch / warmup)) / 2)
        return lr * after_warmup(epoch) * min(1.0, (epoch + step) / warmup)

    return lr_at
