"""An exponential moving average of the weights: often better, and steadier, than the weights of the last step."""

from __future__ import annotations

import copy

import torch
from torch import nn


def decay_at(step: int, decay: float) -> float:
    """Share of the average that step `step` (from 1) keeps.

    It rises from 0.18 to `decay`, so that the first weights, which are random or of another task, are soon forgotten:
    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage does.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A second network that follows the first; its batch-norm statistics are averaged as its weights are.

    Args:
        network: unwrapped, with its first weights; it is copied.
        decay: share of the average that a step keeps, once the warm-up is over.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self._decay = decay
        pairs = zip(_tensors(self.network), _tensors(network), strict=True)
        averaged = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._averaged = [mine for mine, _ in averaged]
        self._followed = [theirs for _, theirs in averaged]
        pairs = zip(_tensors(self.network), _tensors(network), strict=True)
        counters = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]
        self._counters = [mine for mine, _ in counters]
        self._counted = [theirs for _, theirs in counters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        torch._foreach_lerp_(self._averaged, self._followed, 1 - decay_at(step, self._decay))
        if self._counters:
            torch._foreach_copy_(self._counters, self._counted)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
