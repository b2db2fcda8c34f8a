"""What is optimised: (model, inputs, targets) → loss. Cross-entropy and its variants here; a user's own by name.

The loop knows no loss and no kind of target: whatever a method needs beside the network (a teacher, a second head's loss) is
a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers.config.schema import LossConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, C], and targets int64 [B] or float32 [B, C] → loss, float32: a scalar, the mean over the batch."""


class Output(NamedTuple):
    """What a task makes of a micro-batch."""

    loss: Tensor
    """Scalar float32, the mean over the micro-batch: what is trained on."""
    logits: Tensor
    """[B, C]"""
    parts: Mapping[str, Tensor] = {}
    """Scalars that are logged as train/NAME, for example the terms of the loss."""


class Task(Protocol):
    """One forward pass and its loss.

    Args (of a call):
        model: the network as Accelerate wrapped it; call it once, so that gradients meet.
        inputs: float32 [B, 3, H, W], normalised.
        targets: int64 [B], or float32 [B, C] where a batch transform mixed them.
    """

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Output: ...


@dataclass(frozen=True)
class TaskContext:
    """What a task may be made of."""

    config: LossConfig
    labels: Tensor
    """Of all training images, int64 [N], on the CPU."""
    class_names: tuple[str, ...]
    device: torch.device
    """Where inputs and logits will be."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of the normalisation that inputs went through: a teacher may have learned with another."""
    criterion: Criterion = field(default=functional.cross_entropy)
    """The loss that the recipe names, for tasks that build on it."""


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """A weight for each class, float32 [C], with which all classes weigh the same and the mean over `labels` is 1.

    A class that does not occur counts for nothing.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    return labels.numel() / (counts.count_nonzero() * counts.clamp(min=1)).to(torch.float32)


def build_criterion(config: LossConfig, labels: Tensor, num_classes: int, device: torch.device) -> Criterion:
    """Make the training loss.

    Args:
        config: its name, label smoothing and class weights.
        labels: of all training images, int64 [N]; class weights follow from them.
        num_classes: C.
        device: where logits will be.

    Raises:
        UserError: options that the loss does not take.
    """
    if config.name != "cross_entropy":
        return _registered("loss", config.name, config.options)
    weights = balanced_weights(labels, num_classes).to(device) if config.class_weights == "balanced" else None

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        # The mean of weighted losses, not torch's weighted mean: that one divides by the weights in the micro-batch,
        # so the gradient would depend on how a batch is cut into micro-batches.
        losses = functional.cross_entropy(
            logits.float(), targets, weight=weights, label_smoothing=config.label_smoothing, reduction="none"
        )
        return losses.mean()

    return cross_entropy


def classification(criterion: Criterion) -> Task:
    """The network's scores against the targets."""

    def run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Output:
        logits = model(inputs)
        return Output(criterion(logits, targets), logits)

    return run


def build_task(context: TaskContext) -> Task:
    """Make the task that a recipe names.

    Raises:
        UserError: options that the loss or the task does not take.
    """
    config = context.config
    criterion = build_criterion(config, context.labels, len(context.class_names), context.device)
    if config.task == "classification":
        return classification(criterion)
    options = config.options if config.name == "cross_entropy" else {}  # else they are the loss's
    task: Task = _registered("task", config.task, options, TaskContext(**{**vars(context), "criterion": criterion}))
    return task


def _registered(kind: registry.Kind, name: str, options: Mapping[str, Any], *first: object) -> Any:
    part = registry.find(kind, name)
    assert part is not None, "the configuration was checked"
    try:
        return part.make(*first, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"loss.options: the {kind} '{name}' does not take {dict(options)}: {error}.") from error
