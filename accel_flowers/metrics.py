"""What happened to each picture → scores. NumPy and `evaluate` modules of our own; no torch, no processes.

`evaluate.load("accuracy")` fetches code from the hub; these modules are the same interface without a network. Scores
are computed once from the gathered pictures, so they are exact on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Predictions:
    """What a model said of each picture of a part, in the part's order.

    Attributes:
        labels: int64 [N].
        probabilities: float32 [N, C].
        losses: cross-entropy of each picture, float32 [N].
    """

    labels: Ints
    probabilities: Floats
    losses: Floats

    @property
    def predicted(self) -> Ints:
        """Most probable class of each picture, int64 [N]."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)


def confusion_matrix(references: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Counts, int64 [C, C]: row = true class, column = predicted class."""
    places = np.asarray(references) * num_classes + np.asarray(predictions)
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def precision_recall_f1(matrix: Ints) -> tuple[Floats, Floats, Floats]:
    """Of each class, float64 [C]; 0 where there is nothing to divide by."""
    hits = np.diagonal(matrix).astype(np.float64)
    predicted, true = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)
    both = precision + recall
    return precision, recall, np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)


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
    """Share of pictures whose most probable class is the true one."""

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


def summarize(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """All scores of a part.

    Returns:
        num_images, accuracy, loss (mean cross-entropy), macro_f1, per_class (name → precision, recall, f1, count),
        confusion_matrix (rows: true class); ready for JSON.
    """
    labels, predicted = predictions.labels, predictions.predicted
    num_classes = len(class_names)
    scores: dict[str, Any] = {"num_images": len(labels)}
    for metric in (Accuracy(num_classes), MacroF1(num_classes), ConfusionMatrix(num_classes)):
        scores |= metric.compute(predictions=predicted, references=labels)
    precision, recall, f1 = precision_recall_f1(np.asarray(scores["confusion_matrix"]))
    counts = np.bincount(labels, minlength=num_classes)
    scores["loss"] = float(predictions.losses.astype(np.float64).mean())
    scores["per_class"] = {
        name: {
            "precision": float(precision[label]),
            "recall": float(recall[label]),
            "f1": float(f1[label]),
            "count": int(counts[label]),
        }
        for label, name in enumerate(class_names)
    }
    return scores


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """The scores that are single numbers, for curves and comparisons."""
    return {name: scores[name] for name in ("accuracy", "loss", "macro_f1")}
