"""What a network's scores mean, for images of one label or of several: the loss that is told, and probabilities."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image, in nats, float32 [B].

    Args:
        logits: float32 [B, C].
        labels: int64 [B]: cross-entropy; or float32 [B, C] of 0 and 1: binary cross-entropy, summed over classes.
    """
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)


def probabilities_of(logits: Tensor, *, several: bool) -> Tensor:
    """Scores → probabilities, [B, C]: of classes one of which is right, or of each class by itself.

    Args:
        logits: [B, C].
        several: whether an image may have several labels, or none.
    """
    return logits.sigmoid() if several else logits.softmax(dim=1)
