"""Whether probabilities mean what they say, and the one number that corrects most of it. NumPy and SciPy; no torch.

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
_LOWEST, _HIGHEST = 0.1, 10.0
"""Temperatures that are searched; beyond, the images say nothing about it."""
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
    own = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, _SMALLEST)).mean())


def fit_temperature(probabilities: Floats, labels: Ints) -> float | None:
    """The temperature that makes the true classes most probable; to be fitted on images that trained nothing.

    Args:
        probabilities: [N, C].
        labels: true classes, int64 [N].

    Returns:
        T between 0.1 and 10; None where these images do not tell, because all answers are right, or no better than
        chance: the likelihood then grows without end.
    """
    from scipy.optimize import minimize_scalar  # a second of import that only this function needs

    def cost(log_temperature: float) -> float:
        return negative_log_likelihood(apply_temperature(probabilities, float(np.exp(log_temperature))), labels)

    bounds = (float(np.log(_LOWEST)), float(np.log(_HIGHEST)))
    found = float(minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)
    at_an_end = min(found - bounds[0], bounds[1] - found) < 1e-3
    return None if at_an_end else float(np.exp(found))


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
    right = np.random.default_rng(seed).random((num_draws, len(confidence))) < confidence
    places = _places(confidence, num_bins)
    in_bin = np.zeros((len(confidence), num_bins))
    in_bin[np.arange(len(confidence)), places] = 1
    # A bin's weight times its gap is |hits - sum of confidences| / N.
    return np.asarray(np.abs((right - confidence) @ in_bin).sum(axis=1) / len(confidence))


def _places(confidence: Floats, num_bins: int) -> Ints:
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def _bins(confidence: Floats, right: npt.NDArray[np.bool_], num_bins: int) -> ReliabilityBins:
    places = _places(confidence, num_bins)
    counts = np.bincount(places, minlength=num_bins)

    def means(values: npt.NDArray[Any]) -> Floats:
        sums = np.bincount(places, weights=values.astype(np.float64), minlength=num_bins)
        return np.divide(sums, counts, out=np.full(num_bins, np.nan), where=counts > 0)

    return ReliabilityBins(np.linspace(0, 1, num_bins + 1), counts, means(confidence), means(right))
