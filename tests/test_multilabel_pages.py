"""What people see of pictures with several labels: the report, runs side by side, an inspection, trackers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from accel_flowers.core.errors import UserError
from accel_flowers.inspection.command import inspect_source
from accel_flowers.inspection.text import as_json, in_words, topics
from accel_flowers.metrics.average_precision import _weighted_precisions, map_interval
from accel_flowers.metrics.classification import Predictions, summarize
from accel_flowers.metrics.multilabel import MultilabelPredictions
from accel_flowers.metrics.predictions import load_predictions, save_predictions
from accel_flowers.report.compare import compare_runs
from accel_flowers.report.compare import in_words as comparison_in_words
from accel_flowers.report.draw import draw_report
from accel_flowers.report.read import read_run
from accel_flowers.report.set_text import doubtful_labels, thresholds
from accel_flowers.report.sets import find_doubtful_labels, find_mistakes, find_sets, most_together
from accel_flowers.tracking.figures import draw_cooccurrence
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.wandb_tables import tables_of, together
from tests.several import SHAPES, make_pictures, train_several, write_columns, write_separated
from tests.specs import change_spec, read_spec
from tests.test_multilabel_metrics import NAMES, draw


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "pictures"
    write_separated(folder, make_pictures(folder, 120))
    return folder


@pytest.fixture(scope="module")
def run_dir(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"epochs": 2, "micro_batch_size": 8}
    plain = {
        "data": {"batch_transform": None},
        "model": {"tta": "none"},
        "ema": {"decay": None},
        "soup": {"epochs": None},
    }
    return train_several(tmp_path_factory.mktemp("pages"), pictures, train=train, **plain)[0]


def with_answers(run_dir: Path, to: Path, *, skill: float, seed: int = 0) -> Path:
    """A copy of a run whose model said other things: `skill` of its answers follow the labels, the others are chance."""
    shutil.copytree(run_dir, to, symlinks=True)
    saved = load_predictions(run_dir / "predictions.parquet")
    chance, parts = np.random.default_rng(seed), {}
    for part, rows in saved.parts.items():
        knows = chance.random(rows.labels.shape) < skill
        sure = np.where(rows.labels, 0.9, 0.1) + chance.uniform(-0.09, 0.09, rows.labels.shape)
        said = np.where(knows, sure, chance.random(rows.labels.shape)).astype(np.float32)
        losses = -np.log(np.where(rows.labels, said, 1 - said)).sum(axis=1).astype(np.float32)
        parts[part] = MultilabelPredictions(rows.labels, said, losses)
    files = {part: rows.files for part, rows in saved.parts.items()}
    save_predictions(to / "predictions.parquet", parts, files, saved.class_names)
    return to


# ---- the report ----


def test_the_report_tells_what_the_run_found(run_dir: Path, tmp_path: Path) -> None:
    page = draw_report(with_answers(run_dir, tmp_path / "run", skill=0.95)).read_text()
    saved = load_predictions(tmp_path / "run/predictions.parquet")
    scores = summarize(saved.parts["test"], saved.class_names)
    assert f'<div class="score number">{100 * scores["map"]:.1f}<small>%' in page
    for name, row in scores["per_class"].items():
        assert re.search(rf"<td>{name}<small>{row['count']} pictures?; missed \d+, too many \d+", page)
        assert f'<td>{name}</td><td class="right number">{row["threshold"]:.3f}</td>' in page
    wrong = saved.parts["test"].predicted != saved.parts["test"].labels
    missed = int((wrong & saved.parts["test"].labels).sum())
    assert f"Missing: {missed}</h3>" in page
    assert f"Too many: {int(wrong.sum()) - missed}</h3>" in page
    assert "Labels a picture: " in page
    assert "predicted class" not in page, "nothing of a confusion matrix"
    assert {path.name for path in (tmp_path / "run/plots").iterdir()} == {
        "classes.png", "cooccurrence.png", "counts.png", "loss.png", "lr.png", "map.png",
    }  # fmt: skip
    # Of each class as many pictures as the CSV has, in all parts together.
    split = read_run(run_dir).split
    assert "<td>rose</td>" in page
    assert sum(len(split.files_of(part)) for part in ("train", "val", "test")) == 120


def test_a_report_of_a_model_that_knows_nothing_concludes_nothing(run_dir: Path, tmp_path: Path) -> None:
    page = draw_report(with_answers(run_dir, tmp_path / "run", skill=0.0)).read_text()
    assert "not surely better than an answer that looks at no picture" in page
    assert page.count("Not to be told yet") >= 2


def test_a_report_without_the_photos_or_the_csv(run_dir: Path, pictures: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    (moved / "labels.csv").unlink()
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    page = draw_report(tmp_path / "run", str(moved)).read_text()
    assert "data:image/jpeg" in page, "photos are there without their CSV"
    page = draw_report(tmp_path / "run", str(tmp_path / "nowhere")).read_text()
    assert "The photos are not where the run had them" in page


def test_a_report_of_a_run_that_goes_on(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    (tmp_path / "run/predictions.parquet").unlink()
    page = draw_report(tmp_path / "run").read_text()
    assert "This run has not ended" in page
    assert "mAP" in page


class Nesting(HTMLParser):
    """Whether every element is closed by its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        if tag not in ("meta", "img", "br", "link", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_of_many_classes_with_hostile_names_stays_whole(run_dir: Path, tmp_path: Path) -> None:
    names = ("<b>bold</b>", "$5 & more", "a;b", "none", *(f"class {number:02d}" for number in range(26)))
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    saved, chance = load_predictions(run_dir / "predictions.parquet"), np.random.default_rng(0)
    parts = {}
    for part, rows in saved.parts.items():
        labels = chance.random((len(rows.labels), 30)) < 0.3
        said = np.where(labels, 0.75, 0.25) + chance.uniform(-0.24, 0.24, labels.shape)
        parts[part] = MultilabelPredictions(labels, said.astype(np.float32), np.ones(len(labels), dtype=np.float32))
    files = {part: rows.files for part, rows in saved.parts.items()}
    save_predictions(tmp_path / "run/predictions.parquet", parts, files, names)
    split = tmp_path / "run/split.json"
    split.write_text(json.dumps(json.loads(split.read_text()) | {"class_names": names}))
    change_spec(tmp_path / "run/model", class_names=names, thresholds=None)
    page = draw_report(tmp_path / "run", str(tmp_path)).read_text()
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert page.count("The other 10 classes") >= 2
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


# ---- findings ----


def test_resampled_precision_is_that_of_weighted_pictures() -> None:
    case, chance = draw(60, digits=1), np.random.default_rng(0)
    weights = chance.multinomial(60, np.full(60, 1 / 60), size=20)
    for label in range(4):
        found = _weighted_precisions(case.labels[:, label], case.probabilities[:, label], weights)
        for row, value in zip(weights, found, strict=True):
            if (case.labels[:, label] * row).any():
                wanted = sklearn_metrics.average_precision_score(
                    case.labels[:, label], case.probabilities[:, label], sample_weight=row
                )
                assert value == pytest.approx(wanted)
            else:
                assert np.isnan(value)


def test_the_interval_narrows_with_pictures() -> None:
    few, many = (map_interval(case.labels, case.probabilities) for case in (draw(40), draw(1500)))
    assert few[0].low < few[0].value < few[0].high
    assert many[0].high - many[0].low < 0.4 * (few[0].high - few[0].low)
    assert many[0].value == pytest.approx(summarize(draw(1500), NAMES)["map"])
    coarse = map_interval(draw(1500).labels, draw(1500).probabilities, num_resamples=40)[0]
    assert coarse.high - coarse.low == pytest.approx(many[0].high - many[0].low, rel=0.4)
    none = np.zeros((3, 2), dtype=bool)
    assert map_interval(none, np.full((3, 2), 0.5))[1] == (None, None)


def saved_of(case: MultilabelPredictions, path: Path) -> Path:
    save_predictions(path, {"test": case}, {"test": [f"{n:03d}.jpg" for n in range(len(case.labels))]}, NAMES)
    return path


def test_labels_that_were_changed_on_purpose_are_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((200, 4)) < 0.4
    said = np.clip(np.where(truth, 0.9, 0.1) + generator.normal(0, 0.04, truth.shape), 0.01, 0.99)
    given = truth.copy()
    changed = {(3, 0), (50, 2), (99, 1), (120, 3), (150, 0)}
    for row, label in changed:  # of these the model is as sure as it ever is
        given[row, label], said[row, label] = not truth[row, label], 0.97 if truth[row, label] else 0.03
    case = MultilabelPredictions(given, said.astype(np.float32), np.ones(200, dtype=np.float32))
    found = find_doubtful_labels(load_predictions(saved_of(case, tmp_path / "p.parquet")))
    assert {(int(each.file[:3]), each.label) for each in found} == changed
    assert all(each.missing == given[int(each.file[:3]), each.label] for each in found)
    main = find_sets(load_predictions(tmp_path / "p.parquet"), "test")
    headline, told, _ = doubtful_labels(found, {"test": 200}, 800, main)
    assert headline == "5 labels look wrong"
    missing = sum(not given[row, label] for row, label in changed)
    assert told.startswith(f"{missing} may be missing, {5 - missing} may be too many")
    headline, told, _ = doubtful_labels(found, {"test": 200}, 800, replace(main, micro_f1=0.7))
    assert headline == "The model doubts 5 labels", "it is wrong too often itself to call a label wrong"
    assert "its own mistakes" in told


def test_mistakes_are_each_class_of_each_picture(tmp_path: Path) -> None:
    case = draw(80).with_thresholds((0.3, 0.5, 0.7, 0.5))
    saved = load_predictions(saved_of(case, tmp_path / "p.parquet"))
    found = find_mistakes(saved, "test")
    wrong = np.argwhere(case.predicted != case.labels)
    assert {(int(each.file[:3]), each.label) for each in found} == {(int(row), int(label)) for row, label in wrong}
    assert [each.odds for each in found] == sorted((each.odds for each in found), reverse=True)
    findings = find_sets(saved, "test")
    assert sum(each.missed + each.extra for each in findings.classes) == len(found)
    assert thresholds(findings)[0] == "Thresholds from 0.30 to 0.70"
    pairs = most_together(findings)
    assert pairs[0][2] == max(
        int((case.labels[:, a] & case.labels[:, b]).sum()) for a in range(4) for b in range(4) if a != b
    )


# ---- side by side ----


def test_runs_are_compared_by_pictures_that_are_wholly_right(run_dir: Path, tmp_path: Path) -> None:
    good, bad = (with_answers(run_dir, tmp_path / name, skill=skill) for name, skill in (("good", 1.0), ("bad", 0.3)))
    comparison = compare_runs([bad, good], out=tmp_path / "page.html")
    rows = load_predictions(good / "predictions.parquet").parts["test"]
    first, second = comparison.rows
    assert second.accuracy.value == rows.right.mean() == 1.0
    assert second.map == pytest.approx(summarize(rows, ("leaf", "rare", "rose", "sky"))["map"])
    assert second.paired is not None
    assert second.paired.only_second == len(rows.labels) - round(first.accuracy.value * len(rows.labels))
    told = comparison_in_words(comparison)
    assert "exact match" in told
    assert "mAP" in told
    assert "good is better than bad" in told
    found = comparison.as_json()["runs"][1]
    assert found["exact_match"]["value"] == 1.0
    assert "accuracy" not in found
    page = (tmp_path / "page.html").read_text()
    assert "all its labels are said and no other" in page
    assert ">exact match</th>" in page


def test_runs_of_one_label_and_of_several_are_not_compared(run_dir: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    shutil.copytree(run_dir, one, symlinks=True)
    saved = load_predictions(run_dir / "predictions.parquet")
    parts = {}
    for part, rows in saved.parts.items():
        labels = rows.probabilities.argmax(axis=1).astype(np.int64)
        parts[part] = Predictions(labels, rows.probabilities, rows.losses)
    save_predictions(
        one / "predictions.parquet", parts, {part: rows.files for part, rows in saved.parts.items()}, saved.class_names
    )
    with pytest.raises(UserError, match=r"cannot be compared with runs with several \(run: several, one: one\)"):
        compare_runs([run_dir, one])


# ---- an inspection ----


def test_an_inspection_counts_labels_and_pictures_without(tmp_path: Path) -> None:
    labels = make_pictures(tmp_path / "pictures", 40)
    shutil.copy(tmp_path / "pictures/007.png", tmp_path / "pictures/twin.png")
    labels["twin.png"] = ("sky",)
    write_columns(tmp_path / "pictures", labels)
    findings = inspect_source(tmp_path / "pictures", label_columns=["all"], num_workers=0, html=tmp_path / "page.html")
    sizes = {name: sum(name in names for names in labels.values()) for name in (*SHAPES, "rare")}
    assert findings.class_sizes == sizes
    numbers = [len(names) for names in labels.values()]
    assert findings.label_counts == {number: numbers.count(number) for number in sorted(set(numbers))}
    assert as_json(findings)["labels"]["0"] == findings.without_label == numbers.count(0)
    assert f"{numbers.count(0)} pictures without a label" in in_words(findings)
    assert f"{numbers.count(0)} pictures without a label" in (tmp_path / "page.html").read_text()
    twins = next(topic for topic in topics(findings) if topic.kind == "identical-across")
    assert twins.title == "1 group of identical files across labels"
    assert "under leaf, rose, sky and sky" in twins.items[0].note
    assert findings.harmful


def test_an_inspection_names_classes_too_small_to_be_split(tmp_path: Path) -> None:
    labels = make_pictures(tmp_path / "pictures", 20)
    labels["003.png"] = (*labels["003.png"], "odd")
    write_separated(tmp_path / "pictures", labels)
    found = inspect_source(tmp_path / "pictures", label_separator=";", num_workers=0)
    assert found.few == {"odd": 1, "rare": 2}
    assert found.cannot_be_split


# ---- trackers ----


def scored(case: Predictions, names: tuple[str, ...] = NAMES) -> Scored:
    return Scored("val", case, summarize(case, names), names, images=None)  # type: ignore[arg-type]


def test_trackers_show_which_classes_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scored(draw(50))
    name, pairs = one.pairs
    assert name == "cooccurrence"
    rows = together(pairs, NAMES)
    assert rows == sorted(rows, key=lambda row: -row[2])
    assert len(together(pairs, NAMES, most=2)) == 2
    assert all(
        count == (one.predictions.labels[:, NAMES.index(a)] & one.predictions.labels[:, NAMES.index(b)]).sum()
        for a, b, count in rows
    )
    monkeypatch.setattr(Scored, "rows_of_worst", lambda *_: [])
    tables = tables_of(one)
    assert tables.keys() == {"cooccurrence", "per_class", "worst_pictures"}
    assert tables["per_class"].columns == [
        "class", "precision", "recall", "F1", "pictures", "average precision", "threshold",
    ]  # fmt: skip
    assert (
        one.predictions.describe(0, NAMES)[0] in ("(no label)", *NAMES) or "," in one.predictions.describe(0, NAMES)[0]
    )


@pytest.mark.parametrize("count", [3, 40])
def test_the_figure_of_pairs_takes_any_number_of_classes(count: int) -> None:
    labels = np.random.default_rng(0).random((50, count)) < 0.2
    image = draw_cooccurrence((labels.T.astype(int) @ labels).astype(np.int64), [f"${n}" for n in range(count)])
    assert image.dtype == np.uint8
    assert image.std() > 1


def test_json_of_the_model_is_what_was_told(run_dir: Path) -> None:
    scores = read_spec(run_dir / "model")["scores"]["test"]
    assert {"map", "micro_f1", "macro_f1", "exact_match", "cooccurrence"} <= scores.keys()
