"""(logits, labels) → the loss that is trained on; cross-entropy and its variants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from accel_flowers.config.schema import LossConfig

Objective = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, C] and labels int64 [B] → scalar loss, float32."""


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """A weight for each class, float32 [C], with which all classes weigh the same and the mean over `labels` is 1.

    A class that does not occur counts for nothing.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    return labels.numel() / (counts.count_nonzero() * counts.clamp(min=1)).to(torch.float32)


def build_objective(config: LossConfig, labels: Tensor, num_classes: int, device: torch.device) -> Objective:
    """Make the training loss.

    Args:
        config: label smoothing and class weights.
        labels: of all training images, int64 [N]; class weights follow from them.
        num_classes: C.
        device: where logits will be.
    """
    weights = balanced_weights(labels, num_classes).to(device) if config.class_weights == "balanced" else None

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        # The mean of weighted losses, not torch's weighted mean: that one divides by the weights in the micro-batch,
        # so the gradient would depend on how a batch is cut into micro-batches.
        losses = functional.cross_entropy(
            logits.float(), labels, weight=weights, label_smoothing=config.label_smoothing, reduction="none"
        )
        return losses.mean()

    return cross_entropy
