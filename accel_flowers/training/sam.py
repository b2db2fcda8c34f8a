"""Sharpness-aware minimisation (SAM: Foret et al. 2021, arXiv 2010.01412): the gradient is taken where the loss nearby is worst.

Each micro-batch climbs by itself, from the weights along its own gradient by `rho`, and what it finds there is its gradient (the paper's
m-sharpness, m being a micro-batch). So nothing has to be exchanged for the climb, micro-batches add up as ever, and the result is the
same on any number of processes where `train.micro_batch_size` is set. It costs a second forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accel_flowers.distributed.ddp import without_ddp
from accel_flowers.training.step import TrainStep
from accel_flowers.training.tasks import Output


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


@dataclass
class SharpnessAwareStep(TrainStep):
    """A step whose gradients are those of the climbed weights; see the module."""

    rho: float = 0.0
    """Length of the climb: the norm, over all parameters that train, of what is added to them."""
    scale: Callable[[Tensor], Tensor] = _as_it_is
    """Makes a loss so large that its gradient in fp16 is not lost: the direction stays."""

    def learn(self, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> Output:
        """As `TrainStep.learn`. The output, and batch norm's statistics, are those of the weights as they are; the loss of the climbed ones
        is a part of it, `loss_nearby`. Both passes see the same dropout.
        """
        network = without_ddp(self.model)  # whose gradients stay here
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        device = targets.device
        with torch.random.fork_rng(
            devices=[] if device.type == "cpu" else [device],
            device_type="cuda" if device.type == "cpu" else device.type,
        ):
            usual = self.forward(network, loaded, targets, first)
        uphill = torch.autograd.grad(self.scale(usual.loss), parameters, allow_unused=True)
        statistics = [buffer.clone() for buffer in network.buffers()]
        with climbed(parameters, uphill, self.rho):
            del uphill
            nearby = self.forward(self.model, loaded, targets, first)
            self.engine.backward(nearby.loss)
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(value)
        parts = {**usual.parts, "loss_nearby": nearby.loss.detach()}
        return usual._replace(loss=usual.loss.detach(), logits=usual.logits.detach(), parts=parts)


@contextmanager
@torch.no_grad()
def climbed(parameters: Sequence[nn.Parameter], uphill: Sequence[Tensor | None], rho: float) -> Iterator[None]:
    """While the block lasts, the parameters are further along a direction by a length; afterwards they are what they were, to the bit.

    Args:
        parameters: those that train.
        uphill: a gradient for each; None counts as zero. Where it is no number (fp16's overflow, which the scaler then skips) nothing moves.
        rho: the length.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    norm = nn.utils.get_total_norm([gradient for gradient in uphill if gradient is not None])
    factor = rho / (norm + _TINY)
    for parameter, gradient in zip(parameters, uphill, strict=True):
        if gradient is not None:
            parameter.add_(torch.nan_to_num(gradient * factor, 0.0, 0.0, 0.0))
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


_TINY = 1e-12
"""For a gradient of nothing."""


def sharpness_aware(step: TrainStep, rho: float | None, scale: Callable[[Tensor], Tensor] | None = None) -> TrainStep:
    """The step as `optim.sam_rho` says.

    Args:
        step: the usual one.
        rho: None = as it is.
        scale: of fp16's gradient scaler, where there is one.
    """
    return step if rho is None else SharpnessAwareStep(**vars(step), rho=rho, scale=scale or _as_it_is)
