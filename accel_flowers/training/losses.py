"""Losses by name: (scores, targets) → scalar. Each is one function of `LossInputs`; one more is a function and a line in `_LOSSES`.

Every loss is a mean over images of something that one image has, so it does not depend on how a batch is cut into micro-batches.
All take hard targets and soft ones (of mixed images). Where images may have several labels there is one, `bce_of_sets`, whose targets
are 0 and 1 for each class. Validation is always told in plain cross-entropy, and the model serves the
softmax of its scores, whatever it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from accel_flowers.config.schema import LossConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, C], and targets int64 [B] or float32 [B, C] → loss, float32: a scalar, the mean over the batch."""


class LossInputs(NamedTuple):
    """What a built-in loss may be made of."""

    label_smoothing: float
    weights: Tensor | None
    """Of each class, float32 [C], on the device; None = all weigh the same."""
    log_priors: Tensor
    """Logarithm of each class's share of the training images, float32 [C], on the device."""


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """A weight for each class, float32 [C], with which all classes weigh the same and the mean over `labels` is 1.

    A class that does not occur counts for nothing.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    return labels.numel() / (counts.count_nonzero() * counts.clamp(min=1)).to(torch.float32)


def positive_weights(labels: Tensor) -> Tensor:
    """Of each class the images without it for each image with it, float32 [C]: so weighted, its yes and its no weigh the same.

    Args:
        labels: 0 and 1 of each class, [N, C].
    """
    with_it = labels.sum(dim=0)
    return ((len(labels) - with_it).clamp(min=1) / with_it.clamp(min=1)).to(torch.float32)


def log_priors(labels: Tensor, num_classes: int) -> Tensor:
    """Logarithm of each class's share of the images, float32 [C]; a class that does not occur is taken to have one."""
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return (counts / counts.sum()).to(torch.float32).log()


def soft_targets(targets: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Targets int64 [B] or float32 [B, C] → shares float32 [B, C], of which `label_smoothing` is spread over all classes."""
    shares = functional.one_hot(targets, num_classes).float() if targets.ndim == 1 else targets.float()
    return shares * (1 - label_smoothing) + label_smoothing / num_classes


def _cross_entropy(inputs: LossInputs) -> Criterion:
    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        # The mean of weighted losses, not torch's weighted mean: that one divides by the weights in the micro-batch,
        # so the gradient would depend on how a batch is cut into micro-batches.
        losses = functional.cross_entropy(
            logits.float(), targets, weight=inputs.weights, label_smoothing=inputs.label_smoothing, reduction="none"
        )
        return losses.mean()

    return cross_entropy


def _bce(inputs: LossInputs) -> Criterion:
    """Binary cross-entropy of every class by itself, summed over classes: its gradient by a score is as large as that of
    cross-entropy, so the learning rates of the one suit the other. (ResNet strikes back, Wightman et al. 2021, where it is a mean.)

    An image weighs what its classes weigh. A weight for each class's own term, as torch's `weight`, would correct for nothing:
    it scales what speaks for a class and what speaks against it alike."""

    def bce(logits: Tensor, targets: Tensor) -> Tensor:
        shares = soft_targets(targets, logits.shape[1], inputs.label_smoothing)
        losses = functional.binary_cross_entropy_with_logits(logits.float(), shares, reduction="none").sum(dim=1)
        if inputs.weights is not None:
            losses = losses * (soft_targets(targets, logits.shape[1]) @ inputs.weights)
        return losses.mean()

    return bce


def bce_of_sets(label_smoothing: float = 0.0, weights: Tensor | None = None) -> Criterion:
    """Binary cross-entropy of every class by itself, summed over classes, where an image may have several labels.

    Args:
        label_smoothing: share of each answer that is spread evenly over yes and no.
        weights: of the yes of each class, float32 [C], on the device (torch's `pos_weight`); None = 1.
    """

    def bce_of_sets(logits: Tensor, targets: Tensor) -> Tensor:
        shares = soft_targets(targets, logits.shape[1]) * (1 - label_smoothing) + label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), shares, pos_weight=weights, reduction="none"
        )
        return losses.sum(dim=1).mean()

    return bce_of_sets


def _focal(inputs: LossInputs, gamma: float = 2.0) -> Criterion:
    """Cross-entropy in which what is known already counts less: -(1 - p)^gamma log p (Lin et al. 2017); 0 = cross-entropy."""
    check_number("gamma", gamma, least=0)

    def focal(logits: Tensor, targets: Tensor) -> Tensor:
        shares = soft_targets(targets, logits.shape[1], inputs.label_smoothing)
        if inputs.weights is not None:
            shares = shares * inputs.weights
        log_p = logits.float().log_softmax(dim=1)
        missing = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)  # a power of 0 has no gradient
        return (-shares * missing**gamma * log_p).sum(dim=1).mean()

    return focal


def _logit_adjusted(inputs: LossInputs, tau: float = 1.0) -> Criterion:
    """Cross-entropy of scores to which tau · log(share of the class) is added in training alone: what is served treats rare classes
    like frequent ones (Menon et al. 2021, equation 10)."""
    check_number("tau", tau, least=0)
    plain = _cross_entropy(inputs)
    return lambda logits, targets: plain(logits.float() + tau * inputs.log_priors, targets)


_LOSSES: Mapping[str, Callable[..., Criterion]] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "focal": _focal,
    "logit_adjusted": _logit_adjusted,
}


def check_number(name: str, value: object, *, least: float, most: float = 1000.0) -> None:
    """See that an option is a number.

    Raises:
        ValueError: it is none, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} is a number from {least:g} to {most:g}, not {value!r}")


def build_criterion(config: LossConfig, labels: Tensor, num_classes: int, device: torch.device) -> Criterion:
    """Make the training loss.

    Args:
        config: its name, options, label smoothing and class weights.
        labels: of all training images, int64 [N] or bool [N, C]; class weights and shares follow from them.
        num_classes: C.
        device: where logits will be.

    Raises:
        UserError: options that the loss does not take.
    """
    build = _LOSSES.get(config.name)
    if build is None:
        made: Criterion = make_registered("loss", config.name, config.options_of_loss)
        return made
    if labels.ndim == 2:
        if config.name not in ("bce", "cross_entropy"):
            raise UserError(
                f"loss.name {config.name} is for one class a picture, and these have several labels: take bce."
            )
        if config.options_of_loss:
            raise UserError(f"loss.options: the loss 'bce' does not take {config.options_of_loss}: it has no options.")
        return bce_of_sets(
            config.label_smoothing,
            positive_weights(labels).to(device) if config.class_weights == "balanced" else None,
        )
    weights = balanced_weights(labels, num_classes).to(device) if config.class_weights == "balanced" else None
    inputs = LossInputs(config.label_smoothing, weights, log_priors(labels, num_classes).to(device))
    built: Criterion = with_options(f"the loss '{config.name}'", "loss.options", config.options_of_loss, build, inputs)
    return built


def make_registered(kind: registry.Kind, name: str, options: Mapping[str, Any], *first: object) -> Any:
    """What a registered part makes of its options.

    Raises:
        UserError: it does not take them.
    """
    part = registry.find(kind, name)
    assert part is not None, "the configuration was checked"
    field = "loss.task_options" if kind == "task" else "loss.options"
    return with_options(f"the {kind} '{name}'", field, options, part.make, *first)


def with_options(what: str, field: str, options: Mapping[str, Any], make: Callable[..., Any], *first: object) -> Any:
    """`make(*first, **options)`.

    Raises:
        UserError: it does not take the options; the message names the field they stand in.
    """
    try:
        return make(*first, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{field}: {what} does not take {dict(options)}: {error}.") from error
