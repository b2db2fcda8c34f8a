"""Average precision of each class among several that an image may have, its mean, and how sure both are. NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accel_flowers.metrics.confusion import Floats, Ints, shares
from accel_flowers.metrics.intervals import Interval

_CELLS, _CELLS_AT_ONCE = 50_000_000, 5_000_000
"""Numbers of all resamples together, some seconds; and of a chunk of them, 40 MB."""


def average_precisions(labels: npt.NDArray[np.bool_], probabilities: Floats) -> Floats:
    """Of each class the sum over its thresholds of (recall gained there) · (precision there); equal probabilities are one threshold.

    That is scikit-learn's `average_precision_score`: nothing is interpolated.

    Args:
        labels: bool [N, C].
        probabilities: [N, C].

    Returns:
        float64 [C]; nan where no picture has the class.
    """
    found = np.full(labels.shape[1], np.nan)
    for label in range(labels.shape[1]):
        hits, called, _ = cumulated(labels[:, label], probabilities[:, label])
        if len(hits) and hits[-1]:
            gained = np.diff(hits, prepend=0)
            found[label] = float((gained * hits / called).sum() / hits[-1])
    return found


def map_interval(
    labels: npt.NDArray[np.bool_], probabilities: Floats, *, num_resamples: int = 1000, seed: int = 0
) -> tuple[Interval, tuple[Interval | None, ...]]:
    """mAP, and the average precision of each class, where 95 of 100 resamples of the pictures have them.

    Pictures are resampled, not answers, so what stands on one picture goes together. Of many pictures and classes there are fewer
    resamples, 20 at least; of fewer than 100 the ends are 1.96 standard deviations of them away.

    Args:
        labels: bool [N, C].
        probabilities: [N, C].

    Returns:
        The interval of the mean, and one for each class; None for a class that no picture has.
    """
    num_images, num_classes = labels.shape
    num_resamples = int(np.clip(_CELLS // max(1, num_images * num_classes), 20, num_resamples))
    chance = np.random.default_rng(seed)
    values = average_precisions(labels, probabilities)
    resampled = np.empty((num_resamples, num_classes))
    at_once = max(1, _CELLS_AT_ONCE // max(1, num_images))
    for first in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - first)
        weights = chance.multinomial(num_images, np.full(num_images, 1 / num_images), size=count)
        for label in range(num_classes):
            resampled[first : first + count, label] = _weighted_precisions(
                labels[:, label], probabilities[:, label], weights
            )
    there: npt.NDArray[np.bool_] = np.asarray(labels.any(axis=0))
    if not there.any():
        return Interval(0.0, 0.0, 0.0), (None,) * num_classes
    known = np.isfinite(resampled)
    counts = known.sum(axis=1)
    means: Floats = np.where(known, resampled, 0.0).sum(axis=1)[counts > 0] / counts[counts > 0]
    of_each: list[Interval | None] = []
    for label in range(num_classes):
        own = resampled[known[:, label], label]
        of_each.append(_interval(float(values[label]), own) if there[label] else None)
    return _interval(float(values[there].mean()), means), tuple(of_each)


def _interval(value: float, resampled: Floats) -> Interval:
    if len(resampled) < 100:  # too few for the ends themselves
        half = 1.96 * float(resampled.std()) if len(resampled) else 0.0
        return Interval(value, max(0.0, value - half), min(1.0, value + half))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _weighted_precisions(labels: npt.NDArray[np.bool_], scores: Floats, weights: Ints) -> Floats:
    """Average precision of one class in each resample, float64 [R]; nan where it holds no picture with the class.

    Args:
        labels: bool [N].
        scores: [N].
        weights: how often each picture is in each resample, int64 [R, N].
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    places = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    counts = weights[:, order]
    called = counts.cumsum(axis=1)[:, places].astype(np.float64)
    hits = (counts * labels[order].astype(np.int64)).cumsum(axis=1)[:, places].astype(np.float64)
    gained = np.diff(hits, axis=1, prepend=0)
    return np.where(hits[:, -1] > 0, (gained * shares(hits, called)).sum(axis=1) / np.maximum(hits[:, -1], 1), np.nan)


def cumulated(labels: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """At each different score, the highest first: how many with the class, and how many at all, have it or more; and the score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, dtype=np.bool_)
    places = np.flatnonzero(last)
    return labels[order].cumsum()[places].astype(np.float64), (places + 1).astype(np.float64), ordered[places]
