"""Scores as modules of the library `evaluate`.

`evaluate.load("accuracy")` fetches code from the hub; these modules are the same interface without a network. Apart from
`metrics` because that library takes a second to import, and a training needs it only when its first epoch is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from accel_flowers.metrics.confusion import Ints, confusion_matrix, precision_recall_f1


class _LabelMetric(evaluate.Metric):
    """An `evaluate` module over predicted and true labels that needs no hub and leaves no file."""

    description = ""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        super().__init__(keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # only named: in memory nothing is written, so no folder is made either

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions: labels; references: labels",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _matrix(self, predictions: Sequence[int], references: Sequence[int]) -> Ints:
        return confusion_matrix(np.asarray(references), np.asarray(predictions), self._num_classes)


class Accuracy(_LabelMetric):
    """Share of images whose most probable class is the true one."""

    description = "Share of right predictions."

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        matrix = self._matrix(predictions, references)
        return {"accuracy": float(np.trace(matrix) / matrix.sum())}


class MacroF1(_LabelMetric):
    """Mean of the classes' F1, each class weighing the same; one that neither occurs nor is predicted is left out."""

    description = "Mean F1 over the classes."

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        matrix = self._matrix(predictions, references)
        present = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
        return {"macro_f1": float(precision_recall_f1(matrix)[2][present].mean())}


class ConfusionMatrix(_LabelMetric):
    """Counts of (true, predicted) pairs as a list of rows."""

    description = "Rows: true class; columns: predicted class."

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, list[list[int]]]:
        return {"confusion_matrix": self._matrix(predictions, references).tolist()}
