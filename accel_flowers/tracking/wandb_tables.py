"""Tables for W&B: the confusion matrix, scores of each class, the worst images; none larger than W&B shows whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel_flowers.core.plural import number_of
from accel_flowers.metrics.confusion import Ints
from accel_flowers.tracking.scored import WORST_PICTURES, Scored

MOST_ROWS = 10_000
"""W&B cuts a table after so many, without a word on the page."""


def tables_of(scored: Scored) -> dict[str, Any]:
    """Name → table or plot."""
    import wandb

    worst = wandb.Table(columns=["picture", "file", "class", "predicted", "confidence", "loss"])
    for sample, *cells in scored.rows_of_worst(WORST_PICTURES):
        worst.add_data(wandb.Image(scored.thumbnail(sample), file_type="jpg"), *cells)
    name, pairs = scored.pairs
    several = name == "cooccurrence"
    columns = {**_OF_CLASS, **(_OF_SETS if several else {})}
    return {
        name: wandb.Table(["class", "and", "pictures"], together(pairs, scored.class_names))
        if several
        else _confusion_matrix(scored),
        "per_class": wandb.Table(["class", *columns.values()], class_rows(scored.scores["per_class"], list(columns))),
        "worst_pictures": worst,
    }


_OF_CLASS = {"precision": "precision", "recall": "recall", "f1": "F1", "count": "pictures"}
_OF_SETS = {"ap": "average precision", "threshold": "threshold"}
"""Score of a class → heading of its column; the second where images may have several labels."""


def together(pairs: Ints, names: Sequence[str], most: int = MOST_ROWS) -> list[list[Any]]:
    """Which classes come together, as rows: class, another one and the images that have both; the most frequent first.

    Args:
        pairs: [C, C].
        names: of the classes.
        most: rows that fit; rarer pairs are left out.
    """
    rows, columns = np.nonzero(np.triu(pairs, k=1))
    order = np.argsort(-pairs[rows, columns], kind="stable")[:most]
    found = zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    return [[names[row], names[column], int(pairs[row, column])] for row, column in found]


def class_rows(
    per_class: Mapping[str, Mapping[str, float]], columns: Sequence[str] = tuple(_OF_CLASS), most: int = MOST_ROWS
) -> list[list[Any]]:
    """The scores of each class as rows of a table; of more than fit the first, and how many are left out in the last row.

    Args:
        per_class: class → "precision", "recall", "f1", "count" and so on.
        columns: which of them, in their order.
        most: rows that fit.
    """
    rows: list[list[Any]] = [[name, *(row[column] for column in columns)] for name, row in per_class.items()]
    if len(rows) <= most:
        return rows
    left_out = number_of(len(rows) - most + 1, "class", many="classes")
    return [*rows[: most - 1], [f"({left_out} left out)", *[None] * len(columns)]]


def _confusion_matrix(scored: Scored) -> Any:
    import wandb

    predictions = scored.predictions
    cells, said = cells_to_show(predictions.labels, predictions.predicted, scored.class_names)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table(
        data_table=wandb.Table(list(fields), cells),
        vega_spec_name="wandb/confusion_matrix/v1",
        fields=fields,
        string_fields={"title": f"{scored.part}: true and predicted class{said}"},
    )


def cells_to_show(
    labels: Ints, predicted: Ints, names: Sequence[str], most: int = MOST_ROWS
) -> tuple[list[list[Any]], str]:
    """The confusion matrix as rows of a table: all cells, or of many classes those that are not empty.

    Args:
        labels: true class of each image, [N].
        predicted: class that it was taken for, [N].
        names: of the classes.
        most: rows that fit; where even more cells are not empty, those with the most images stay.

    Returns:
        ([true class, predicted class, images] of each cell, by class; what the title says of cells that are left out).
    """
    pairs, counts = np.unique(labels.astype(np.int64) * len(names) + predicted, return_counts=True)
    said = ""
    if len(names) ** 2 <= most:
        counts = np.bincount(pairs, weights=counts, minlength=len(names) ** 2).astype(np.int64)
        pairs = np.arange(len(counts))
    elif len(pairs) > most:
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        left_out = int(counts.sum() - counts[kept].sum())
        said = f" ({len(pairs) - most:,} cells with {left_out:,} pictures left out)"
        pairs, counts = pairs[kept], counts[kept]
    rows = zip(pairs.tolist(), counts.tolist(), strict=True)
    return [[names[pair // len(names)], names[pair % len(names)], count] for pair, count in rows], said
