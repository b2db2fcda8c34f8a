"""Intervals hold what they promise; tests of difference against hand-made cases and against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from accel_flowers.metrics.intervals import accuracy_interval, class_intervals, compare_paired, holm

LABELS = np.repeat([0, 1, 2], [40, 25, 15])
PREDICTED = np.array([0] * 33 + [1] * 5 + [2] * 2 + [1] * 20 + [0] * 4 + [2] + [2] * 9 + [1] * 6)


@pytest.mark.holds("95 of 100 intervals hold the truth")
@pytest.mark.parametrize(("num_images", "share"), [(30, 0.97), (150, 0.85), (1000, 0.5)])
def test_accuracy_interval_covers_the_truth(num_images: int, share: float) -> None:
    hits = np.random.default_rng(0).binomial(num_images, share, 4000)
    found = {int(hit): accuracy_interval(int(hit), num_images) for hit in set(hits.tolist())}
    for hit, interval in found.items():
        assert interval.low <= interval.value == hit / num_images <= interval.high
    covered = np.mean([found[int(hit)].low <= share <= found[int(hit)].high for hit in hits])
    assert 0.945 <= covered <= (0.985 if num_images > 30 else 1), "an exact interval is never too short"


@pytest.mark.holds("95 of 100 intervals hold the truth")
def test_class_intervals_are_those_of_plain_resampling() -> None:
    matrix = confusion_matrix(LABELS, PREDICTED)
    found = class_intervals(matrix)
    generator = np.random.default_rng(1)
    random_params = []
    for _ in range(3000):
        chosen = generator.integers(0, len(LABELS), len(LABELS))
        counts = np.bincount(LABELS[chosen] * 3 + PREDICTED[chosen], minlength=9).reshape(3, 3)
        hits, true, said = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
        random_params.append([hits / said, hits / true, 2 * hits / (true + said)])
    ends = np.percentile(random_params, [2.5, 97.5], axis=0)  # [2, score, class]
    for place, score in enumerate((found.precision, found.recall, found.f1)):
        for label in range(3):
            assert score[label].low == pytest.approx(ends[0, place, label], abs=0.02)
            assert score[label].high == pytest.approx(ends[1, place, label], abs=0.02)
    lowest = np.asarray(random_params)[:, 2].argmin(axis=1)
    np.testing.assert_allclose(found.lowest_f1, np.bincount(lowest, minlength=3) / 3000, atol=0.03)
    assert found.lowest_f1.sum() == pytest.approx(1)


def test_class_scores_are_those_of_scikit_learn() -> None:
    found = class_intervals(confusion_matrix(LABELS, PREDICTED))
    precision, recall, f1, _ = precision_recall_fscore_support(LABELS, PREDICTED)
    for label in range(3):
        assert found.precision[label].value == pytest.approx(precision[label])
        assert found.recall[label].value == pytest.approx(recall[label])
        assert found.f1[label].value == pytest.approx(f1[label])


@pytest.mark.holds("95 of 100 intervals hold the truth")
def test_all_right_is_not_certain() -> None:
    # Clopper and Pearson: 0.025 ** (1 / 28)
    interval = accuracy_interval(28, 28)
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low == pytest.approx(0.025 ** (1 / 28))
    assert accuracy_interval(0, 10).high == pytest.approx(1 - 0.025 ** (1 / 10))
    found = class_intervals(np.array([[9, 0], [0, 30]]))
    assert found.recall[0].low == pytest.approx(0.025 ** (1 / 9)) == found.precision[0].low
    share = 0.025 ** (1 / 9)
    assert found.f1[0].low == pytest.approx(2 * share / (1 + share))
    assert found.f1[0].low < found.f1[1].low < 1


def test_a_class_without_images_tells_nothing() -> None:
    found = class_intervals(np.array([[5, 1, 0], [2, 7, 0], [0, 0, 0]]))
    assert (found.recall[2].low, found.recall[2].high) == (0, 1)
    assert (found.precision[2].low, found.precision[2].high) == (0, 1)


def test_many_classes_are_resampled_in_little_memory() -> None:
    generator = np.random.default_rng(0)
    matrix = np.zeros((200, 200), dtype=np.int64)
    np.add.at(matrix, tuple(generator.integers(0, 200, (2, 2000))), 1)
    found = class_intervals(matrix, num_resamples=200)
    assert all(0 <= each.low <= each.high <= 1 for each in found.f1)


def paired(only_first: int, only_second: int, both: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.holds("McNemar's test calls luck what is luck")
def test_mcnemar_by_hand() -> None:
    # Two against eight of ten: 2 * (1 + 10 + 45) / 2**10.
    found = compare_paired(*paired(2, 8, 80, 10))
    assert found.p_value == pytest.approx(0.109375)
    assert (found.only_first, found.only_second, found.num_images) == (2, 8, 100)
    assert found.difference.value == pytest.approx(0.06)
    # 0.06, standard error sqrt((10 - 0.36) / 100**2): the bootstrap is about +- 1.96 of it.
    assert found.difference.low == pytest.approx(0.06 - 1.96 * 0.03105, abs=0.011)
    assert found.difference.high == pytest.approx(0.06 + 1.96 * 0.03105, abs=0.011)


def test_equal_models_do_not_differ() -> None:
    found = compare_paired(*paired(0, 0, 50, 5))
    assert (found.p_value, found.difference.value, found.difference.low, found.difference.high) == (1, 0, 0, 0)
    assert compare_paired(*paired(5, 5, 50)).p_value == 1


@pytest.mark.holds("McNemar's test calls luck what is luck")
def test_p_values_are_no_smaller_than_they_should_be() -> None:
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        first, second = generator.random((2, 120)) < 0.8
        p_values.append(compare_paired(first, second, num_resamples=10).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_swapping_two_models_swaps_the_answer() -> None:
    first, second = paired(3, 9, 60, 8)
    one, other = compare_paired(first, second), compare_paired(second, first)
    assert one.p_value == other.p_value
    assert one.difference.value == -other.difference.value


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
