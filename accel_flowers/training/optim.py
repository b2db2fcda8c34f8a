"""Optimizers, and the learning rate as a pure function of the step.

A schedule object would be one more thing to save, and one that Accelerate advances once for each process; a function
of the step is neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from accel_flowers.config.effects import warmup_that_fits
from accel_flowers.config.schema import Config, OptimConfig, ScheduleConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.models.layers import HEAD
from accel_flowers.training.timm_optim import build_timm_optimizer

LearningRate = Callable[[float], float]
"""Epochs that lie behind (a fraction inside an epoch) → learning rate."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    network: nn.Module,
    config: OptimConfig,
    *,
    layers: Mapping[str, Collection[str]] | None = None,
    apart: bool = False,
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """Make the optimizer of what trains in `network`.

    A step is one fused kernel where torch has one: on a CPU three to nine times as fast as its loop over parameters.

    Args:
        network: on the device where it trains.
        config: which optimizer.
        layers: of `layers_of`, for rates that differ from layer to layer; None = one rate, as in a trial, where no rate counts.
        apart: whether layers begin to train at different times. torch's fused SGD wants all of a group to begin at once, so then
            each layer has groups of its own whatever its rate.
        scaled: whether fp16's gradient scaler takes the steps. It hands a fused optimizer the overflow instead of
            leaving the step out, so that nobody could count what was skipped; then the step is not fused.

    Raises:
        UserError: nothing trains.
    """
    groups = _parameter_groups(network, config, layers, apart=apart)
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
    if config.name.startswith(registry.TIMM_PREFIX):
        return build_timm_optimizer(
            config.name.removeprefix(registry.TIMM_PREFIX),
            groups,
            lr=config.lr,
            momentum=config.momentum,
            options=config.options,
        )
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


def lr_factors(config: OptimConfig, layers: Collection[str]) -> dict[str, float]:
    """By what the learning rate is multiplied in each layer.

    `optim.layer_decay` to the power of the layers above a stage (BEiT: Bao et al., 2021; ELECTRA: Clark et al., 2020), and
    `optim.head_lr_factor` in the head.

    Args:
        config: says both.
        layers: names from the image on, the head last; of `layers_of`.

    Returns:
        Name → factor.
    """
    decay, above = config.layer_decay or 1.0, len(layers) - 1
    return {
        name: config.head_lr_factor if name == HEAD else decay ** (above - number) for number, name in enumerate(layers)
    }


def _parameter_groups(
    network: nn.Module, config: OptimConfig, layers: Mapping[str, Collection[str]] | None, *, apart: bool
) -> list[dict[str, object]]:
    """Parameters that share a learning rate and a weight decay: by layers where their rates differ, and in each those that
    decay and, where norms and biases are spared, those that do not."""
    if layers and (config.differs_by_layer or apart):
        layer_of = {parameter: layer for layer, parameters in layers.items() for parameter in parameters}
        factors = lr_factors(config, layers)
    else:
        layer_of, factors = {}, {"": 1.0}
    found: dict[tuple[str, bool], list[nn.Parameter]] = {
        (layer, spared): [] for layer in factors for spared in (False, True)
    }
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if not parameter.requires_grad:
                continue
            spared = not config.decay_norms_and_biases and (isinstance(module, _NORMS) or name.endswith("bias"))
            found[layer_of.get(name, ""), spared].append(parameter)
    some_are_spared = any(parameters for (_, spared), parameters in found.items() if spared)
    kinds = {True: "norms_and_biases", False: "weights" if some_are_spared else "all"}
    return [
        {
            "name": layer if config.differs_by_layer and layer else kinds[spared],
            "params": parameters,
            "weight_decay": 0.0 if spared else config.weight_decay,
            "lr_factor": factors[layer],
        }
        for (layer, spared), parameters in found.items()
        if parameters
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate, times the factor of its layer."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)  # optimizers of earlier checkpoints have none


_MAX_CURVES = 6
"""Rates in a line of the log; of more the others follow from these."""


def lr_of_groups(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Name of each parameter group of which something trains → its learning rate; of many layers the first, the last stage
    and the head."""
    rates = {
        group["name"]: group["lr"]
        for group in optimizer.param_groups
        if any(parameter.requires_grad for parameter in group["params"])
    }
    if len(rates) <= _MAX_CURVES:
        return rates
    first, *_, last, head = rates
    return {name: rates[name] for name in (first, last, head)}


def schedule_of(config: Config, plan: BatchPlan) -> LearningRate:
    """The learning rate of a run, as long as its plan is; a warm-up that would outlast it is cut as `fit_warmup` does."""
    left = plan.length - config.train.head_epochs
    warmup = warmup_that_fits(config.schedule.warmup_epochs, left)
    return build_lr_schedule(
        config.schedule.model_copy(update={"warmup_epochs": warmup}),
        lr=config.optim.lr,
        epochs=plan.length,
        step=plan.epoch_at(1),
        head_epochs=config.train.head_epochs,
    )


def build_lr_schedule(
    config: ScheduleConfig, *, lr: float, epochs: float, step: float = 0.0, head_epochs: float = 0.0
) -> LearningRate:
    """The learning rate over a run.

    Args:
        config: the course.
        lr: its height.
        epochs: length of the run.
        step: length of an optimizer step in epochs. A warm-up has the rate of the end of each step, so that the first one is
            not 0 and the last one is full.
        head_epochs: epochs in front in which the head trains alone, at the full rate: there is nothing yet that a warm-up would
            spare. The schedule begins behind them, and has the epochs that are left.

    Returns:
        A function of the epochs that lie behind, the same on any number of processes.
    """
    if head_epochs:
        behind = build_lr_schedule(config, lr=lr, epochs=epochs - head_epochs, step=step)
        return lambda epoch: lr if epoch < head_epochs else behind(epoch - head_epochs)
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
