"""Paths of a configuration, so that it means the same wherever it is read."""

from __future__ import annotations

import os

from accel_flowers.config.schema import Config, LossConfig

HUB_PREFIX = "hub:"
"""Before OWNER/NAME of a dataset of the hub."""


def names_split_file(split: str) -> bool:
    """Whether data.split is the path of a split.json, not percentages."""
    return split.endswith(".json") or os.path.isfile(split)


def with_absolute_paths(config: Config) -> Config:
    """The same configuration for any working directory."""
    data, model = config.data, config.model
    changed = {
        "path": data.path if data.path is None or data.path.startswith(HUB_PREFIX) else os.path.abspath(data.path),
        "split": os.path.abspath(data.split) if names_split_file(data.split) else data.split,
        "label_fixes": data.label_fixes and os.path.abspath(data.label_fixes),
        "cache_dir": data.cache_dir and os.path.abspath(data.cache_dir),
    }
    weights = model.weights if model.weights in ("imagenet", "none") else os.path.abspath(model.weights)
    return config.model_copy(
        update={
            "run_dir": config.run_dir and os.path.abspath(config.run_dir),
            "data": data.model_copy(update=changed),
            "model": model.model_copy(update={"weights": weights}),
            "loss": _with_absolute_teacher(config.loss),
        }
    )


def _with_absolute_teacher(loss: LossConfig) -> LossConfig:
    if loss.teacher is None:
        return loss
    absolute = {**loss.options_of_task, "teacher": os.path.abspath(os.path.expanduser(loss.teacher))}
    return loss.model_copy(update={"task_options" if loss.task_options else "options": absolute})
