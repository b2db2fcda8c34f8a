"""The task that a recipe names, over the loss that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from accel_flowers.config.schema import MULTILABEL
from accel_flowers.training.distillation import distillation
from accel_flowers.training.losses import build_criterion, make_registered, with_options
from accel_flowers.training.manifold_mixup import manifold_mixup
from accel_flowers.training.tasks import PlacedTask, Task, TaskContext, classification

_TASKS: Mapping[str, Callable[..., Task | PlacedTask]] = {
    "classification": lambda context: classification(context.criterion),
    # The same: what several labels change is the loss, which goes by the form of the labels.
    MULTILABEL: lambda context: classification(context.criterion),
    "distillation": distillation,
    "manifold_mixup": manifold_mixup,
}


def build_task(context: TaskContext) -> Task | PlacedTask:
    """Make the task that a recipe names.

    Raises:
        UserError: options that the loss or the task does not take.
    """
    config = context.config
    context = replace(
        context, criterion=build_criterion(config, context.labels, len(context.class_names), context.device)
    )
    if config.task not in _TASKS:
        made: Task | PlacedTask = make_registered("task", config.task, config.options_of_task, context)
        return made
    what = f"the task '{config.task}'"
    built: Task | PlacedTask = with_options(
        what, "loss.task_options", config.options_of_task, _TASKS[config.task], context
    )
    return built
