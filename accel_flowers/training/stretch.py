"""A run of few images → as many optimizer steps as a network needs to learn anything: `train.min_steps`."""

from __future__ import annotations

import math

from accel_flowers.config.schema import Config
from accel_flowers.core.plural import number_of


def stretched(config: Config, num_images: int, global_batch_size: int) -> tuple[Config, list[str]]:
    """The configuration with more epochs where those it has make fewer steps than `train.min_steps`, and the line that says so.

    What it counts in epochs of the run (the head's phase, gradual unfreezing, the schedule, patience) grows alike, so that the course
    is the same over other steps.

    Args:
        config: of the run.
        num_images: to train on.
        global_batch_size: images of a step, as they are taken.
    """
    train, schedule = config.train, config.schedule
    needed = math.ceil((train.min_steps or 0) * global_batch_size / num_images)
    if needed <= train.epochs:
        return config, []
    times = needed / train.epochs
    longer = {
        "epochs": needed,
        "head_epochs": train.head_epochs * times,
        "unfreeze_every_epochs": train.unfreeze_every_epochs and train.unfreeze_every_epochs * times,
        "early_stopping_epochs": train.early_stopping_epochs and math.ceil(train.early_stopping_epochs * times),
    }
    course = {
        "warmup_epochs": schedule.warmup_epochs * times,
        "step_epochs": schedule.step_epochs * times,
        "milestones": tuple(milestone * times for milestone in schedule.milestones),
    }
    told = (
        f"train.min_steps {train.min_steps}: {number_of(needed, 'epoch')} instead of {train.epochs}, for {number_of(num_images, 'picture')} "
        f"to train on make no more than {number_of(math.ceil(num_images / global_batch_size), 'step')} each"
    )
    changed = {
        "train": train.model_copy(update=longer),
        "schedule": schedule.model_copy(update=course),
    }
    return config.model_copy(update=changed), [told]
