"""What is done to a whole batch of network inputs, such as mixup: after normalisation, in float32, on the device.

There the pixels' backend makes no difference, and nothing is rounded. A batch transform's chance must follow from the place
in the run's stream, so that it is the same on any number of processes and for any micro-batch: `random_key(seed, "mix",
place)`, and partners that are neighbours in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError


class BatchTransform(Protocol):
    """Mixes the images of a micro-batch and their targets."""

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are trained on.

        Args:
            inputs: float32 [B, 3, H, W], normalised.
            targets: int64 [B], the labels.
            first: place of the micro-batch's first image in the run's stream; the others follow it.

        Returns:
            Inputs of the same shape, and targets int64 [B] or float32 [B, C].
        """


@dataclass(frozen=True)
class BatchContext:
    """What a batch transform may depend on."""

    num_classes: int
    seed: int
    """The run's."""
    micro_batch: int
    """Images in one forward pass of one process."""


def build_batch_transform(spec: TransformSpec | None, context: BatchContext) -> BatchTransform | None:
    """Make the batch transform that a recipe names; None where it names none.

    Raises:
        UserError: an unknown name, or arguments that do not fit.
    """
    if spec is None:
        return None
    name, arguments = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    part = registry.find("batch_transform", name)
    if part is None:
        raise UserError(f"data.batch_transform: {registry.unknown('batch_transform', name)}.")
    try:
        made: Any = part.make(context, **(arguments or {}))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data.batch_transform: {name} does not take {arguments!r}: {error}.") from error
    transform: BatchTransform = made
    return transform
