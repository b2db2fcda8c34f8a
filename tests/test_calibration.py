"""Calibration against hand-made cases, against scikit-learn, and against a temperature that is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from accel_flowers.metrics.calibration import (
    apply_temperature,
    chance_errors,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)


def drawn(number: int, temperature: float = 1.0, num_classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels that were drawn from them; then the logits are multiplied by the temperature."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(number, num_classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (generator.random((number, 1)) > true.cumsum(axis=1)).sum(axis=1)
    scaled = np.exp(logits * temperature)
    return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32), labels


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return reliability_bins(probabilities, labels).error


def test_calibration_error_by_hand() -> None:
    # Two answers of 95 %, one of them right; one of 55 %, right: 2/3 * |0.95 - 0.5| + 1/3 * |0.55 - 1|.
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55]])
    assert calibration_error(probabilities, np.array([0, 1, 1])) == pytest.approx(0.45)
    assert calibration_error(np.eye(2), np.array([0, 1])) == 0
    assert calibration_error(np.eye(2), np.array([1, 0])) == 1


@pytest.mark.holds("Its scores are those of scikit-learn")
def test_bins_are_those_of_scikit_learn() -> None:
    probabilities, labels = drawn(400)
    bins = reliability_bins(probabilities, labels)
    right, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1).astype(float)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    full = bins.counts > 0
    np.testing.assert_allclose(bins.accuracy[full], accuracy)
    np.testing.assert_allclose(bins.confidence[full], mean)
    assert bins.counts.sum() == 400
    assert np.isnan(bins.accuracy[~full]).all()


@pytest.mark.holds("Its scores are those of scikit-learn")
def test_likelihood_is_that_of_scikit_learn() -> None:
    probabilities, labels = drawn(300)
    tempered = apply_temperature(probabilities, 1.7)
    assert negative_log_likelihood(tempered, labels) == pytest.approx(log_loss(labels, tempered, labels=range(5)))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    probabilities, labels = drawn(20_000, temperature)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_mends_what_it_can() -> None:
    probabilities, labels = drawn(3000, 2.5)
    held_out, their_labels = drawn(3000, 2.5, seed=1)
    temperature = fit_temperature(probabilities, labels)
    assert temperature is not None
    before, after = (
        calibration_error(each, their_labels) for each in (held_out, apply_temperature(held_out, temperature))
    )
    assert after < 0.04 < 0.1 < before


def test_a_temperature_that_images_do_not_tell_is_none() -> None:
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7]])
    assert fit_temperature(probabilities, np.array([0, 1])) is None  # all right: ever surer is ever better
    assert fit_temperature(probabilities, np.array([1, 0])) is None  # all wrong: ever more modest is ever better


def test_temperature_keeps_the_order_and_the_sum() -> None:
    probabilities, _ = drawn(50)
    for temperature in (0.1, 1.0, 10.0):
        tempered = apply_temperature(probabilities, temperature)
        np.testing.assert_allclose(tempered.sum(axis=1), 1)
        assert (tempered.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0), probabilities, rtol=1e-5)
    sure = apply_temperature(np.array([[1.0, 0.0]], dtype=np.float32), 2.0)
    assert np.isfinite(sure).all()
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(probabilities, 0)


def test_chance_explains_the_error_of_a_true_model_and_not_that_of_a_boaster() -> None:
    true, labels = drawn(300)
    boasting, _ = drawn(300, 2.5)
    assert calibration_error(true, labels) < np.percentile(chance_errors(true), 95)
    assert calibration_error(boasting, labels) > np.percentile(chance_errors(boasting), 95)
    one = chance_errors(np.array([[0.75, 0.25]]), num_draws=2000)
    assert sorted(set(one.round(6))) == [0.25, 0.75]  # one image: right or wrong
    assert (one == 0.25).mean() == pytest.approx(0.75, abs=0.03)
