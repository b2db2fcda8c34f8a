"""Calibration against hand-made cases, against scikit-learn, and against a temperature that is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from accel_flowers.metrics.calibration import (
    apply_out_of_fold,
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


@pytest.mark.parametrize("temperature", [0.4, 1.3, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    probabilities, labels = drawn(20_000, temperature)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.03)


def test_a_model_that_is_right_needs_none() -> None:
    assert fit_temperature(*drawn(20_000)) is None


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


@pytest.mark.holds("A temperature of few images harms no others")
def test_a_temperature_of_few_images_does_not_make_others_worse() -> None:
    """Of models that are right, 31 validation images call few wrong; what is fitted on them hardly harms new images."""
    fitted, harm = [], []
    others, their_labels = drawn(4000, seed=999)
    for seed in range(60):
        temperature = fit_temperature(*drawn(31, seed=seed))
        if temperature is not None:
            fitted.append(temperature)
            tempered = apply_temperature(others, temperature)
            harm.append(negative_log_likelihood(tempered, their_labels) - negative_log_likelihood(others, their_labels))
    assert len(fitted) < 15, "most are refused: they do not lower the loss out of fold"
    assert all(0.4 < temperature < 2 for temperature in fitted)
    assert max(harm, default=0) < 0.2


def test_a_boaster_is_tempered_though_images_are_few() -> None:
    fitted = [fit_temperature(*drawn(60, 3.0, seed=seed)) for seed in range(20)]
    told = [each for each in fitted if each is not None]
    assert len(told) >= 15
    assert all(each > 1 for each in told)


@pytest.mark.holds("A temperature of few images harms no others")
def test_out_of_fold_judges_as_new_images_do() -> None:
    probabilities, labels = drawn(2000, 2.5)
    temperature = fit_temperature(probabilities, labels)
    assert temperature is not None
    tempered, out_of_fold = apply_temperature(probabilities, temperature), apply_out_of_fold(probabilities, labels)
    np.testing.assert_allclose(out_of_fold, tempered, atol=0.02)
    assert not np.array_equal(out_of_fold, tempered)
    one = np.array([[0.6, 0.4]])
    np.testing.assert_array_equal(apply_out_of_fold(one, np.array([0])), one)  # there is no other to fit it on
