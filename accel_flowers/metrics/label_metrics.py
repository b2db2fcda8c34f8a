"""Scores of predicted and true labels as a module of the library `evaluate`.

`evaluate.load("accuracy")` fetches code from the hub; this module is the same interface without a network. Apart from
`classification` because that library takes a second to import, and a training needs it only when its first epoch is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from accel_flowers.metrics.confusion import confusion_matrix, macro_f1


class LabelScores(evaluate.Metric):
    """accuracy, macro_f1 and confusion_matrix of labels, from one table of counts.

    Macro F1 is the mean of the classes' F1, each class weighing the same; one that neither occurs nor is predicted is left
    out. The confusion matrix is a list of rows, one for each true class.

    Args:
        num_classes: labels are 0 … num_classes - 1.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        for method in (
            evaluate.EvaluationModule.compute,
            evaluate.EvaluationModule.add_batch,
            evaluate.EvaluationModule.add,
        ):
            method.__doc__ = method.__doc__ or ""  # the library adds to them, and PYTHONOPTIMIZE=2 leaves none
        super().__init__(keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # only named: in memory nothing is written, so no folder is made either

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of right predictions, mean F1 over the classes, and counts of (true, predicted) pairs.",
            citation="",
            inputs_description="predictions: labels; references: labels",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, Any]:
        matrix = confusion_matrix(np.asarray(references), np.asarray(predictions), self._num_classes)
        return {
            "accuracy": float(np.trace(matrix) / matrix.sum()),
            "macro_f1": macro_f1(matrix),
            "confusion_matrix": matrix.tolist(),
        }
