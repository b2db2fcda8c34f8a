"""The task that a recipe names, over the loss that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from accel_flowers.training.distillation import distillation
from accel_flowers.training.losses import build_criterion, make_registered, with_options
from accel_flowers.training.tasks import Task, TaskContext, classification

_TASKS: Mapping[str, Callable[..., Task]] = {
    "classification": lambda context: classification(context.criterion),
    "distillation": distillation,
}


def build_task(context: TaskContext) -> Task:
    """Make the task that a recipe names.

    Raises:
        UserError: options that the loss or the task does not take.
    """
    config = context.config
    context = replace(
        context, criterion=build_criterion(config, context.labels, len(context.class_names), context.device)
    )
    if config.task not in _TASKS:
        made: Task = make_registered("task", config.task, config.options_of_task, context)
        return made
    what = f"the task '{config.task}'"
    built: Task = with_options(what, "loss.task_options", config.options_of_task, _TASKS[config.task], context)
    return built
