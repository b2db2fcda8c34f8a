"""Counts of (true, predicted) pairs, and what follows from them; NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


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


def macro_f1(matrix: Ints) -> float:
    """Mean of the classes' F1, each class weighing the same; one that neither occurs nor is predicted is left out."""
    present = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    return float(precision_recall_f1(matrix)[2][present].mean())


def shares(part: Any, whole: Any) -> Floats:
    """part / whole, float64; 0 where there is nothing to divide by."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
