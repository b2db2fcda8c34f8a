"""`tune`: what it searches, that it never looks at the test part, and that a killed search goes on as it would have."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel_flowers.config.loading import load_recipe
from accel_flowers.core.errors import UserError
from accel_flowers.study.space import Range, default_space, holds, parse_space
from accel_flowers.study.tune import BEST_FILE, Trial, Tuned, expected_lift, open_search, tune
from accel_flowers.tracking.run_dir import read_metrics
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import tiny_config, write_recipe

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=10)


CONFIG = tiny_config(Path("photos"), Path("run"))


def test_ranges_and_lists_are_read() -> None:
    space = parse_space(
        ["optim.lr=1e-4:1e-1", "train.epochs=2:5", "loss.label-smoothing=0,0.1", "schedule.name=cosine,step"], CONFIG
    )
    assert space == {
        "optim.lr": Range(1e-4, 1e-1, whole=False),
        "train.epochs": Range(2, 5, whole=True),
        "loss.label_smoothing": (0, 0.1),
        "schedule.name": ("cosine", "step"),
    }
    assert space["optim.lr"].log  # type: ignore[union-attr]
    assert not space["train.epochs"].log  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("optim.lr", "give a field and its values"),
        ("optim.rate=1:2", r"no field 'optim.rate'"),
        ("optim.lr=2:1", "lower one"),
        ("optim.lr=a:b", "two numbers"),
        ("optim.lr=0.1", "two or more"),
        ("optim.lr=-1:1", r"optim\.lr.*greater than 0|optim\.lr"),
        ("schedule.name=cosine,sine", r"schedule\.name"),
        ("train.seed=1,2", "all trials must have the same"),
        ("data.split=80/20,70/30", "all trials must have the same"),
        ("optim.lr=nan:1", "lower one"),
    ],
)
def test_what_cannot_be_searched_is_told(word: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_space([word], CONFIG)


def test_the_usual_space_holds_the_recipe_itself() -> None:
    space = default_space(CONFIG)
    assert holds(space, CONFIG) == {"optim.lr": 1e-2, "optim.weight_decay": 0.0, "loss.label_smoothing": 0.0}
    assert holds({"optim.lr": Range(1e-5, 1e-4, whole=False)}, CONFIG) is None


def test_the_lift_of_the_best_is_that_of_simulated_trials() -> None:
    rng = np.random.default_rng(0)
    simulated = rng.binomial(300, 0.8, size=(20_000, 20)).max(axis=1).mean() / 300 - 0.8
    assert expected_lift(0.8, 300, 20) == pytest.approx(simulated, rel=0.05)
    assert expected_lift(0.8, 300, 2) < expected_lift(0.8, 300, 50)


def test_the_words_name_the_best_and_warn(tmp_path: Path) -> None:
    trials = (Trial(0, {"optim.lr": 0.01}, 0.5, "complete"), Trial(1, {"optim.lr": 0.02}, 0.7, "complete"))
    said = Tuned(tmp_path, "accuracy", (*trials, Trial(2, {}, None, "failed")), trials[1], 100).in_words()
    assert said.index("0.7000") < said.index("0.5000")
    assert "--optim.lr 0.02" in said
    assert "best of 2 on the same 100 pictures" in said
    assert "1 failed" in said


def words_of(tmp_path: Path, photos: Path, run_dir: Path) -> list[Any]:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 2, "micro_batch_size": None})
    return ["tune", recipe, "--data.path", photos, "--run-dir", run_dir, "--trials", "4",
            "--search", "optim.lr=1e-3:1e-1", "optim.momentum=0,0.9"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.holds("A search that was killed ends like an undisturbed one")
def test_a_search_that_is_killed_goes_on_as_it_would_have(photos: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = finish(tmp_path, [*words_of(tmp_path, photos, whole), "--json"])
    words = words_of(tmp_path, photos, killed)
    with Ranks(tmp_path, words) as ranks:
        while not list((killed / "trial-2" / "checkpoints").glob("step-*")):
            assert ranks.code(0) is None, ranks.output()
            time.sleep(0.01)
        ranks.signal(0, signal.SIGKILL)
    second = finish(tmp_path, [*words, "--resume", "auto", "--json"])
    trials, again = (json.loads(said[said.index("{\n") :])["trials"] for said in (first, second))
    assert len(trials) == 4
    assert trials[0]["values"] == {"optim.lr": 0.01, "optim.momentum": 0.9}, "the recipe itself comes first"
    assert len({trial["values"]["optim.lr"] for trial in trials}) == 4
    assert again == trials
    assert (killed / BEST_FILE).read_text() == (whole / BEST_FILE).read_text()
    best = max(trials, key=lambda trial: trial["score"])
    chosen = load_recipe(whole / BEST_FILE)
    assert {"optim.lr": chosen.optim.lr, "optim.momentum": chosen.optim.momentum} == best["values"]
    assert chosen.run_dir is None
    for trial in trials:
        lines = read_metrics(whole / f"trial-{trial['number']}" / "metrics.jsonl")
        assert trial["score"] == pytest.approx(max(line["val/accuracy"] for line in lines if "val/accuracy" in line))
        assert not any(name.startswith("test/") for line in lines for name in line), "the test part stays untouched"
    assert not list(whole.glob("trial-*/predictions.parquet"))


@pytest.mark.slow
def test_a_hopeless_trial_ends_early(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "search", train={"epochs": 4, "best_metric": "loss"})
    found = tune(config, {"optim.lr": (0.02, 1e-9)}, trials=14)
    lines = {
        trial.number: sum(
            "val/loss" in line for line in read_metrics(tmp_path / f"search/trial-{trial.number}/metrics.jsonl")
        )
        for trial in found.trials
    }
    pruned = [trial for trial in found.trials if trial.how == "pruned"]
    assert pruned
    assert all(trial.values["optim.lr"] == 1e-9 and lines[trial.number] < 4 for trial in pruned)
    assert found.best is not None
    assert found.best.values == {"optim.lr": 0.02}


def test_a_trial_whose_loss_blows_up_has_failed_and_the_search_goes_on(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "search", train={"epochs": 1})
    found = tune(config, {"optim.lr": (1e-2, 1e12)}, trials=4)
    assert {trial.values["optim.lr"] for trial in found.trials if trial.how == "failed"} == {1e12}
    assert found.best is not None
    assert found.best.values == {"optim.lr": 1e-2}


@pytest.mark.slow
def test_two_processes_search_together(photos: Path, tmp_path: Path) -> None:
    said = finish(tmp_path, [*words_of(tmp_path, photos, tmp_path / "search"), "--workers", "2", "--json"], timeout=300)
    trials = json.loads(said[said.index('{\n "metric"') :].split("\n}")[0] + "\n}")["trials"]
    assert sorted(trial["number"] for trial in trials) == [0, 1, 2, 3]
    assert {trial["how"] for trial in trials} == {"complete"}
    assert trials[0]["values"] == {"optim.lr": 0.01, "optim.momentum": 0.9}, "the recipe itself comes first"
    assert (tmp_path / "search" / BEST_FILE).exists()


def test_another_search_does_not_go_on(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "search")
    open_search(config, {"optim.lr": (1e-2, 1e-3)}, tmp_path / "search")
    with pytest.raises(UserError, match="--resume auto"):
        open_search(config, {"optim.lr": (1e-2, 1e-3)}, tmp_path / "search")
    resumed = config.model_copy(update={"resume": "auto"})
    open_search(resumed, {"optim.lr": (1e-2, 1e-3)}, tmp_path / "search")
    with pytest.raises(UserError, match="another recipe or --search"):
        open_search(resumed, {"optim.lr": (1e-2, 1e-4)}, tmp_path / "search")
