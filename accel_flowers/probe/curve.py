"""What more pictures would give, from what fewer gave: a power law through the errors, with the uncertainty of both.

That the error of a learner falls as a power of the number of examples is what is found over many data sets and networks (Hestness
et al. 2017, "Deep Learning Scaling is Predictable, Empirically"); where labels are wrong it ends at their share, which no curve
of so few sizes shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accel_flowers.metrics.confusion import Floats
from accel_flowers.metrics.intervals import Interval, accuracy_interval

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the number of pictures that were learned from.

    Attributes:
        sizes: pictures, rising.
        accuracies: at each size, with their exact intervals.
        twice: pictures of which the forecast speaks: twice as many as there are.
        forecast: accuracy then, with the middle 95 % of what resampled pictures forecast, by all sizes or the last three.
        check: what the sizes but the last forecast for the last; None of fewer than four sizes.
    """

    sizes: tuple[float, ...]
    accuracies: tuple[Interval, ...]
    twice: int
    forecast: Interval
    check: Interval | None


def find_curve(
    sizes: Sequence[float], right: npt.NDArray[np.bool_], num_images: int, *, seed: int = 0
) -> LearningCurve:
    """Fit the power law, and go on with it.

    Args:
        sizes: pictures that were learned from, rising; S of them, at least 3.
        right: whether each picture was right at each size, bool [S, N].
        num_images: that there are.
        seed: of the resamples.
    """
    counts = right.sum(axis=1).tolist()
    errors = _resampled_errors(right, seed)
    twice = 2 * num_images
    forecast = _forecast(sizes, errors, twice)
    check = _forecast(sizes[:-1], errors[:, :-1], sizes[-1]) if len(sizes) > 3 else None
    accuracies = tuple(accuracy_interval(int(count), right.shape[1]) for count in counts)
    return LearningCurve(tuple(sizes), accuracies, twice, forecast, check)


def _resampled_errors(right: npt.NDArray[np.bool_], seed: int) -> Floats:
    """Error at each size, float64 [1 + resamples, S]: of the pictures as they are, then of pictures drawn with repetition.

    The same pictures are right at several sizes, so they are drawn with what happened to them at all of them.
    """
    patterns, counts = np.unique(right, axis=1, return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, _NUM_RESAMPLES)
    wrong = np.concatenate([counts[None], draws]) @ (~patterns).T.astype(np.float64)
    # Half a picture more, so that no error is 0, of which there is no logarithm.
    return np.asarray((wrong + 0.5) / (total + 1))


def _forecast(sizes: Sequence[float], errors: Floats, at: float) -> Interval:
    """Accuracy at another size; with all sizes, and with the last three, for an early bend says little of what follows."""
    value = 1 - float(_power_law(sizes, errors[:1], at)[0])
    resampled = [1 - _power_law(sizes, errors[1:], at)]
    if len(sizes) > 3:
        resampled.append(1 - _power_law(sizes[-3:], errors[1:, -3:], at))
    ends = [np.percentile(each, [2.5, 97.5]) for each in resampled]
    low, high = min(float(each[0]) for each in ends), max(float(each[1]) for each in ends)
    return Interval(value, min(low, value), max(high, value))


def _power_law(sizes: Sequence[float], errors: Floats, at: float) -> Floats:
    """Errors at another size, float64 [B], by a line through the logarithms; a law that rises is taken for a constant."""
    x, y = np.log(np.asarray(sizes)), np.log(errors)
    middle = x.mean()
    slope = ((x - middle) * (y - y.mean(axis=1, keepdims=True))).sum(axis=1) / np.square(x - middle).sum()
    slope = np.minimum(slope, 0.0)
    return np.asarray(np.minimum(np.exp(y.mean(axis=1) + slope * (np.log(at) - middle)), 1.0))
