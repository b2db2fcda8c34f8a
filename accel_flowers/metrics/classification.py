"""What happened to each image → scores. NumPy and `evaluate` modules of our own; no torch, no processes.

Scores are computed once from the gathered images, so they are exact on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_flowers.core import registry
from accel_flowers.metrics.confusion import Floats, Ints, precision_recall_f1


@dataclass(frozen=True)
class Predictions:
    """What a model said of each image of a part, in the part's order.

    Attributes:
        labels: int64 [N].
        probabilities: float32 [N, C].
        losses: cross-entropy of each image, float32 [N].
    """

    labels: Ints
    probabilities: Floats
    losses: Floats

    @property
    def predicted(self) -> Ints:
        """Most probable class of each image, int64 [N]."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)


def summarize(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """All scores of a part.

    Returns:
        num_images, accuracy, loss (mean cross-entropy), macro_f1, per_class (name → precision, recall, f1, count),
        confusion_matrix (rows: true class); ready for JSON.
    """
    from accel_flowers.metrics.label_metrics import Accuracy, ConfusionMatrix, MacroF1  # a second of import

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


def lower_is_better(metric: str) -> bool:
    """Whether a metric's best value is its lowest; of a registered one, what it was registered with says so."""
    part = registry.find("metric", metric)
    return bool(part.options.get("lower_is_better", False)) if part else metric == "loss"
