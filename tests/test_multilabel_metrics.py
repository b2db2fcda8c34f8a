"""Scores and thresholds of pictures with several labels: against scikit-learn, and against cases made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.metrics.average_precision import average_precisions
from accel_flowers.metrics.classification import Predictions, headline, summarize
from accel_flowers.metrics.multilabel import MultilabelPredictions, MultilabelScores, build_predictions
from accel_flowers.metrics.predictions import load_predictions, save_predictions
from accel_flowers.metrics.thresholds import fit_thresholds

NAMES = ("aster", "daisy", "rose", "tulip")


def draw(num_images: int, *, seed: int = 0, digits: int = 6, shift: float = 0.0) -> MultilabelPredictions:
    """Answers that know something; few digits make equal probabilities, a shift makes 0.5 a bad threshold."""
    generator = np.random.default_rng(seed)
    labels = generator.random((num_images, 4)) < (0.5, 0.3, 0.1, 0.25)
    scores = generator.normal(size=labels.shape) + 2.0 * labels - 1.0 + shift
    probabilities = np.round(1 / (1 + np.exp(-scores)), digits).astype(np.float32)
    losses = -np.log(np.where(labels, probabilities, 1 - probabilities) + 1e-6).sum(axis=1)
    return MultilabelPredictions(labels, probabilities, losses.astype(np.float32))


def with_labels(rows: list[list[int]], probabilities: list[list[float]]) -> MultilabelPredictions:
    labels = np.array(rows, dtype=bool)
    return MultilabelPredictions(
        labels, np.array(probabilities, dtype=np.float32), np.ones(len(rows), dtype=np.float32)
    )


CASES = {
    "many": draw(400),
    "equal probabilities": draw(300, digits=1, seed=1),
    "few": draw(6, seed=2),
    "other thresholds": draw(200, seed=3).with_thresholds((0.1, 0.9, 0.3, 0.5)),
    "a class without pictures": with_labels([[1, 0, 0, 1], [0, 1, 0, 1]], [[0.9, 0.2, 0.8, 0.6], [0.1, 0.6, 0.4, 0.4]]),
    "a class neither there nor said": with_labels([[1, 0, 0, 1], [0, 1, 0, 1]], [[0.9, 0.2, 0.1, 0.6]] * 2),
    "no label at all": with_labels([[0, 0, 0, 0]], [[0.2, 0.6, 0.1, 0.1]]),
    "one picture": with_labels([[1, 1, 0, 0]], [[0.9, 0.1, 0.1, 0.7]]),
}


@pytest.mark.filterwarnings("ignore:No positive class found in y_true")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scores_equal_scikit_learns(case: MultilabelPredictions) -> None:
    scores, labels, said = summarize(case, NAMES), case.labels, case.predicted
    there = labels.any(axis=0) | said.any(axis=0)
    of_each = sklearn_metrics.precision_recall_fscore_support(labels, said, average=None, zero_division=0)
    for label, (name, row) in enumerate(scores["per_class"].items()):
        assert name == NAMES[label]
        assert [row["precision"], row["recall"], row["f1"], row["count"]] == pytest.approx(
            [column[label] for column in of_each]
        )
        if labels[:, label].any():
            wanted = sklearn_metrics.average_precision_score(labels[:, label], case.probabilities[:, label])
            assert row["ap"] == pytest.approx(wanted)
        else:
            assert row["ap"] is None
    present = labels.any(axis=0)
    means = [row["ap"] for row in scores["per_class"].values() if row["ap"] is not None]
    assert scores["map"] == (pytest.approx(np.mean(means)) if present.any() else 0.0)
    assert scores["micro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, said, average="micro", zero_division=0))
    assert scores["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels[:, there], said[:, there], average="macro", zero_division=0)
    )
    assert scores["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(labels, said))
    assert scores["num_images"] == len(labels)
    together = [[int((labels[:, a] & labels[:, b]).sum()) for b in range(4)] for a in range(4)]
    assert scores["cooccurrence"] == together
    json.dumps(scores, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([1, 2, 6]))
def test_average_precision_is_scikit_learns_whatever_is_equal(num_images: int, seed: int, digits: int) -> None:
    case = draw(num_images, seed=seed, digits=digits)
    for label, found in enumerate(average_precisions(case.labels, case.probabilities)):
        own = case.labels[:, label]
        if own.any():
            assert found == pytest.approx(sklearn_metrics.average_precision_score(own, case.probabilities[:, label]))
        else:
            assert np.isnan(found)


def test_the_order_of_pictures_changes_nothing() -> None:
    case, order = draw(101, digits=2), np.random.default_rng(0).permutation(101)
    mixed = MultilabelPredictions(case.labels[order], case.probabilities[order], case.losses[order])
    one, other = summarize(case, NAMES), summarize(mixed, NAMES)
    assert other.pop("loss") == pytest.approx(one.pop("loss"))
    assert json.dumps(one) == json.dumps(other)


def test_scores_as_an_object_say_the_same() -> None:
    case = draw(60)
    scores = MultilabelScores.of("val", case, NAMES)
    assert json.dumps(scores.as_json()) == json.dumps({"part": "val", **summarize(case, NAMES)})
    assert isinstance(scores, MultilabelScores)
    assert scores.exact_match == scores.accuracy == case.right.mean()
    assert list(headline(summarize(case, NAMES))) == ["map", "loss", "micro_f1", "macro_f1", "exact_match"]
    share = np.mean(case.labels.mean(axis=0))
    assert f"{share:.4f}" in scores.baseline_in_words()


def test_a_metric_of_ones_own_sees_the_sets() -> None:
    @registry.register("metric", "my/hamming")
    def hamming(predictions: Predictions) -> float:
        return float((predictions.predicted != predictions.labels).mean())

    case = draw(50)
    assert summarize(case, NAMES)["my/hamming"] == pytest.approx(
        sklearn_metrics.hamming_loss(case.labels, case.predicted)
    )


# ---- thresholds ----


def test_thresholds_help_on_pictures_that_they_were_not_chosen_on() -> None:
    fitted_on, new = draw(400, seed=5, shift=-2.0), draw(2000, seed=6, shift=-2.0)
    thresholds = fit_thresholds(fitted_on.probabilities, fitted_on.labels)
    assert (thresholds < 0.4).all()
    better = summarize(new.with_thresholds(thresholds.tolist()), NAMES)
    assert better["macro_f1"] > summarize(new, NAMES)["macro_f1"] + 0.1
    assert better["map"] == summarize(new, NAMES)["map"]


def test_a_threshold_is_the_best_there_is() -> None:
    """Against all thresholds there can be, where the class is told well enough that one is taken."""
    case = draw(300, seed=7, shift=-1.5)
    thresholds = fit_thresholds(case.probabilities, case.labels)
    for label, threshold in enumerate(thresholds):
        own, scores = case.labels[:, label], case.probabilities[:, label].astype(np.float64)
        best = max(sklearn_metrics.f1_score(own, scores >= each) for each in np.unique(scores))
        assert threshold == 0.5 or sklearn_metrics.f1_score(own, scores >= threshold) == pytest.approx(best)
    assert (thresholds != 0.5).any()


def test_where_nothing_is_known_one_half_stays() -> None:
    chance = np.random.default_rng(0)
    labels = np.zeros((40, 3), dtype=bool)
    labels[:, 1] = True
    labels[3, 2] = True  # one picture tells nothing of others
    probabilities = chance.random((40, 3)).astype(np.float32)
    assert fit_thresholds(probabilities, labels).tolist() == [0.5, 0.5, 0.5]
    assert fit_thresholds(probabilities[:1], labels[:1]).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_few_pictures_move_few_thresholds(seed: int) -> None:
    """Where 0.5 is right, chance alone moves a threshold on few pictures seldom, and what it moves costs little."""
    few, new = draw(12, seed=seed), draw(3000, seed=100 + seed)
    thresholds = fit_thresholds(few.probabilities, few.labels)
    assert (thresholds == 0.5).sum() >= 3
    lost = summarize(new, NAMES)["macro_f1"] - summarize(new.with_thresholds(thresholds.tolist()), NAMES)["macro_f1"]
    assert lost < 0.05


def test_good_thresholds_are_left_alone() -> None:
    case = draw(100, seed=8)
    sure = np.where(case.labels, 0.9, 0.1).astype(np.float32)
    assert fit_thresholds(sure, case.labels).tolist() == [0.5] * 4


# ---- the file ----


def saved(path: Path) -> dict[str, MultilabelPredictions]:
    parts = {"val": draw(20).with_thresholds((0.25, 0.5, 1 / 3, 0.75)), "test": draw(9, seed=1)}
    parts["test"] = parts["test"].with_thresholds((0.25, 0.5, 1 / 3, 0.75))
    files = {part: [f"{part}{number}.jpg" for number in range(len(rows.labels))] for part, rows in parts.items()}
    save_predictions(path, parts, files, NAMES)
    return parts


def test_predictions_are_read_back(tmp_path: Path) -> None:
    parts = saved(tmp_path / "predictions.parquet")
    found = load_predictions(tmp_path / "predictions.parquet")
    assert found.several_labels
    for part, rows in parts.items():
        again = found.parts[part]
        assert again.files[0] == f"{part}0.jpg"
        for name in ("labels", "probabilities", "losses", "predicted"):
            np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
        assert summarize(again, NAMES) == summarize(rows, NAMES)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (b"thresholds", b"[0.5]", "not a number for each class"),
        (b"thresholds", b'["a", 1, 2, 3]', "not a number for each class"),
        (b"thresholds", b"[0.9, 0.9, 0.9, 0.9]", "what it calls predicted is not what reaches its threshold"),
        (b"class_names", b'["aster", "daisy", "rose", "other"]', "is unknown"),
    ],
)
def test_a_damaged_file_ends_in_a_message(key: bytes, value: bytes, told: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "predictions.parquet"
    saved(path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: value}), path)
    with pytest.raises(UserError, match=told):
        load_predictions(path)


def test_probabilities_beyond_0_and_1_end_in_a_message(tmp_path: Path) -> None:
    case = with_labels([[1, 0, 0, 0]], [[1.5, 0.1, 0.1, 0.1]])
    save_predictions(tmp_path / "p.parquet", {"val": case}, {"val": ["a.jpg"]}, NAMES)
    with pytest.raises(UserError, match="not from 0 to 1"):
        load_predictions(tmp_path / "p.parquet")


def test_the_form_of_the_labels_says_the_kind() -> None:
    several = build_predictions(np.zeros((2, 3), dtype=bool), np.zeros((2, 3)), np.zeros(2))
    one = build_predictions(np.zeros(2, dtype=np.int64), np.zeros((2, 3)), np.zeros(2))
    assert isinstance(several, MultilabelPredictions)
    assert type(one) is Predictions
