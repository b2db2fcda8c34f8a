"""Whether probabilities mean what they say, and the one number that corrects most of it. NumPy alone; no torch.

Source of the temperature and of the expected calibration error as used here: Guo et al. 2017, "On Calibration of
Modern Neural Networks".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accel_flowers.metrics.confusion import Floats, Ints

NUM_BINS = 15
"""Equal-width bins of the confidence, as is usual."""
_GRID = np.linspace(np.log(0.1), np.log(10), 93)
"""Logarithms of the temperatures that are searched, 5 % apart; beyond, the images say nothing about it."""
_SPREAD = 0.5
"""Standard deviation of log T that is expected before any image is seen: 0.4 to 2.7 in 95 of 100 cases, which is what networks
have (Guo et al. find 0.8 to 2.5). With it, a few images move the temperature little."""
_NUM_FOLDS = 10
_NUMBERS_AT_ONCE = 5_000_000
"""Of a chunk of drawn answers: 40 MB."""
_SMALLEST = float(np.finfo(np.float32).tiny)
"""What a probability of 0 is taken for: in float32 that is one that was too small to be written."""


@dataclass(frozen=True)
class ReliabilityBins:
    """What was said and what came true, by how sure it was said; bin b holds confidences in (b / B, (b + 1) / B].

    Attributes:
        edges: float64 [B + 1], from 0 to 1.
        counts: images in each bin, int64 [B].
        confidence: mean confidence of each bin, float64 [B]; nan where it is empty.
        accuracy: share of right answers in each bin, float64 [B]; nan where it is empty.
    """

    edges: Floats
    counts: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance between the two, each bin weighing as it is full, 0 … 1."""
        full = self.counts > 0
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float((gaps * self.counts[full]).sum() / self.counts.sum())


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """softmax(log p / T), which is softmax(logits / T): above 1 it makes them more modest, below 1 surer.

    Args:
        probabilities: [N, C], each row adds up to 1.
        temperature: T, above 0.

    Returns:
        float64 [N, C]; the order within a row stays.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    scores = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _SMALLEST)) / temperature
    scores -= scores.max(axis=1, keepdims=True)
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def negative_log_likelihood(probabilities: Floats, labels: Ints) -> float:
    """Mean of -log p(true class), in nats."""
    return float(_losses(probabilities, labels).mean())


def fit_temperature(probabilities: Floats, labels: Ints) -> float | None:
    """The temperature that makes the true classes most probable; to be fitted on images that trained nothing.

    Fitted on few images a temperature tells of these images alone. So it is drawn towards 1, the more the fewer they are, and
    refused unless images that it was not fitted on become more probable by more than chance.

    Args:
        probabilities: [N, C].
        labels: true classes, int64 [N].

    Returns:
        T between 0.1 and 10; None where these images do not tell: all answers are right or no better than chance, so that
        the likelihood grows without end, or the gain out of fold is within its standard error.
    """
    sums = _losses_of_folds(probabilities, labels).sum(axis=0)
    if int(sums.argmin()) in (0, len(_GRID) - 1):
        return None
    gains = _losses(probabilities, labels) - _losses(apply_out_of_fold(probabilities, labels), labels)
    if not gains.mean() > gains.std() / np.sqrt(len(gains)):
        return None
    return _lowest(sums)


def apply_out_of_fold(probabilities: Floats, labels: Ints) -> Floats:
    """Each image with the temperature that the images of the other folds give: what a temperature is worth that was fitted here.

    Args:
        probabilities: [N, C].
        labels: true classes, int64 [N].

    Returns:
        float64 [N, C].
    """
    sums, fold_of = _losses_of_folds(probabilities, labels), _folds(len(labels))
    tempered = np.array(probabilities, dtype=np.float64)
    for fold in range(len(sums)):
        if len(sums) > 1:
            own = fold_of == fold
            tempered[own] = apply_temperature(probabilities[own], _lowest(sums.sum(axis=0) - sums[fold]))
    return tempered


def _folds(num_images: int) -> Ints:
    """Fold of each image, int64 [N]: as equally large as can be, whatever the images' order is."""
    shuffled = np.random.default_rng(0).permutation(num_images)
    return np.asarray(shuffled % min(_NUM_FOLDS, num_images), dtype=np.int64)


def _losses(probabilities: Floats, labels: Ints) -> Floats:
    """-log p(true class) of each image in nats, float64 [N]."""
    own = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(own, _SMALLEST)))


def _losses_of_folds(probabilities: Floats, labels: Ints) -> Floats:
    """Sum of the losses of each fold at each temperature of the grid, float64 [folds, grid]."""
    fold_of = _folds(len(labels))
    losses = [_losses(apply_temperature(probabilities, float(np.exp(place))), labels) for place in _GRID]
    return np.stack([np.bincount(fold_of, weights=each) for each in losses], axis=1)


def _lowest(losses: Floats) -> float:
    """The temperature of the lowest loss and what is expected of temperatures: a parabola through the grid's best three.

    Args:
        losses: sum over images at each temperature of the grid, float64 [grid].
    """
    costs = losses + _GRID**2 / (2 * _SPREAD**2)
    place = int(np.clip(costs.argmin(), 1, len(_GRID) - 2))
    before, here, after = costs[place - 1 : place + 2]
    bend = before - 2 * here + after
    shift = float(np.clip((before - after) / (2 * bend), -1, 1)) if bend > 0 else 0.0
    return float(np.exp(_GRID[place] + shift * (_GRID[1] - _GRID[0])))


def reliability_bins(probabilities: Floats, labels: Ints, *, num_bins: int = NUM_BINS) -> ReliabilityBins:
    """Sort answers by their confidence (the highest probability) into equal-width bins.

    Args:
        probabilities: [N, C].
        labels: true classes, int64 [N].
        num_bins: B.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    return _bins(values.max(axis=1), values.argmax(axis=1) == labels, num_bins)


def chance_errors(probabilities: Floats, *, num_draws: int = 1000, num_bins: int = NUM_BINS, seed: int = 0) -> Floats:
    """Calibration errors of a model whose probabilities are right, on as many images: never 0, for chance alone.

    Args:
        probabilities: [N, C], taken for true.
        num_draws: how often the answers are drawn anew.

    Returns:
        float64 [num_draws]; an error well above these is no chance (Bröcker and Smith 2007, consistency resampling).
    """
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    generator = np.random.default_rng(seed)
    in_bin = np.zeros((len(confidence), num_bins))
    in_bin[np.arange(len(confidence)), _places(confidence, num_bins)] = 1
    errors = np.empty(num_draws)
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(confidence)))
    for first in range(0, num_draws, at_once):
        drawn = generator.random((min(at_once, num_draws - first), len(confidence)))
        # A bin's weight times its gap is |hits - sum of confidences| / N.
        gaps = np.abs(((drawn < confidence) - confidence) @ in_bin).sum(axis=1)
        errors[first : first + at_once] = gaps / len(confidence)
    return errors


def _places(confidence: Floats, num_bins: int) -> Ints:
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def _bins(confidence: Floats, right: npt.NDArray[np.bool_], num_bins: int) -> ReliabilityBins:
    places = _places(confidence, num_bins)
    counts = np.bincount(places, minlength=num_bins)

    def means(values: npt.NDArray[Any]) -> Floats:
        sums = np.bincount(places, weights=values.astype(np.float64), minlength=num_bins)
        return np.divide(sums, counts, out=np.full(num_bins, np.nan), where=counts > 0)

    return ReliabilityBins(np.linspace(0, 1, num_bins + 1), counts, means(confidence), means(right))
