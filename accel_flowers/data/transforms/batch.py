"""What is done to a whole batch of network inputs, such as mixup or a smaller size: after normalisation, in float32, on the device.

There the pixels' backend makes no difference, and nothing is rounded. A batch transform's chance must follow from the place
in the run's stream, so that it is the same on any number of processes and for any micro-batch: `random_key(seed, "mix",
place)`, and partners that are neighbours in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class BatchTransform(Protocol):
    """Mixes or resizes the images of a micro-batch, and mixes their targets."""

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are trained on.

        Args:
            inputs: float32 [B, 3, H, W], normalised.
            targets: int64 [B], the labels; float32 [B, C] behind another batch transform that mixed them, or of 0 and 1 where
                images may have several labels.
            first: place of the micro-batch's first image in the run's stream; the others follow it.

        Returns:
            Inputs float32 [B, 3, h, w], of the same size or smaller, and targets int64 [B] or float32 [B, C].
        """


@dataclass(frozen=True)
class BatchContext:
    """What a batch transform may depend on."""

    num_classes: int
    seed: int
    """The run's."""
    micro_batch: int
    """Images in one forward pass of one process."""
    num_images: int = 0
    """Of the training part: so many places of the stream are an epoch; 0 in trials before the run."""
    epochs: float = 0
    """Of the run."""
    global_batch: int = 0
    """Images in an optimizer step, over all processes: place // global_batch is the step; 0 in trials before the run."""
