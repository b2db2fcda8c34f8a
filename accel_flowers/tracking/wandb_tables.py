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
    return {
        "confusion_matrix": _confusion_matrix(scored),
        "per_class": wandb.Table(
            ["class", "precision", "recall", "F1", "pictures"], class_rows(scored.scores["per_class"])
        ),
        "worst_pictures": worst,
    }


def class_rows(per_class: Mapping[str, Mapping[str, float]], most: int = MOST_ROWS) -> list[list[Any]]:
    """The scores of each class as rows of a table; of more than fit the first, and how many are left out in the last row.

    Args:
        per_class: class → "precision", "recall", "f1" and "count".
        most: rows that fit.
    """
    rows: list[list[Any]] = [
        [name, row["precision"], row["recall"], row["f1"], row["count"]] for name, row in per_class.items()
    ]
    if len(rows) <= most:
        return rows
    left_out = number_of(len(rows) - most + 1, "class", many="classes")
    return [*rows[: most - 1], [f"({left_out} left out)", None, None, None, None]]


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
