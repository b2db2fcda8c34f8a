"""Two real CPU processes over gloo, started by `accelerate launch`: the same numbers as one, one voice, one W&B run.

What each process count computes is made once for the module; every test first sees that two processes really ran.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.inference.evaluate import evaluate
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import LAUNCH, TWO_PROCESSES, metrics, run_program, tiny_recipe, write_recipe

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 images: an odd number that no batch divides."""
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=13)


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of processes → directory of its run; the one of two processes has W&B on."""
    root = tmp_path_factory.mktemp("runs")
    augment = [*tiny_recipe()["data"]["train_transforms"], {"RandomErasing": {"p": 0.5}}]
    recipe = write_recipe(
        root / "recipe.yaml", data={"split": "70/30", "train_transforms": augment}, train={"epochs": 3}
    )
    for number, launcher in ((1, None), (2, TWO_PROCESSES)):
        trackers = ["--tracking.wandb", "offline"] if number == 2 else []
        words = ["train", recipe, "--data.path", photos, "--run-dir", root / str(number), *trackers]
        if launcher:
            done = run_program(*words, launcher=launcher)
            assert done.returncode == 0, done.stderr
            said = done.stderr
        else:
            said = finish(root, words)
        assert f"{number} x cpu" in said
        assert said.count("epoch 3/3") == 1, "the main process alone speaks"
    for number in (1, 2):
        environment = parse_yaml((root / str(number) / "config.yaml").read_text(), "config")["environment"]
        assert environment["num_processes"] == number
    return {number: root / str(number) for number in (1, 2)}


@pytest.mark.holds("Losses of a whole run on 1, 2 and 4 processes")
@pytest.mark.holds("Crop, flip, colour, erasing of a sample")
def test_losses_agree(runs: dict[int, Path]) -> None:
    """Same samples, same pixels, same dropout in every step; only the order of summation differs."""
    one, two = (metrics(runs[number], "train/loss") for number in (1, 2))
    assert len(one) == 11  # 3 epochs of 27 images, 8 a step
    assert two == pytest.approx(one, abs=1e-5)
    assert metrics(runs[2], "val/loss") == pytest.approx(metrics(runs[1], "val/loss"), abs=1e-5)
    assert (runs[1] / "split.json").read_text() == (runs[2] / "split.json").read_text()


@pytest.mark.holds("Scores of one set of weights on 1 and 2 processes, in training and by `evaluate`")
def test_scores_are_the_same_to_the_last_digit(runs: dict[int, Path], photos: Path, tmp_path: Path) -> None:
    """39 images in batches of 4: the last is short, and one process gets a batch more than the other."""
    words = ["evaluate", runs[1] / "model", "--data", photos, "--json"]
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
        two = json.loads(ranks.said(0)[ranks.said(0).index("{") :])
    scores = evaluate(runs[1] / "model", str(photos)).as_json()
    assert scores["num_images"] == 39
    assert sum(map(sum, scores["confusion_matrix"])) == 39
    assert two == scores


@pytest.mark.holds("One W&B run for the whole job, each step in it once")
def test_wandb_holds_one_run_with_everything(runs: dict[int, Path]) -> None:
    files = list(runs[2].glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1, "the second process made a run of its own"
    records = _read_wandb(files[0])
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in records:
        config |= record.get("config", {}).get("update", {})
        summary |= record.get("summary", {}).get("update", {})
    history = [record["history"]["item"] for record in records if "history" in record]

    assert config["train"]["global_batch_size"] == 8
    assert config["model"]["name"] == "squeezenet1_1"
    for name in ("train/loss", "lr/all", "val/accuracy", "val/loss", "speed/images_per_second"):
        curve = [item[name] for item in history if name in item]
        assert curve == metrics(runs[2], name), name
    assert summary["best/accuracy"] == max(metrics(runs[2], "val/accuracy"))
    assert {"best/epoch", "best/step"} <= set(summary)


def _read_wandb(file: Path) -> list[dict[str, Any]]:
    """The records of an offline run, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_no_secret_is_written(photos: Path, tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", "--tracking.wandb", "offline"]
    with Ranks(tmp_path, words, variables={"WANDB_API_KEY": secret, "HF_TOKEN": f"hf_{secret}"}) as ranks:
        assert ranks.codes(60) == [0], ranks.output()
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in written)
    assert not [file for file in written if secret.encode() in file.read_bytes()]


def test_a_mistake_ends_both_processes_with_one_message(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["train", recipe, "--data.path", tmp_path / "nowhere", "--run-dir", tmp_path / "run"]
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [2, 2]
        assert ranks.output().count("There is no folder") == 1
        assert "Traceback" not in ranks.output()


@pytest.mark.slow
def test_launcher_that_starts_one_of_two_is_noticed(photos: Path, tmp_path: Path) -> None:
    """`--cpu --num_processes 2` silently starts one process."""
    recipe = write_recipe(tmp_path / "recipe.yaml")
    launcher = [*LAUNCH, "--quiet", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                "--dynamo_backend", "no"]  # fmt: skip
    done = run_program(
        "train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", launcher=launcher, timeout=60
    )
    assert done.returncode != 0
    assert "asked for several processes but started only this one" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
