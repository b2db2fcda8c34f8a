"""The report's findings against scikit-learn, its sentences, what it says when something is missing; comparing runs."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from accel_flowers.cli.main import main
from accel_flowers.config.loading import load_recipe
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.order import natural_key
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.data.split import Split, load_split, save_split
from accel_flowers.metrics.calibration import ReliabilityBins, apply_temperature, fit_temperature, reliability_bins
from accel_flowers.metrics.classification import Predictions, summarize
from accel_flowers.metrics.intervals import compare_paired, holm
from accel_flowers.metrics.predictions import PartPredictions, SavedPredictions, load_predictions, save_predictions
from accel_flowers.models.saved import load_spec
from accel_flowers.report import text as words
from accel_flowers.report.compare import compare_runs
from accel_flowers.report.data import class_of_files, find_data
from accel_flowers.report.draw import draw_report
from accel_flowers.report.findings import answers, find_part, least_confident, worst_mistakes
from accel_flowers.report.labels import LabelCandidate, find_label_candidates
from accel_flowers.report.length import Length, course_of_training
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import Course, course_plot
from accel_flowers.report.read import read_run
from accel_flowers.report.settings import differing, repeat_command
from accel_flowers.tracking.last_error import note_error
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.made_runs import make_predictions, make_run
from tests.ranks import finish
from tests.runs import tiny_config, write_recipe

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two run directories and their photos; the page of the first is drawn."""
    root = tmp_path_factory.mktemp("made")
    make_run(root / "one", root / "photos", NAMES, per_part=12)
    make_run(root / "two", root / "photos", NAMES, per_part=12, seed=7, skill=2.5, draw=False, optim={"lr": 0.5})
    draw_report(root / "one")
    return root


def text_of(page: Path) -> str:
    """What a reader of the page sees, on one line."""
    body = re.sub(r"<(style|title)>.*?</\1>", "", page.read_text("utf-8").replace("<wbr>", ""), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body))).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.holds("Its scores are those of scikit-learn")
def test_scores_are_those_of_scikit_learn(made: Path) -> None:
    saved = load_predictions(made / "one/predictions.parquet")
    rows = saved.parts["test"]
    found = find_part(saved, "test", temperature=1.25)
    assert found.accuracy.value == pytest.approx(accuracy_score(rows.labels, rows.predicted))
    assert found.macro_f1 == pytest.approx(f1_score(rows.labels, rows.predicted, average="macro"))
    exact = rows.probabilities.astype(float)
    exact /= exact.sum(axis=1, keepdims=True)  # scikit-learn warns of rows that add up to 1 in float32 alone
    assert found.loss == pytest.approx(log_loss(rows.labels, exact), rel=1e-5)
    np.testing.assert_array_equal(found.matrix, confusion_matrix(rows.labels, rows.predicted))
    precision, recall, f1, support = precision_recall_fscore_support(rows.labels, rows.predicted)
    for label, each in enumerate(found.classes):
        assert (each.precision.value, each.recall.value, each.f1.value) == pytest.approx(
            (precision[label], recall[label], f1[label])
        )
        assert each.num_images == support[label]
    assert found.worst.name == NAMES[int(f1.argmin())]


@pytest.mark.holds("Its scores are those of scikit-learn")
def test_page_tells_these_numbers(made: Path) -> None:
    rows = load_predictions(made / "one/predictions.parquet").parts["test"]
    text = text_of(made / "one/report.html")
    hits = accuracy_score(rows.labels, rows.predicted)
    assert f"Test accuracy {100 * hits:.1f} %" in text
    assert f"{int((rows.labels == rows.predicted).sum())} of 36 pictures right" in text
    precision, recall, f1, _ = precision_recall_fscore_support(rows.labels, rows.predicted)
    for label, name in enumerate(NAMES):
        numbers = [rf"{100 * value:.1f} \d+ to \d+" for value in (f1[label], precision[label], recall[label])]
        assert re.search(rf"{name} 12 pictures.*? {' '.join(numbers)} ", text), name
    raw = reliability_bins(rows.probabilities, rows.labels).error
    tempered = reliability_bins(apply_temperature(rows.probabilities, 1.25), rows.labels).error
    assert f"{100 * tempered:.1f} % {100 * raw:.1f} % what chance" in text
    assert f"temperature fitted on validation; logits are divided by it {1.25:.3f} 1 " in text
    matrix = confusion_matrix(rows.labels, rows.predicted)
    for true in range(3):
        for said in range(3):
            if true != said and matrix[true, said]:
                assert f"{NAMES[true]} {NAMES[said]} {matrix[true, said]} of 12" in text
    assert "daisy 12 12 12 36" in text  # images of the class in training, validation, test and all
    assert "1 file left out odd/é<b>.png cut short" in text
    assert "1 group of identical files" in text


def test_sections_and_plots_are_there(made: Path) -> None:
    page = (made / "one/report.html").read_text("utf-8")
    names = {"loss", "accuracy", "lr", "classes", "confusion", "reliability", "counts", "sizes"}
    assert set(re.findall(r'id="plot-([\w-]+)"', page)) == names
    assert {file.stem for file in (made / "one/plots").glob("*.png")} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (made / "one/plots").iterdir())
    assert page.count('<svg viewBox="') == len(names)
    assert "<script" not in page
    assert len(page) < 5_000_000
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) > 20


def test_the_same_run_gives_the_same_page(made: Path) -> None:
    before = (made / "one/report.html").read_bytes()
    draw_report(made / "one")
    assert (made / "one/report.html").read_bytes() == before


@pytest.mark.slow
def test_a_large_run_gives_a_page_that_can_be_mailed(tmp_path: Path) -> None:
    names = tuple(f"class number {place}" for place in range(300))
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", names, per_part=12, skill=4)
    lines = [{"step": k, "epoch": k / 1000, "train/loss": 5 / k + k % 7, "lr/all": 1e-3 / k} for k in range(1, 50_000)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = draw_report(run_dir)
    assert page.stat().st_size < 5_000_000
    text = text_of(page)
    assert "The other 280 classes" in text
    assert "The 24 classes with the worst F1." in text


def test_the_class_of_an_image_is_its_label_and_not_its_folder(tmp_path: Path) -> None:
    """A dataset of the hub: all its images stand in a folder that is called as one of the classes."""
    names = ("train", "other")
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", names, per_part=4, draw=False)
    assert find_data(read_run(run_dir), Photos(None)).counts == {
        name: {"train": 4, "val": 4, "test": 4} for name in names
    }
    split = load_split(run_dir / "split.json")
    renamed = {file: f"train/{place:08d}" for place, file in enumerate(sorted(split.parts))}
    save_split(Split(names, {renamed[file]: part for file, part in split.parts.items()}), run_dir / "split.json")
    saved = load_predictions(run_dir / "predictions.parquet")
    files = {part: [renamed[file] for file in rows.files] for part, rows in saved.parts.items()}
    save_predictions(run_dir / "predictions.parquet", saved.parts, files, names)
    about = find_data(read_run(run_dir), Photos(None))
    assert about.counts is None, "no file of a run says the class of its training images"
    assert class_of_files(read_run(run_dir), Photos(None)) == {
        file: names[label]
        for part, rows in saved.parts.items()
        for file, label in zip(files[part], rows.labels, strict=True)
    }


def test_the_class_of_a_hub_image_is_not_taken_from_its_name(tmp_path: Path) -> None:
    """Also not while there are no predictions yet; and an archive, where it is there, says what its images are."""
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", ("rose", "other"), per_part=4, finished=False)
    run = read_run(run_dir)
    folders = {file: file.split("/")[0] for file in run.split.parts}
    assert class_of_files(run, Photos(None)) == folders
    of_hub = run.config.model_copy(update={"data": run.config.data.model_copy(update={"path": "hub:a/b"})})
    assert class_of_files(replace(run, config=of_hub), Photos(None)) == {}
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "photos")
    photos = Photos(str(tmp_path / "zipped.zip"))
    assert class_of_files(replace(run, config=of_hub), photos) == folders


def test_classes_stand_in_natural_order(tmp_path: Path) -> None:
    names = [f"{number}" for number in (1, 2, 9, 10, 11, 100, 102)]
    assert sorted(sorted(names), key=natural_key) == names
    odd = ["", "²", "x" * 5 + "9" * 5000, "a2b10", "a2b9", "0x", "٣"]
    assert len(sorted(odd, key=natural_key)) == len(odd)
    assert sorted(["a2b10", "a2b9", "a10"], key=natural_key) == ["a2b9", "a2b10", "a10"]
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", tuple(sorted(names)), per_part=2)
    text = text_of(draw_report(run_dir))
    table = text[text.index("Pictures of each class") :]
    places = [table.index(f" {name} 2 2 2 6") for name in names]
    assert places == sorted(places)


def test_a_constant_rate_is_a_flat_line_above_zero() -> None:
    rate = Course("learning rate", [0.0, 1.0, 2.0], [0.001, 0.001, 0.001 + 1e-18])
    plot = course_plot("lr", "learning rate", "", [rate], marked=False, alt="Learning rate.")
    labels = [float(label) for label in re.findall(r">([\d.e-]+)</text>", plot.svg)]
    assert 0.0012 in labels, "the axis ends above it"
    assert all(label == 0 or label >= 0.0002 for label in labels), "and is none of rounding errors"


def test_a_png_has_a_title_and_the_page_its_own(made: Path) -> None:
    assert "Loss over" not in (made / "one/report.html").read_text("utf-8").split("<figcaption>")[0].split("<svg")[-1]
    for name in ("loss", "confusion", "lr"):
        pixels = np.asarray(Image.open(made / f"one/plots/{name}.png").convert("L"))
        top = pixels[: round(24 * 160 / 72)]
        assert (top < 128).sum() > 100, f"{name}.png has no title"


def test_curves_say_of_which_part_they_are_and_why_they_differ(made: Path) -> None:
    text = text_of(made / "one/report.html")
    assert "Training: 36 pictures, as they are learnt from: with random changes" in text
    assert "So training may stand above validation." in text
    assert "So training may stand below validation." in text, "the accuracy has both, too"
    config = Config.model_validate({"loss": {"label_smoothing": 0.1, "class_weights": "balanced"}})
    told = words.parts_of_curves({"train": 1, "val": 1}, config, loss=True)
    assert "with smoothed labels, with weighted classes." in told


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        ("mixup", "on mixed pictures. Validation"),
        ({"mixup": {"alpha": 0.2}}, "on mixed pictures. Validation"),
        ({"mixup": {"off_epochs": 2}}, "on mixed pictures until the last 2 epochs. Validation"),
        ({"cutmix": {"off_epochs": 1.0}}, "on mixed pictures until the last epoch. Validation"),
    ],
)
def test_a_curve_says_until_when_pictures_are_mixed(transform: object, told: str) -> None:
    config = Config.model_validate({"data": {"batch_transform": transform}})
    assert told in words.parts_of_curves({"train": 1, "val": 1}, config, loss=True)


def test_mistakes_come_in_order(made: Path) -> None:
    judged = answers(load_predictions(made / "one/predictions.parquet"), "test")
    mistakes = worst_mistakes(judged, 5)
    losses = [answer.loss for answer in judged if answer.label != answer.predicted]
    assert [answer.loss for answer in mistakes] == sorted(losses, reverse=True)[:5]
    margins = [answer.probability - answer.p_runner_up for answer in least_confident(judged, 36)]
    assert margins == sorted(margins)
    assert margins[0] >= 0


def test_the_least_confident_are_told_with_their_lead_and_their_second(made: Path) -> None:
    """Of a good model even these are far ahead, and what they were ahead of need not be the label."""
    unsure = least_confident(answers(load_predictions(made / "one/predictions.parquet"), "test", temperature=1.25), 8)
    text = text_of(made / "one/report.html")
    section = text[text.index("Least confident") :].split(" Labels ")[0]
    first, last = (f"{100 * answer.margin:.1f}" for answer in (unsure[0], unsure[-1]))
    assert f"least ahead of the second, right or wrong: by {first} to {last} points." in section
    for answer in unsure:
        row = "label" if answer.label == answer.runner_up else "second"
        assert f"{row} {answer.runner_up} {100 * answer.p_runner_up:.1f} %" in section
    assert words.least_ahead([0.998, 0.9981]) == (
        "Answers whose first choice was least ahead of the second, right or wrong: by 99.8 points."
    )


def test_all_that_a_class_is_taken_for_is_counted(tmp_path: Path) -> None:
    """The two most frequent by name, the others by number."""
    names = ("aster", "broom", "clover", "daisy", "elder")
    text = text_of(draw_report(make_run(tmp_path / "run", tmp_path / "photos", names, per_part=20, skill=0.5)))
    found = find_part(load_predictions(tmp_path / "run/predictions.parquet"), "test", temperature=None)
    several = [each for each in found.classes if len(each.taken_for) > 2]
    assert several
    for each in several:
        named = ", ".join(f"{name} {count}" for name, count in each.taken_for[:2])
        assert f"; taken for {named}, others {each.missed - sum(count for _, count in each.taken_for[:2])} " in text


def test_wrong_labels_are_found(tmp_path: Path) -> None:
    """Most swapped labels of a good model are named, and little else."""
    truth = np.arange(300) % 3
    good = make_predictions(truth.tolist(), 3, skill=6)
    given = truth.copy()
    swapped = np.arange(0, 300, 30)
    given[swapped] = (given[swapped] + 1) % 3
    files = [f"{place:03d}.png" for place in range(300)]
    said = Predictions(given, good.probabilities, good.losses)
    save_predictions(tmp_path / "p.parquet", {"val": said}, {"val": files}, NAMES)
    found = find_label_candidates(load_predictions(tmp_path / "p.parquet"))
    named = {each.file for each in found}
    assert len(named & {files[place] for place in swapped}) >= 6
    assert len(named - {files[place] for place in swapped}) <= 1
    first = found[0]
    assert first.suggested == NAMES[truth[files.index(first.file)]]
    assert first.given == NAMES[given[files.index(first.file)]]
    assert found == sorted(found, key=lambda each: each.p_given)


def test_sentences_of_the_worst_class() -> None:
    labels = [0] * 10 + [1] * 10 + [2] * 10
    predicted = [0] * 10 + [1] * 4 + [2] * 5 + [0] + [2] * 10
    probabilities = np.full((30, 3), 0.03, dtype=np.float32)
    probabilities[np.arange(30), predicted] = 0.94
    rows = Predictions(np.array(labels), probabilities, np.zeros(30, dtype=np.float32))
    part = PartPredictions(rows.labels, rows.probabilities, rows.losses, tuple(map(str, range(30))))
    found = find_part(SavedPredictions(NAMES, {"test": part}), "test", temperature=None)
    headline, why = words.worst_class(found)
    assert headline.replace("\N{NO-BREAK SPACE}", " ") == "rose is worst, F1 57.1 %"  # 2 * 4 / (10 + 4)
    assert why.startswith("6 of its 10 are missed, most often taken for tulip (5).")
    headline, sure = words.calibration(found)
    assert headline == "No: it is too sure of itself"
    assert sure.replace("\N{NO-BREAK SPACE}", " ").startswith(
        "On average it was 94.0 % sure and 80.0 % right, further apart than chance explains (8.5 points). "
        "Calibration error (ECE) 14.0 %;"
    )


def spoken(labels: list[int], probabilities: np.ndarray, part: str = "test") -> SavedPredictions:
    """Predictions of one part, of classes NAMES."""
    truth, said = np.array(labels), np.asarray(probabilities, dtype=np.float32)
    losses = -np.log(said[np.arange(len(truth)), truth])
    return SavedPredictions(NAMES, {part: PartPredictions(truth, said, losses, tuple(map(str, range(len(truth)))))})


@pytest.mark.holds("It judges the probabilities that `predict` serves")
def test_probabilities_are_judged_as_they_are_served() -> None:
    """A network that is right, with a temperature that makes it boast: the verdict is that of the boasting."""
    generator = np.random.default_rng(0)
    truth = (np.arange(900) % 3).tolist()
    said = np.full((900, 3), 0.15)
    said[np.arange(900), np.where(generator.random(900) < 0.7, truth, (np.array(truth) + 1) % 3)] = 0.7
    saved = spoken(truth, said)
    assert words.calibration(find_part(saved, "test", temperature=None))[0].startswith("Yes")
    found = find_part(saved, "test", temperature=0.282)
    headline, told = words.calibration(found)
    assert headline == "No: it is too sure of itself"
    assert "That is with the temperature 0.28 that predict applies" in told
    assert found.calibration.confidence > 0.95
    served = apply_temperature(saved.parts["test"].probabilities, 0.282)
    for place, answer in enumerate(answers(saved, "test", temperature=0.282)):
        assert answer.probability == pytest.approx(served[place].max())
        assert answer.loss == pytest.approx(-np.log(served[place, truth[place]]))
    assert find_part(saved, "test", temperature=0.282).loss == find_part(saved, "test", temperature=None).loss


@pytest.mark.holds("It judges the probabilities that `predict` serves")
def test_few_pictures_do_not_say_that_probabilities_are_true() -> None:
    """85 % sure and 73 % right on 30 pictures: neither yes nor no can be told."""
    truth = [place % 3 for place in range(30)]
    said = np.full((30, 3), 0.075)
    said[np.arange(30), [(label + (place % 15 < 4)) % 3 for place, label in enumerate(truth)]] = 0.85
    found = find_part(spoken(truth, said), "test", temperature=None)
    assert found.accuracy.value == pytest.approx(22 / 30)
    assert words.calibration(found)[0] == "Too few pictures to tell"


@pytest.mark.parametrize(
    ("error", "told"),
    [(0.201, ", which alone chance may give (up to 23.7 %)."), (0.3, "; chance gives (up to 23.7 %).")],
)
def test_a_gap_beyond_chance_does_not_contradict_an_error_within_it(error: float, told: str) -> None:
    """On few pictures the mean may be surely off where the bins, each of them, are not."""
    truth = [place % 3 for place in range(30)]
    said = np.full((30, 3), 0.1)
    said[np.arange(30), truth] = 0.8
    found = find_part(spoken(truth, said), "test", temperature=None)
    served = ReliabilityBins(np.array([0.0, 1.0]), np.array([30]), np.array([0.4]), np.array([0.4 + error]))
    judged = replace(
        found.calibration, served=served, by_chance=0.237, confidence=0.364, accuracy=0.533, gap_by_chance=0.166
    )
    headline, sentence = words.calibration(replace(found, calibration=judged))
    assert headline == "No: it is right more often than it says"
    assert sentence.replace("\N{NO-BREAK SPACE}", " ").endswith(f"Calibration error (ECE) {100 * error:.1f} %{told}")


@pytest.mark.holds("It concludes nothing from a model that is not surely better than a constant answer")
@pytest.mark.parametrize(
    ("right", "told"),
    [(12, "That is no better than always saying"), (14, "cannot be told from always saying"), (30, "")],
    ids=["chance", "few", "learnt"],
)
def test_nothing_is_concluded_from_chance(right: int, told: str, tmp_path: Path) -> None:
    truth = [0] * 12 + [1] * 12 + [2] * 12
    said = np.full((36, 3), 0.01)
    predicted = [0] * 36 if right == 12 else [label if place < right else 0 for place, label in enumerate(truth)]
    if right == 14:
        predicted = [0] * 12 + [1] * 2 + [0] * 22
    said[np.arange(36), predicted] = 0.98
    found = find_part(spoken(truth, said), "test", temperature=None)
    baseline, warning = words.baseline(found)
    assert baseline.replace("\N{NO-BREAK SPACE}", " ") == (
        "Always saying one and the same class would get 33.3 %, guessing 33.3 %."
    )
    headlines = [
        words.worst_class(found)[0],
        words.label_candidates([], {"test": 36}, 100, found)[0],
        words.calibration(found)[0],
    ]
    if told:
        assert told in warning
        assert headlines == ["Not to be told yet"] * 3
    else:
        assert warning == ""
        assert "Not to be told yet" not in headlines
    if right == 12:
        assert "It calls 36 of 36 pictures daisy." in warning


def test_what_a_weak_model_doubts_is_not_called_wrong() -> None:
    """Of a model that is wrong on every second picture most doubts are mistakes of its own."""
    truth, said = [0, 1, 2] * 20, np.full((60, 3), 0.01)
    candidate = LabelCandidate("test", "a.jpg", "rose", "daisy", 0.01, 0.98)
    for right, headline in ((36, "The model doubts 2 labels"), (60, "2 photos look mislabelled")):
        said[:] = 0.01
        said[np.arange(60), [label if place < right else (label + 1) % 3 for place, label in enumerate(truth)]] = 0.98
        found = find_part(spoken(truth, said), "test", temperature=None)
        told = words.label_candidates([candidate] * 2, {"test": 60}, 100, found)
        assert told[0] == headline
        assert ("wrong itself on 40\N{NO-BREAK SPACE}% of test pictures" in told[1]) == (right == 36)
        assert "among the 60 of test. The 100 training pictures" in told[2], "no part is named that is not there"


def test_a_page_of_what_trained_the_network_says_so() -> None:
    truth, said = [0, 1, 2] * 10, np.eye(3)[[0, 1, 2] * 10] * 0.97 + 0.01
    found = find_part(spoken(truth, said, "val"), "val", temperature=None, learnt=True)
    method = words.label_candidates([], {"val": 30}, 30, found)[2]
    assert "validation and test" not in method
    assert "held out" not in method
    assert "pictures that trained it" in words.no_temperature(found)


@pytest.mark.holds("It concludes nothing from a model that is not surely better than a constant answer")
def test_a_page_of_a_model_at_chance_has_no_candidates(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES, per_part=12, skill=0)
    assert find_label_candidates(load_predictions(run_dir / "predictions.parquet")), "there would be some"
    text = text_of(draw_report(run_dir))
    assert "Always saying one and the same class would get 33.3 %, guessing 33.3 %." in text
    assert text.count("Not to be told yet") == 5, "three answers, and two of them again in their sections"
    for lie in ("mislabelled.", "Yes, as far as", "no accident", "is worst, F1", "label in doubt"):
        assert lie not in text, lie


def test_equal_classes_are_named_together() -> None:
    truth = [0] * 10 + [1] * 10 + [2] * 10
    said = np.full((30, 3), 0.03)
    said[np.arange(30), [0] * 8 + [1] * 2 + [1] * 8 + [0] * 2 + [2] * 10] = 0.94
    headline, why = words.worst_class(find_part(spoken(truth, said), "test", temperature=None))
    assert headline.replace("\N{NO-BREAK SPACE}", " ") == "daisy and rose are worst, F1 80.0 %"
    assert why == "They are equal: 4 of their 20 pictures are missed."
    said[[0, 1]] = 0.03
    said[[0, 1], 2] = 0.94
    said[2] = [0.94, 0.03, 0.03]
    _, why = words.worst_class(find_part(spoken(truth, said), "test", temperature=None))
    assert why.startswith("4 of its 10 are missed, most often taken for rose and tulip, each (2).")


def length(planned: int, val_losses: list[float], best: int | None, **values: Any) -> Length:
    """A finished training that was evaluated after each epoch."""
    place = None if best is None else best - 1
    usual = {"planned": planned, "ran": len(val_losses), "finished": True, "best": best, "train_loss": 0.5}
    usual |= {"guess": math.log(5), "num_val": 30}
    return Length(**{**usual, "val_losses": val_losses, "best_place": place, **values})


@pytest.mark.holds("It gives no advice that the run does not bear out")
@pytest.mark.parametrize(
    ("course", "told"),
    [
        (length(10, [0.9, 0.5, *[0.6] * 8], 2), "best after epoch 2 of 10. It did not improve after that: a shorter"),
        (length(10, [0.9, 0.5, *[0.4] * 8], 2), "best after epoch 2 of 10. Its loss fell further after that: a longer"),
        (
            length(10, [0.9, 0.5], 2),
            "of 2, where early stopping ended it (10 were planned). That is the last one: a longer",
        ),
        (length(30, [0.9, 0.5, 0.6, 0.6, 0.6], 2), "of 5, where early stopping ended it (30 were planned)."),
        (length(30, [0.5, 0.6], 1, finished=False), "2 of 30 epochs so far."),
        (length(30, [], None, finished=False), ""),
        (length(1, [0.5], 1), "Validation was best after epoch 1 of 1."),
        (length(4, [0.9, 0.8, 0.8, 1.5], 3), "on validation: it overfits"),
        (length(4, [0.9, 0.8, 0.8, 1.5], 3, num_val=5), "on validation (5 pictures only): it overfits"),
        (length(9, [1.3, 6.1, 17.6], 1, train_loss=1.0), "That is not overfitting, as it has not learnt the training"),
        (length(4, [1.7] * 4, 1, train_loss=1.6, beats_baseline=False), "best after epoch 1 of 4."),
        (length(4, [1.7] * 4, 4, train_loss=1.6, beats_baseline=False), "best after epoch 4 of 4."),
        (
            length(4, [0.9, 0.8, 0.7, 0.6], 4, share_of_start=0.2),
            "The weights that were kept hold 20.0\N{NO-BREAK SPACE}% of those from before fine-tuning. That is the last one: a longer",
        ),
        (length(4, [0.9, 0.5, 0.1, 0.0], 4, learnt=True), "On the pictures that trained it the network was best"),
    ],
    ids=[
        "done", "falling", "stopped at its best", "stopped", "going on", "begun", "one", "overfits", "overfits a few", "jumps",
        "chance", "chance at the end", "mixed with the start", "learnt",
    ],
)  # fmt: skip
def test_advice_on_the_length(course: Length, told: str) -> None:
    said = course_of_training(course)
    assert told in said
    if "shorter" not in told:
        assert "shorter" not in said
    if "longer" not in told:
        assert "longer" not in said
    assert ("it overfits" in said) == ("it overfits" in told)


@pytest.mark.holds("It gives no advice that the run does not bear out")
def test_a_run_that_goes_on_gets_no_advice(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES, per_part=3, finished=False, train={"epochs": 9})
    text = text_of(draw_report(run_dir))
    assert "2 of 9 epochs so far." in text
    note_error(run_dir, 0, "process 1 has\nnot been heard of for 20 s")
    assert "last_error.txt says: " in (text_with := text_of(draw_report(run_dir)))
    assert "process 0: process 1 has not been heard of for 20 s." in text_with
    assert "a shorter training" not in text
    assert "a longer training" not in text
    ended = make_run(tmp_path / "ended", tmp_path / "photos", NAMES, per_part=3, train={"epochs": 9})
    assert "best after epoch 2 of 2, where early stopping ended it (9 were planned)" in text_of(draw_report(ended))


@pytest.mark.parametrize(
    ("counts", "headline"),
    [((2, 8), "could be luck (p = 0.11)"), ((2, 20), "hardly luck (p < 0.001)"), ((4, 4), "right equally often here")],
)
def test_verdicts(counts: tuple[int, int], headline: str) -> None:
    first = np.array([True] * counts[0] + [False] * counts[1] + [True] * 50)
    second = np.array([False] * counts[0] + [True] * counts[1] + [True] * 50)
    found = compare_paired(first, second)
    said = words.verdict("a", "b", found, found.p_value)[0]
    assert headline in said
    assert ("better" in said) == ("hardly" in headline), "what could be luck is not called better"


def test_a_run_that_has_not_ended_is_told(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES, per_part=3, finished=False)
    text = text_of(draw_report(run_dir))
    assert "This run has not ended" in text
    assert f"accel-flowers train {run_dir}/config.yaml --run-dir {run_dir} --resume auto" in text
    assert "Loss over the epochs" in text
    assert "accuracy on" not in text
    with pytest.raises(UserError, match="has not ended"):
        compare_runs([run_dir, make_run(tmp_path / "other", tmp_path / "photos", NAMES, per_part=3)])


def test_without_a_test_part_the_score_is_told_to_be_biased(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES, parts=("train", "val"))
    text = text_of(draw_report(run_dir))
    assert "Validation accuracy" in text
    assert "the best of 2 evaluations on the same pictures, so it is optimistically biased" in text


def test_photos_that_are_gone_are_told_and_found_elsewhere(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES)
    next((tmp_path / "photos/rose").iterdir()).with_name("001.png").unlink()
    text = text_of(draw_report(run_dir))
    assert "1 picture that did not train it is no longer in" in text
    (tmp_path / "photos").rename(tmp_path / "moved")
    page = draw_report(run_dir)
    assert "The photos are not where the run had them" in text_of(page)
    assert "photo not found" in text_of(page)
    assert "data:image/jpeg" not in page.read_text("utf-8")
    page = draw_report(run_dir, str(tmp_path / "moved"))
    assert "not where the run had them" not in text_of(page)
    assert "data:image/jpeg" in page.read_text("utf-8")


def test_photos_are_read_from_a_zip(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES, per_part=2)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "photos")
    photos = Photos(str(tmp_path / "zipped.zip"))
    assert photos.problem == ""
    files = sorted(read_run(run_dir).split.parts)
    assert photos.sizes(files) == Photos(str(tmp_path / "photos")).sizes(files)
    assert photos.open("no/such.png") is None
    assert "cannot be loaded" in Photos("hub:nobody/nothing").problem


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "photos").mkdir()
    photos = Photos(str(tmp_path / "photos"))
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        assert not photos.has(name)
        with pytest.raises(OSError, match="secret"):
            photos.read(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no run directory"),
        (lambda run: (run / "split.json").write_text("{"), "split.json is not valid JSON"),
        (lambda run: (run / "metrics.jsonl").write_text("x\n"), "metrics.jsonl, line 1"),
        (lambda run: (run / "predictions.parquet").write_bytes(b"PAR1"), "predictions.parquet is damaged"),
        (lambda run: (run / "model/config.json").write_text("{}"), "config.json is damaged"),
        (lambda run: (run / "model/model.safetensors").write_bytes(b""), "model.safetensors cannot be read"),
    ],
)
def test_damage_is_told_with_the_file(tmp_path: Path, damage: object, message: str) -> None:
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", NAMES)
    damage(run_dir)
    with pytest.raises(UserError, match=message):
        draw_report(run_dir)


def test_predictions_of_another_split_are_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", tmp_path / "photos", NAMES)
    other = make_run(tmp_path / "other", tmp_path / "photos", NAMES, per_part=9, draw=False)
    shutil.copy(other / "predictions.parquet", one)
    with pytest.raises(UserError, match="differ in the pictures of"):
        read_run(one)


def test_the_command_repeats_the_run(made: Path) -> None:
    run = read_run(made / "one")
    plain = f"accel-flowers train {made}/one/config.yaml --run-dir {made}/one-again"
    assert repeat_command(run) == f"{plain} --train.precision no", "a trial may find bf16 faster now"
    named = run.config.train.model_copy(update={"precision": "no"})
    assert repeat_command(replace(run, config=run.config.model_copy(update={"train": named}))) == plain
    assert load_recipe(str(made / "one/config.yaml")) == run.config
    run.environment.update(num_processes=2)
    assert '$(accel-flowers launch-config cpu_2_processes)" --num_processes 2' in repeat_command(run)
    run.environment.update(num_processes=1, precision="bf16")
    assert repeat_command(run).startswith("accelerate launch --cpu --num_processes 1 --mixed_precision bf16 -m ")
    assert repeat_command(run).endswith(" --train.precision launcher"), "whatever a trial would find now"


def test_settings_are_told_as_they_are_typed() -> None:
    steps = "[RandomResizedCrop: {size: 64, scale: [0.6, 1.0]}, RandomHorizontalFlip]"
    config = load_recipe("quickstart", {"data.path": "photos"})
    assert differing(config, Config())["data.train_transforms"][0] == steps
    assert parse_yaml(steps, "what the page tells") == list(config.data.train_transforms or ())


def test_runs_are_compared_on_the_same_images(made: Path, tmp_path: Path) -> None:
    found = compare_runs([made / "one", made / "two"], out=tmp_path / "compare.html")
    first, second = (load_predictions(made / name / "predictions.parquet").parts["test"] for name in ("one", "two"))
    expected = compare_paired(first.labels == first.predicted, second.labels == second.predicted)
    assert found.rows[1].paired == expected
    assert found.rows[1].p_value == expected.p_value
    for row, part in zip(found.rows, (first, second), strict=True):
        assert row.accuracy.value == pytest.approx(accuracy_score(part.labels, part.predicted))
        assert row.macro_f1 == pytest.approx(f1_score(part.labels, part.predicted, average="macro"))
        assert row.loss == pytest.approx(float(part.losses.mean()))
    text = text_of(tmp_path / "compare.html")
    assert "2 runs on the same 36 pictures of test." in text
    assert "optim.lr 0.01 0.5" in text
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert set(re.findall(r'id="plot-([\w-]+)"', page)) == {"accuracy", "loss-val", "loss-train", "lr"}


def test_several_comparisons_are_not_taken_one_by_one(made: Path, tmp_path: Path) -> None:
    three = make_run(tmp_path / "one", tmp_path / "photos", NAMES, per_part=12, seed=11, draw=False)
    found = compare_runs([made / "one", made / "two", three], out=tmp_path / "compare.html")
    assert [row.name.count("/") for row in found.rows] == [1, 1, 1]  # two are called "one"
    raw = [row.paired.p_value for row in found.rows if row.paired]
    assert [row.p_value for row in found.rows if row.paired] == holm(raw)
    assert "raised by Holm's method" in text_of(tmp_path / "compare.html")


def test_runs_with_other_images_share_what_they_share(made: Path, tmp_path: Path) -> None:
    more = make_run(tmp_path / "more", tmp_path / "photos", NAMES, per_part=14, draw=False)
    found = compare_runs([made / "one", more])
    assert (len(found.files), found.not_shared) == (36, 6)
    assert found.rows[1].own[1] == 42
    other = make_run(tmp_path / "other", tmp_path / "photos", ("oak", "elm"), draw=False)
    with pytest.raises(UserError, match="no test picture in common"):
        compare_runs([made / "one", other])


def test_without_a_test_part_validation_is_compared(made: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", tmp_path / "photos", NAMES, parts=("train", "val"), draw=False)
    assert compare_runs([made / "one", other]).part == "val"


def test_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    assert run("report", made / "one")[:2] == (0, f"{made / 'one/report.html'}\n")
    code, out, _ = run("compare", made / "one", made / "two", "--out", tmp_path / "c.html")
    assert code == 0
    assert "against the first" in out
    assert "p = " in out or "p < " in out
    code, out, _ = run("compare", made / "one", made / "two", "--out", tmp_path / "c.html", "--json")
    assert json.loads(out)["runs"][1]["paired"]["num_images"] == 36
    for words_, message in (
        (("report", tmp_path), "is no run directory: it has no config.yaml"),
        (("report", tmp_path / "nowhere"), "There is no directory"),
        (("report", made / "one/model"), f"Did you mean {made / 'one'}?"),
        (("compare", made / "one"), "two runs or more"),
        (("compare",), "two runs or more"),
        (("compare", made / "one", made / "one"), "named twice"),
    ):
        code, out, err = run(*words_)
        assert (code, out) == (2, "")
        assert message in err


def test_a_run_draws_its_report_when_all_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_folder(tmp_path / "photos", per_class=6)
    (photos / "rose").rename(photos / "<script>alert(1)<script>")
    (photos / "tulip/05.png").rename(photos / 'tulip/it\'s "quoted".png')
    run_dir = tmp_path / "run"
    results = train(tiny_config(photos, run_dir, tracking={"report": True})).scores
    text = text_of(run_dir / "report.html")
    assert f"Test accuracy {100 * results['test'].accuracy:.1f} %" in text
    assert "<script>alert(1)<script>" in text
    assert f"report: {run_dir}/report.html" in capsys.readouterr().err
    said = load_predictions(run_dir / "predictions.parquet")
    for part, rows in said.parts.items():
        assert summarize(rows, said.class_names) == {
            name: value for name, value in results[part].as_json().items() if name != "part"
        }


def test_a_model_keeps_the_temperature_that_its_run_found(tmp_path: Path) -> None:
    photos, run_dir = make_folder(tmp_path / "photos", per_class=12), tmp_path / "run"
    sections = {
        "data": {"split": "50/50"},
        "train": {"epochs": 4},
        "optim": {"name": "adam", "lr": 1e-3},
        "model": {"dropout": 0.0},
    }
    train(tiny_config(photos, run_dir, **sections))
    rows = load_predictions(run_dir / "predictions.parquet").parts["val"]
    temperature = load_spec(run_dir / "model").temperature
    assert temperature is not None
    assert temperature == fit_temperature(rows.probabilities, rows.labels)


@pytest.mark.holds("A report that fails does not fail the run, and no process waits for it")
def test_a_report_that_fails_does_not_fail_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(folder, run_dir, tracking={"report": True}, train={"epochs": 1})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/plots").write_text("in the way")
    assert "val" in train(config).scores
    assert f"try again with accel-flowers report {run_dir}" in capsys.readouterr().err
    assert (run_dir / "model/config.json").exists()


@pytest.mark.holds("A report that fails does not fail the run, and no process waits for it")
@pytest.mark.slow
@pytest.mark.multiprocess
def test_nobody_waits_for_the_report(folder: Path, tmp_path: Path) -> None:
    """Two processes: the second ends while the first draws, and both end well."""
    recipe = write_recipe(tmp_path / "recipe.yaml", tracking={"report": True}, train={"epochs": 1})
    said = finish(tmp_path, ["train", recipe, "--data.path", folder, "--run-dir", tmp_path / "run"], processes=2)
    assert said.count("report: ") == 1
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("name", ["predictions.parquet", "config.yaml", "split.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_directory_is_told_and_not_waited_for(name: str, tmp_path: Path) -> None:
    """Whoever reports on a run directory of somebody else's must not hang."""
    run_dir = make_run(tmp_path / "run", tmp_path / "photos", ("a", "b"), per_part=2)
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*not a regular file"):
        read_run(run_dir)


def test_a_pipe_among_the_photos_is_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/1.jpg")
    photos = Photos(str(tmp_path))
    assert photos.open("a/1.jpg") is None
    assert photos.open_all(["a/1.jpg", "a/2.jpg"]) == {"a/1.jpg": None, "a/2.jpg": None}
    assert photos.sizes(["a/1.jpg"]) == {}
