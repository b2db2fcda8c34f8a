"""From which probability on a class is said, where an image may have several: chosen on images that trained nothing. NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accel_flowers.metrics.average_precision import cumulated
from accel_flowers.metrics.confusion import Floats, Ints, shares

USUAL = 0.5
"""Threshold of a class unless validation says better."""
_NUM_FOLDS = 10


def fit_thresholds(probabilities: Floats, labels: npt.NDArray[np.bool_]) -> Floats:
    """Of each class the threshold with the highest F1; to be fitted on pictures that trained nothing.

    A threshold fitted on few pictures tells of these pictures alone. So 0.5 stays unless, out of fold, the F1 of pictures
    that a threshold was not fitted on is higher by more than its standard error.

    Args:
        probabilities: [N, C].
        labels: bool [N, C].

    Returns:
        float64 [C], each within 0..1; 0.5 for a class that no picture has, or all have.
    """
    num_images = len(labels)
    fold_of = np.random.default_rng(0).permutation(num_images) % max(1, min(_NUM_FOLDS, num_images))
    fitted = np.full(labels.shape[1], USUAL)
    for label in range(labels.shape[1]):
        own, scores = labels[:, label], probabilities[:, label].astype(np.float64)
        if not own.any() or own.all():
            continue
        said = np.zeros(num_images, dtype=np.bool_)
        for fold in range(int(fold_of.max()) + 1):
            others = fold_of != fold
            said[~others] = scores[~others] >= _best_threshold(own[others], scores[others])
        if _is_no_chance(own, scores >= USUAL, said):
            fitted[label] = _best_threshold(own, scores)
    return fitted


def _is_no_chance(
    labels: npt.NDArray[np.bool_],
    usual: npt.NDArray[np.bool_],
    said: npt.NDArray[np.bool_],
    *,
    num_resamples: int = 500,
) -> bool:
    """Whether the F1 of `said` is above that of `usual` by more than its standard error, by resampled pictures.

    A resample of pictures is a draw from the multinomial distribution over the eight cells that they fall into.
    """
    cells = np.bincount(4 * labels + 2 * usual + said, minlength=8)
    draws = np.random.default_rng(0).multinomial(len(labels), cells / len(labels), size=num_resamples)
    with_class, by_usual, by_said = (np.array([cell >> bit & 1 for cell in range(8)]) for bit in (2, 1, 0))

    def f1(counts: Ints, says: Ints) -> Floats:
        return shares(2 * counts @ (with_class * says), counts @ with_class + counts @ says)

    gain = float(f1(cells, by_said) - f1(cells, by_usual))
    return gain > float((f1(draws, by_said) - f1(draws, by_usual)).std()) and gain > 0


def _best_threshold(labels: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Halfway between two neighbouring probabilities; of equally good ones the nearest to 0.5."""
    hits, called, values = cumulated(labels, scores)
    if not len(hits) or not hits[-1]:
        return USUAL
    f1 = 2 * hits / (labels.sum() + called)
    cuts = (values + np.append(values[1:], 0.0)) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best[np.abs(cuts[best] - USUAL).argmin()]])
