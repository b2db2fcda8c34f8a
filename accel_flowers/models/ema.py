"""An exponential moving average of the weights: often better, and steadier, than the weights of the last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def decay_at(step: int, decay: float) -> float:
    """Share of the average that step `step` (from 1) keeps.

    It rises from 0.18 to `decay`, so that the initial weights, which are random or of another task, are soon forgotten:
    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage does.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A second network that follows the first; its batch-norm statistics are averaged as its weights are.

    Args:
        network: unwrapped, with its initial weights, prepared or not; it is copied.
        decay: share of the average that a step keeps, once the warm-up is over.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._followed, self._decay, self._step = network, decay, 0
        self._averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.n_averaged.fill_(
            1
        )  # the average begins with the initial weights, not with those of the first step

    @property
    def network(self) -> nn.Module:
        """The averaged network, of the same class as the one that is followed."""
        network: nn.Module = self._averaged.module
        return network

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        self._step = step
        self._averaged.update_parameters(self._followed)

    @torch.no_grad()
    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        """One kind of tensors on one device: floats are averaged; counters, such as batch norm's, are copied."""
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - decay_at(self._step, self._decay))
        else:
            torch._foreach_copy_(list(averaged), list(current))
