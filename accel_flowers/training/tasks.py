"""What is optimised: (model, inputs, targets) → loss. The plain task is here; which one a recipe names, `build_task.py` says.

The loop knows no loss and no kind of target: whatever a method needs beside the network (a teacher, a second head's loss) is
a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers.config.schema import LossConfig
from accel_flowers.training.losses import Criterion


class Output(NamedTuple):
    """What a task makes of a micro-batch."""

    loss: Tensor
    """Scalar float32, the mean over the micro-batch: what is trained on."""
    logits: Tensor
    """[B, C]"""
    parts: Mapping[str, Tensor] = {}
    """Scalars that are logged as train/NAME, for example the terms of the loss."""
    mixed: bool = False
    """Whether the task mixed the labels, so that none of them is the right one."""


class Task(Protocol):
    """One forward pass and its loss.

    Args (of a call):
        model: the network as Accelerate wrapped it; call it once, so that gradients meet.
        inputs: float32 [B, 3, H, W], normalised.
        targets: int64 [B], or float32 [B, C] where a batch transform mixed them, or images may have several labels.
    """

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Output: ...


@runtime_checkable
class PlacedTask(Protocol):
    """A task with chance of its own, which follows from the place in the run's stream. What it draws on the host differs from batch to
    batch, so the network can be neither compiled nor a part of a graph."""

    def at(self, first: int) -> Task:
        """The task for one micro-batch.

        Args:
            first: place of its first image in the run's stream; the others follow it.
        """


@dataclass(frozen=True)
class TaskContext:
    """What a task may be made of."""

    config: LossConfig
    labels: Tensor
    """Of all training images, int64 [N], or bool [N, C] where they may have several; on the CPU."""
    class_names: tuple[str, ...]
    device: torch.device
    """Where inputs and logits will be."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of the normalisation that inputs went through: a teacher may have learned with another."""
    criterion: Criterion = field(default=functional.cross_entropy)
    """The loss that the recipe names, for tasks that build on it."""
    image_size: tuple[int, int] | None = None
    """Height and width of the inputs; None where that is not known yet."""
    tell: Callable[[str], None] = field(default=lambda _: None)
    """Takes a line for people, which the main process alone logs."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes the context in which a network of the task's own, such as a teacher, runs in the run's precision."""
    seed: int = 0
    """The run's."""
    micro_batch: int | None = None
    """Images in one forward pass of one process; None where that is not known yet."""
    network: nn.Module | None = None
    """The plain network that is trained, on its device; a task calls the one that it is given, not this."""
    stages: Mapping[str, nn.Module] = field(default_factory=dict)
    """Its stages from the image on: name → the module that ends each."""


def classification(criterion: Criterion) -> Task:
    """The network's scores against the targets."""

    def run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Output:
        logits = model(inputs)
        return Output(criterion(logits, targets), logits)

    return run
