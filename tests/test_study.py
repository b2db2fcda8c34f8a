"""`train --seeds` and `--folds`: each image held out once, the runs are runs, and what was interrupted ends alike."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from accel_flowers.cli.commands import dispatch
from accel_flowers.core.errors import UserError
from accel_flowers.data.split import load_split
from accel_flowers.inference.image_classifier import load_model as load_classifier
from accel_flowers.metrics.predictions import OUT_OF_FOLD, load_predictions
from accel_flowers.models.saved import load_model
from accel_flowers.study.compare import compare_studies
from accel_flowers.study.members import STUDY_FILE, Member, Study, load_study, save_study
from accel_flowers.study.run import check_asked, train_study
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import tiny_config, write_recipe

FOLDS = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=9)


@pytest.fixture(scope="module")
def folds(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three folds, with its ensemble."""
    run_dir = tmp_path_factory.mktemp("runs") / "folds"
    recipe = {"train": {"epochs": 1}, "model": {"name": "shufflenet_v2_x0_5"}, "tracking": {"report": True}}
    train_study(tiny_config(photos, run_dir, **recipe), folds=FOLDS, keep="ensemble")
    return run_dir


@pytest.mark.holds("Folds hold every picture out once")
def test_every_picture_is_held_out_once(folds: Path, photos: Path) -> None:
    splits = [load_split(folds / "splits" / f"fold-{fold + 1}.json") for fold in range(FOLDS)]
    everything = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(name for split in splits for name in split.files_of("test")) == everything
    assert sorted(name for split in splits for name in split.files_of("val")) == everything
    for split in splits:
        assert sorted(split.parts) == everything
        for part in ("train", "val", "test"):
            assert Counter(name.split("/")[0] for name in split.files_of(part)).keys() == set(split.class_names)
    for fold in range(FOLDS):
        assert load_split(folds / f"fold-{fold + 1}" / "split.json").parts == splits[fold].parts


@pytest.mark.holds("Folds hold every picture out once")
def test_what_was_said_out_of_fold_is_what_the_runs_said(folds: Path) -> None:
    together = load_predictions(folds / "predictions.parquet").parts[OUT_OF_FOLD]
    right = 0
    for fold in range(FOLDS):
        model = load_model(folds / f"fold-{fold + 1}" / "model")
        rows = load_predictions(folds / f"fold-{fold + 1}" / "predictions.parquet").parts["test"]
        right += int((rows.predicted == rows.labels).sum())
        places = [together.files.index(name) for name in rows.files]
        assert together.labels[places].tolist() == rows.labels.tolist()
        assert together.predicted[places].tolist() == rows.predicted.tolist()
        temperature = model.spec.temperature or 1.0
        cooled = rows.probabilities.astype(float) ** (1 / temperature)
        np.testing.assert_allclose(
            together.probabilities[places], cooled / cooled.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
        )
    study = load_study(folds)
    accuracies = [member.result["scores"]["test"]["accuracy"] for member in study.members if member.result]
    assert sum(accuracies) / FOLDS == pytest.approx(right / len(together.files), abs=0.05)
    page = (folds / "report.html").read_text()
    assert f"{100 * right / len(together.files):.1f}" in page
    assert "fold-3" in page


def test_the_ensemble_is_the_mean_of_the_scores(folds: Path, photos: Path) -> None:
    images = torch.rand(4, 3, 32, 32)
    models = [load_model(folds / f"fold-{fold + 1}" / "model") for fold in range(FOLDS)]
    together = load_model(folds / "model")
    with torch.inference_mode():
        mean = torch.stack(
            [model.network((images - _as_image(model.spec.mean)) / _as_image(model.spec.std)) for model in models]
        ).mean(dim=0)
        torch.testing.assert_close(together.network(images), mean, rtol=1e-4, atol=1e-5)
    files = sorted(photos.rglob("*.png"))[:3]
    assert len(load_classifier(folds).predict(files)) == len(files)
    assert together.spec.scores[OUT_OF_FOLD]["num_images"] == len(list(photos.rglob("*.png")))


def _as_image(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def results(run_dir: Path) -> dict[str, Any]:
    members = json.loads((run_dir / STUDY_FILE).read_text())["members"]
    return {name: member["result"] for name, member in members.items()}


@pytest.mark.slow
@pytest.mark.holds("A study that was killed ends like an undisturbed one")
def test_one_that_is_killed_in_its_second_run_ends_alike(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 2, "micro_batch_size": None})
    words = ["train", recipe, "--data.path", photos, "--seeds", "4,7", "--tracking.no-report", "--run-dir"]
    said = finish(tmp_path, [*words, tmp_path / "whole"])
    with Ranks(tmp_path, [*words, tmp_path / "killed"]) as ranks:
        checkpoints = tmp_path / "killed" / "seed-7" / "checkpoints"
        while not list(checkpoints.glob("step-*")):
            assert ranks.code(0) is None, ranks.output()
            time.sleep(0.01)
        ranks.signal(0, signal.SIGKILL)
    assert results(tmp_path / "killed")["seed-7"] is None
    assert results(tmp_path / "killed")["seed-4"] is not None
    before = (tmp_path / "killed" / "seed-4" / "metrics.jsonl").read_bytes()
    again = finish(tmp_path, [*words, tmp_path / "killed", "--resume", "auto"])
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert (tmp_path / "killed" / "seed-4" / "metrics.jsonl").read_bytes() == before, "what had ended is not done again"
    table = said[said.index("run  ") :]
    assert table == again[again.index("run  ") :]
    assert "standard deviation" in table


@pytest.mark.multiprocess
@pytest.mark.holds("A study that was killed ends like an undisturbed one")
def test_two_processes_make_the_same_study(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})
    words = ["train", recipe, "--data.path", photos, "--folds", "3", "--tracking.no-report", "--run-dir"]
    finish(tmp_path, [*words, tmp_path / "one"])
    with Ranks(tmp_path, *[[*words, tmp_path / "two"]] * 2) as ranks:
        assert ranks.codes(120) == [0, 0], ranks.output()
        assert "standard deviation" in ranks.said(0)
        assert "standard deviation" not in ranks.said(1), "the main process speaks"
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    for name, result in one.items():
        for part, scores in result["scores"].items():
            assert two[name]["scores"][part]["loss"] == pytest.approx(scores["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seeds": (1,)}, "two or more different"),
        ({"seeds": (1, 1)}, "two or more different"),
        ({"folds": 2}, "3 or more"),
        ({"seeds": (1, 2), "folds": 3}, "one of them"),
        ({"seeds": (1, 2), "keep": "soup"}, "--keep ensemble"),
    ],
)
def test_what_is_no_study_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_asked(asked.get("seeds", ()), asked.get("folds", 0), asked.get("keep", "none"))


@pytest.mark.parametrize(
    "flags", [["--seeds"], ["--seeds", "two"], ["--keep", "ensemble"], ["--keep", "best", "--folds", "3"]]
)
def test_mistyped_flags_end_in_a_message(flags: list[str], photos: Path) -> None:
    with pytest.raises(UserError, match="--"):
        dispatch(["train", "quickstart", "--data.path", str(photos), *flags])


def test_nothing_is_overwritten_and_another_recipe_does_not_go_on(folds: Path, photos: Path) -> None:
    recipe = {"train": {"epochs": 1}, "model": {"name": "shufflenet_v2_x0_5"}}
    with pytest.raises(UserError, match="--resume auto"):
        train_study(tiny_config(photos, folds, **recipe), folds=FOLDS)
    other = tiny_config(photos, folds, **{**recipe, "optim": {"lr": 0.5}}).model_copy(update={"resume": "auto"})
    with pytest.raises(UserError, match=r"optim\.lr: 0\.01 then, 0\.5 now"):
        train_study(other, folds=FOLDS)
    with pytest.raises(UserError, match="has the runs fold-1, fold-2, fold-3"):
        train_study(tiny_config(photos, folds, **recipe).model_copy(update={"resume": "auto"}), folds=4)


def test_a_class_that_is_too_small_for_the_folds_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too small for 12 folds.*Take --folds 9"):
        train_study(tiny_config(photos, tmp_path / "run"), folds=12)


def made_up(run_dir: Path, accuracies: list[float]) -> Path:
    members = tuple(
        Member(f"seed-{seed}", {"train.seed": seed}, {
            "best_epoch": 1, "scores": {part: {"accuracy": value} for part in ("val", "test")}
        })
        for seed, value in enumerate(accuracies)
    )  # fmt: skip
    save_study(run_dir, Study("seeds", {}, members))
    return run_dir


def test_studies_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first = made_up(tmp_path / "a", [0.50, 0.60, 0.70, 0.80])
    better = made_up(tmp_path / "b", [0.53, 0.62, 0.73, 0.82])
    other = made_up(tmp_path / "c", [0.80, 0.50, 0.60, 0.75])
    found = compare_studies([first, better, other])
    assert found.rows[1].difference is not None
    assert found.rows[1].difference.value == pytest.approx(0.025)
    raised = [row.p_value for row in found.rows[1:]]
    plain = [
        ttest_rel([0.53, 0.62, 0.73, 0.82], [0.5, 0.6, 0.7, 0.8]).pvalue,
        ttest_rel([0.8, 0.5, 0.6, 0.75], [0.5, 0.6, 0.7, 0.8]).pvalue,
    ]
    assert raised == pytest.approx([2 * plain[0], plain[1]])
    said = found.in_words()
    assert "b is better than a, and that is hardly luck" in said
    assert "difference between c and a could be luck" in said


def test_only_pairs_are_compared(folds: Path, tmp_path: Path) -> None:
    first = made_up(tmp_path / "a", [0.5, 0.6])
    with pytest.raises(UserError, match="only runs of the same seeds"):
        compare_studies([first, made_up(tmp_path / "b", [0.5, 0.6, 0.7])])
    with pytest.raises(UserError, match="only runs of the same seeds"):
        compare_studies([first, folds])
    with pytest.raises(UserError, match="holds a single run"):
        dispatch(["compare", str(first), str(folds / "fold-1")])
    study = load_study(folds)
    undone = Study(study.kind, study.recipe, (Member("fold-1", {}), *study.members[1:]))
    save_study(tmp_path / "undone", undone)
    with pytest.raises(UserError, match="has not ended: fold-1"):
        compare_studies([folds, tmp_path / "undone"])


def test_folds_are_not_dealt_out_of_several_labels(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    rows = [f"{file.relative_to(photos)},{file.parent.name};extra" for file in files]
    (photos.parent / "several").mkdir(exist_ok=True)
    table = photos.parent / "several" / "labels.csv"
    table.write_text("\n".join(["file,label", *rows]) + "\n")
    for file in files:
        target = table.parent / file.relative_to(photos)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    config = tiny_config(table.parent, tmp_path / "run", loss={"task": "multilabel"}, data={"label_separator": ";"})
    with pytest.raises(UserError, match="train with --seeds"):
        train_study(config, folds=FOLDS)
