"""Scores against scikit-learn and against a case made by hand; the modules are `evaluate`'s and leave nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.metrics.classification import Predictions, Scores, headline, lower_is_better, summarize
from accel_flowers.metrics.confusion import Floats, Ints, confusion_matrix, precision_recall_f1
from accel_flowers.metrics.label_metrics import LabelScores

NAMES = ("aster", "daisy", "rose", "tulip")


def draw(num_images: int, *, labels: tuple[int, ...] = (0, 1, 2, 3), seed: int = 0) -> Predictions:
    """Random images of some of the classes, about half of them predicted rightly."""
    generator = np.random.default_rng(seed)
    true = generator.choice(labels, num_images)
    logits = generator.normal(size=(num_images, 4)) + 1.5 * np.eye(4)[true]
    return predictions_of(true, logits)


def predictions_of(labels: Ints, logits: Floats) -> Predictions:
    odds = np.exp(logits)
    probabilities = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    return Predictions(labels.astype(np.int64), probabilities, losses.astype(np.float32))


def certain(labels: list[int], predicted: list[int]) -> Predictions:
    """A model that gives 0.7 to what it predicts and 0.1 to each of the others."""
    probabilities = np.full((len(labels), 4), 0.1) + 0.6 * np.eye(4)[predicted]
    return predictions_of(np.array(labels), np.log(probabilities))


CASES = {
    "many": draw(500),
    "few": draw(7, seed=1),
    "a class without pictures": draw(200, labels=(0, 2, 3)),
    "one class alone": draw(50, labels=(1,)),
    "a class never predicted": certain([0, 0, 1, 2, 2, 3], [0, 2, 1, 2, 0, 1]),
    "a class neither there nor predicted": certain([0, 0, 1, 2], [0, 2, 1, 1]),
    "all wrong": certain([0, 1, 2, 3], [1, 2, 3, 0]),
    "one picture": certain([2], [2]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scores_equal_scikit_learns(case: Predictions) -> None:
    scores = summarize(case, NAMES)
    labels, predicted, every = case.labels, case.predicted, range(len(NAMES))
    assert scores["num_images"] == len(labels)
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    )
    exact = case.probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # float32 sums to 1 not exactly enough for scikit-learn
    assert scores["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, exact, labels=every), rel=1e-5)
    assert scores["confusion_matrix"] == sklearn_metrics.confusion_matrix(labels, predicted, labels=every).tolist()
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for row, values in zip(scores["per_class"].values(), np.transpose(expected), strict=True):
        assert [row["precision"], row["recall"], row["f1"], row["count"]] == pytest.approx(values)


def test_scores_by_hand() -> None:
    # Of three asters one is taken for a daisy; of two daisies one for a rose; there is no rose and no tulip.
    scores = summarize(certain([0, 0, 0, 1, 1], [0, 0, 1, 1, 2]), NAMES)
    assert scores["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert scores["accuracy"] == 3 / 5
    assert scores["per_class"] == {
        "aster": {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(4 / 5), "count": 3},
        "daisy": {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "count": 2},
        "rose": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0},
        "tulip": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0},
    }
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3), "the tulip neither occurs nor is predicted"
    assert scores["loss"] == pytest.approx(-(3 * np.log(0.7) + 2 * np.log(0.1)) / 5)
    assert headline(scores) == {name: scores[name] for name in ("accuracy", "loss", "macro_f1")}


def test_scores_are_ready_for_json() -> None:
    scores = summarize(CASES["many"], NAMES)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@settings(max_examples=20)
@given(data=st.data())
def test_the_order_of_the_images_does_not_matter(data: st.DataObject) -> None:
    case = CASES["few"]
    order = np.array(data.draw(st.permutations(range(len(case.labels)))))
    shuffled = Predictions(case.labels[order], case.probabilities[order], case.losses[order])
    expected = summarize(case, NAMES)
    assert summarize(shuffled, NAMES) == {**expected, "loss": pytest.approx(expected["loss"])}


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_a_confusion_matrix_counts_every_image_once(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    matrix = confusion_matrix(labels, predicted, 4)
    assert {(row, column): matrix[row, column] for row, column in zip(*matrix.nonzero(), strict=True)} == {
        pair: pairs.count(pair) for pair in set(pairs)
    }
    for scores in precision_recall_f1(matrix):
        assert ((scores >= 0) & (scores <= 1)).all()


# The module


def test_the_module_works_as_evaluates_do() -> None:
    case = CASES["many"]
    metric = LabelScores(4)
    assert isinstance(metric, evaluate.Metric)
    at_once = metric.compute(predictions=case.predicted, references=case.labels)
    assert at_once == {name: summarize(case, NAMES)[name] for name in ("accuracy", "macro_f1", "confusion_matrix")}
    for rows in np.array_split(np.arange(500), 7):
        metric.add_batch(predictions=case.predicted[rows], references=case.labels[rows])
    assert metric.compute() == at_once
    for label, guess in ((0, 0), (1, 2)):
        metric.add(prediction=guess, reference=label)
    assert metric.compute() == LabelScores(4).compute(predictions=[0, 2], references=[0, 1]), (
        "nothing is left of before"
    )
    assert metric.description
    assert metric.features.keys() == {"predictions", "references"}


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("working", "temporary", "home", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    summarize(CASES["many"], NAMES)
    metric = LabelScores(4)
    metric.add_batch(predictions=[0], references=[0])
    metric.compute()
    assert [entry for entry in tmp_path.rglob("*") if entry.parent != tmp_path] == []


# Metrics of the user's own


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", {})

    @registry.register("metric", "my/kappa")
    def kappa(predictions: Predictions) -> float:
        return sklearn_metrics.cohen_kappa_score(predictions.labels, predictions.predicted)

    @registry.register("metric", "my/brier", lower_is_better=True)
    def brier(predictions: Predictions) -> float:
        truth = np.eye(predictions.probabilities.shape[1])[predictions.labels]
        return ((predictions.probabilities - truth) ** 2).sum(axis=1).mean()


def test_own_metrics_stand_behind_the_others(own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["many"]
    scores = summarize(case, NAMES)
    assert scores["my/kappa"] == sklearn_metrics.cohen_kappa_score(case.labels, case.predicted)
    assert list(headline(scores)) == ["accuracy", "loss", "macro_f1", "my/brier", "my/kappa"]
    assert all(type(value) is float for value in headline(scores).values())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert [lower_is_better(name) for name in ("my/brier", "my/kappa", "loss", "accuracy")] == [
        True,
        False,
        True,
        False,
    ]
    monkeypatch.setattr(registry, "_parts", {})
    assert list(summarize(case, NAMES).items()) == list(scores.items())[:-2]


def test_scores_as_an_object_are_the_same(own: None) -> None:
    case = CASES["a class without pictures"]
    scores = Scores.of("val", case, NAMES)
    assert json.dumps(scores.as_json()) == json.dumps({"part": "val", **summarize(case, NAMES)})
    assert scores.per_class["rose"].count == (case.labels == 2).sum()
    assert scores.own.keys() == {"my/brier", "my/kappa"}
    assert np.trace(scores.confusion_matrix) == scores.accuracy * scores.num_images


@pytest.mark.parametrize("wrong", [None, "high", [1.0, 2.0], {"kappa": 1.0}])
def test_a_metric_that_gives_no_number_is_told(own: None, wrong: object) -> None:
    registry.register("metric", "my/odd")(lambda predictions: wrong)
    with pytest.raises(UserError, match=rf"'my/odd' gave .*, a {type(wrong).__name__}: a metric is a function"):
        summarize(CASES["few"], NAMES)
