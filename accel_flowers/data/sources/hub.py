"""A dataset of the Hugging Face hub → its table."""

from __future__ import annotations

import pkgutil

import datasets
import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.data.table import HUB_PREFIX, SPLIT_FOLDERS, ImageTable, quoted


def load_hub(source: str) -> ImageTable:
    name = source.removeprefix(HUB_PREFIX)
    if not name.strip("/"):
        raise UserError(f"'{source}' names no dataset: type {HUB_PREFIX}OWNER/NAME.")
    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        # It would take the files of the folder we stand in for that data set.
        raise UserError(f"'{source}' is a loader of the library datasets, no dataset: type {HUB_PREFIX}OWNER/NAME.")
    try:
        loaded = datasets.load_dataset(name)
    # RuntimeError: a dataset that is a script, which is not run.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"The dataset '{name}' of the Hugging Face hub cannot be loaded: {error}. Check the name and the network, "
            "or give a folder of your own: --data.path DIR."
        ) from None
    features = next(iter(loaded.values())).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"The dataset '{name}' needs one column of pictures and one of class labels, it has "
            f"{len(images)} and {len(labels)}: {', '.join(features)}."
        )
    parts = {split: SPLIT_FOLDERS.get(split.lower()) for split in loaded}
    known = {split: part for split, part in parts.items() if part is not None}
    if len(set(known.values())) < len(known) or "train" not in known.values():
        raise UserError(f"The dataset '{name}' has the parts {quoted(parts)}; train is needed, val and test are known.")
    columns = {images[0]: "image", labels[0]: "label"}
    tables = [
        loaded[split]
        .select_columns(list(columns))
        .rename_columns(columns)
        .cast_column("image", datasets.Image(decode=False))
        for split in known
    ]
    rows = datasets.concatenate_datasets(tables)
    given = tuple(part for (_, part), table in zip(known.items(), tables, strict=True) for _ in range(len(table)))
    label_column = rows.with_format("arrow")["label"].to_pylist()
    unknown = sum(label is None or label < 0 for label in label_column)
    if unknown:
        raise UserError(f"{unknown} pictures of the dataset '{name}' have no label.")
    return ImageTable(
        source=source,
        dataset=rows,
        files=tuple(
            f"{split}/{row:08d}" for split, table in zip(known, tables, strict=True) for row in range(len(table))
        ),
        labels=np.array(label_column, dtype=np.int64),
        class_names=tuple(features[labels[0]].names),
        given_parts=given if len(known) > 1 else None,
        unreadable={},
        ignored=(),
    )
