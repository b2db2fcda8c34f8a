"""What a model folder tells of the run that made it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from accel_flowers.config.schema import Config, flat_fields
from accel_flowers.data.split import PARTS, Split
from accel_flowers.data.table import ImageTable, source_name
from accel_flowers.models.spec import TrainingRecord
from accel_flowers.tracking.run_dir import fixed_fields


def training_record(config: Config, table: ImageTable, split: Split) -> TrainingRecord:
    """The record of a run.

    Args:
        config: as it runs, with the network and its preprocessing settled.
        table: all images.
        split: their parts.
    """
    return TrainingRecord(
        source=source_name(config.data.path or table.source),
        images={part: _class_counts(table, files) for part in PARTS if (files := split.files_of(part))},
        settings=_settings(config),
    )


def _class_counts(table: ImageTable, files: list[str]) -> dict[str, int]:
    labels = table.labels[table.rows_of(files)]
    counts = labels.sum(axis=0) if table.several_labels else np.bincount(labels, minlength=len(table.class_names))
    return {name: int(count) for name, count in zip(table.class_names, counts, strict=True)}


def _settings(config: Config) -> dict[str, dict[str, Any]]:
    """Section → field → value where it is not the default, of the fields that decide what is learned."""
    usual = flat_fields(Config())
    found: dict[str, dict[str, Any]] = {}
    for name, value in {**fixed_fields(config), "data.label_fixes": config.data.label_fixes}.items():
        section, _, field = name.partition(".")
        if field and value != usual[name]:
            found.setdefault(section, {})[field] = _without_folder(value)
    return found


def _without_folder(value: Any) -> Any:
    """Paths, also those inside of options, become their last part."""
    if isinstance(value, dict):
        return {name: _without_folder(each) for name, each in value.items()}
    is_path = isinstance(value, str) and os.sep in value and os.path.exists(value)
    return source_name(value) if is_path else value
