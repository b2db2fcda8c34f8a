"""The name of a batch transform → what mixes or resizes: a built-in one, or a part of the user's own; or several in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.data.transforms import mixing
from accel_flowers.data.transforms.batch import BatchContext, BatchTransform
from accel_flowers.data.transforms.progressive import ProgressiveSize, progressive_size

BUILT_IN: dict[str, Callable[..., BatchTransform]] = {**mixing.BUILT_IN, "progressive_size": progressive_size}


@dataclass(frozen=True)
class InTurn:
    """Batch transforms one after the other: each gets what the one before it made."""

    transforms: tuple[BatchTransform, ...]

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        for transform in self.transforms:
            inputs, targets = transform(inputs, targets, first)
        return inputs, targets

    @property
    def resizes(self) -> bool:
        """Whether pictures have other sizes at other places of the run."""
        return any(isinstance(transform, ProgressiveSize) for transform in self.transforms)

    def smaller_sizes(self, whole: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width of all pictures but the whole ones that come out in a run.

        Args:
            whole: height and width of the pictures that the transforms make.

        Raises:
            UserError: one is to resize, and there is nothing smaller.
        """
        found = [each.smaller_sizes(whole) for each in self.transforms if isinstance(each, ProgressiveSize)]
        return [size for sizes in found for size in sizes]


def build_batch_transform(specs: Sequence[TransformSpec], context: BatchContext) -> InTurn | None:
    """Make the batch transforms that a recipe names; None where it names none.

    Raises:
        UserError: an unknown name, arguments that do not fit, or two that mix.
    """
    made = tuple(_build_one(spec, context) for spec in specs)
    if sum(isinstance(transform, mixing.PairMixing) for transform in made) > 1:
        raise UserError(
            "data.batch_transform: pictures are mixed once, so mixup, cutmix and mixup_or_cutmix go one at a time. For a coin between "
            "the two take '{mixup_or_cutmix: {mixup: 0.2, cutmix: 1.0}}'."
        )
    if sum(isinstance(transform, ProgressiveSize) for transform in made) > 1:
        raise UserError("data.batch_transform: progressive_size goes once: say from where to where in one.")
    return InTurn(made) if made else None


def _build_one(spec: TransformSpec, context: BatchContext) -> BatchTransform:
    name, arguments = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    part = registry.find("batch_transform", name)
    make = part.make if part else BUILT_IN.get(name)
    if make is None:
        raise UserError(f"data.batch_transform: {registry.unknown('batch_transform', name, BUILT_IN)}.")
    try:
        made: Any = make(context, **(arguments or {}))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data.batch_transform: {name} does not take {arguments!r}: {error}.") from error
    transform: BatchTransform = made
    return transform
