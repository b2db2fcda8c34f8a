"""The name of a batch transform → what mixes: a built-in one, or a part of the user's own."""

from __future__ import annotations

from typing import Any

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.data.transforms.batch import BatchContext, BatchTransform
from accel_flowers.data.transforms.mixing import BUILT_IN


def build_batch_transform(spec: TransformSpec | None, context: BatchContext) -> BatchTransform | None:
    """Make the batch transform that a recipe names; None where it names none.

    Raises:
        UserError: an unknown name, or arguments that do not fit.
    """
    if spec is None:
        return None
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
