"""One training step on one micro-batch: what the loop does, and so what every trial, finder and benchmark measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import random_key
from accel_flowers.data.transforms.batch import BatchTransform
from accel_flowers.training.tasks import Output, PlacedTask, Task


class Engine(Protocol):
    """What a step needs of Accelerate's `Accelerator`."""

    @property
    def sync_gradients(self) -> bool:
        """Whether this micro-batch completes an optimizer step."""

    def accumulate(self, *models: nn.Module) -> AbstractContextManager[Any]:
        """Hold back the exchange of gradients, and the optimizer, until a step is complete."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor | None:
        """Scale gradients down to a norm; gives the norm that they had."""


class LocalEngine:
    """One process, for trials before Accelerate has prepared anything; every micro-batch is a step, unless it is told."""

    def __init__(self) -> None:
        self.sync_gradients = True

    def accumulate(self, *models: nn.Module) -> AbstractContextManager[Any]:
        """Nothing is held back."""
        del models
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, unscaled."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """As torch does it."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)


class InPrecision(nn.Module):
    """A network whose forward pass runs as a prepared one's: under autocast, with scores in float32.

    Args:
        network: not prepared.
        autocast: makes the context.
    """

    def __init__(self, network: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.network, self._autocast = network, autocast

    def forward(self, inputs: Tensor) -> Tensor:
        """float32 [B, 3, H, W] → float32 [B, C]."""
        with self._autocast():
            logits: Tensor = self.network(inputs)
        return logits.float()


@dataclass
class TrainStep:
    """Forward and backward over one micro-batch, and the optimizer's step where it is due. It waits for no device."""

    engine: Engine
    model: nn.Module
    """As Accelerate wrapped it."""
    optimizer: Any
    """As Accelerate wrapped it."""
    task: Task | PlacedTask
    load: Callable[[Batch], tuple[Tensor, ...]]
    """Batch → what its inputs are made of, on the device, in the same shapes each time; see `to_inputs`."""
    to_inputs: Callable[..., Tensor]
    """Those → normalised inputs, float32 [B, 3, H, W]."""
    mix: BatchTransform | None = None
    max_grad_norm: float | None = None

    def __call__(self, batch: Batch) -> Output:
        """The task's output, with more parts: the share of right answers, `accuracy`, where an image has one label; where gradients
        are clipped, their norm before that, `grad_norm`.
        """
        loaded, targets = self.load(batch), batch["labels"]
        first = batch["micro_batch"] * len(targets)
        if self.mix:
            mixed, targets = self.mix(self.to_inputs(*loaded), targets, first)
            loaded = (mixed,)
        with self.engine.accumulate(self.model):
            output = self.learn(loaded, targets, first)
            if self.engine.sync_gradients and self.max_grad_norm is not None:
                norm = self.engine.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
                if norm is not None:
                    output = output._replace(parts={**output.parts, "grad_norm": norm.detach()})
            self.optimizer.step()
            self.optimizer.zero_grad()
        return output

    def learn(self, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> Output:
        """Forward and backward pass: the task's output, with the accuracy, and gradients in the parameters' `grad`.

        Args:
            loaded: what `load` gave; the inputs themselves where there is a `mix`, which needs the batch's number.
            targets: as the task takes them.
            first: place of the first image in the run's stream.
        """
        output = self.forward(self.model, loaded, targets, first)
        self.engine.backward(output.loss)
        return output

    def forward(self, model: nn.Module, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> Output:
        """The task's output, with the accuracy; arguments as of `learn`.

        Args:
            model: `self.model`, or the network in it, whose gradients no process sends to another.
            loaded, targets, first: as of `learn`.
        """
        inputs = loaded[0] if self.mix else self.to_inputs(*loaded)
        task = self.task.at(first) if isinstance(self.task, PlacedTask) else self.task
        output = task(model, inputs, targets)
        if (
            targets.ndim == 1 and output.logits.ndim == 2 and not output.mixed
        ):  # of mixed images, and of several labels, no class is the right one
            right = (output.logits.detach().argmax(dim=1) == targets).float().mean()
            output = output._replace(parts={"accuracy": right, **output.parts})
        return output


def seed_dropout(seed: int, micro_batch: int, device: torch.device) -> None:
    """Chance inside the network follows from the micro-batch, not from the process or from what came before."""
    key = random_key(seed, "dropout", micro_batch)
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)


def loaded_whole(batch: Batch) -> tuple[Tensor, ...]:
    """Where a batch brings its pixels."""
    return (batch["pixels"],)


def blank_batch(size: int, image_size: tuple[int, int], num_classes: int, device: torch.device) -> Batch:
    """Black images with labels of all classes in turn, for trials: pixels uint8 [size, 3, H, W]."""
    places = torch.arange(size, device=device)
    return Batch(
        pixels=torch.zeros((size, 3, *image_size), dtype=torch.uint8, device=device),
        labels=places % num_classes,
        samples=places,
        micro_batch=0,
    )
