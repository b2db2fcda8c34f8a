"""What W&B and TensorBoard get: read back from offline runs with their own readers; a network that does not answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from accel_flowers.cli.train import _default_run_dir
from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.models.saved import load_spec
from accel_flowers.tracking.figures import draw_confusion
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.tracking.wandb import WandbTracker
from tests.conftest import make_folder
from tests.faults import Forked
from tests.ranks import Ranks, finish
from tests.runs import PROJECT, metrics, write_recipe
from tests.servers import JsonHandler, serving


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=13)


@pytest.fixture(scope="module")
def killed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was killed between two checkpoints, twice, and then went on to its end."""
    root = tmp_path_factory.mktemp("runs")
    train = {"epochs": 6, "micro_batch_size": 4}
    recipe = write_recipe(root / "recipe.yaml", train=train, ema={"decay": 0.9}, model={"name": "shufflenet_v2_x0_5"})
    words: list[str | Path] = [recipe, "--data.path", photos, "--tracking.wandb", "offline", "--tracking.tensorboard"]
    run_dir = root / "run"
    for step in (5, 13):  # an epoch ends every four steps or so
        with Forked(1, run_dir, *words) as run:
            deadline = time.monotonic() + 60
            while max([0, *(line["step"] for line in read_metrics(run_dir / "metrics.jsonl"))]) < step:
                assert time.monotonic() < deadline, run.output()
                time.sleep(0.002)
            run.signal(0, signal.SIGKILL)
    finish(root, ["train", *words, "--run-dir", run_dir, "--resume", "auto"])
    return run_dir


@pytest.fixture(scope="module")
def wandb_records(killed: Path) -> list[dict[str, Any]]:
    """All records of all offline parts, by W&B's own reader, in the order in which they were written."""
    files = sorted(killed.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 3
    assert len({file.name for file in files}) == 1, "one run, in three parts"
    return [record for file in files for record in read_wandb(file)]


def read_wandb(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if "history" in record]


@pytest.mark.holds("One W&B run for the whole job, each step in it once")
def test_each_step_is_shown_once(killed: Path, wandb_records: list[dict[str, Any]]) -> None:
    rows = history(wandb_records)
    for name in ("train/loss", "val/accuracy", "val_ema/loss", "test/loss", "lr/all", "speed/data_wait"):
        steps = [row["step"] for row in rows if name in row]
        expected = [line["step"] for line in read_metrics(killed / "metrics.jsonl") if name in line]
        assert expected, name
        assert Counter(steps) == Counter(expected), name
    shown = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert shown == {
        line["step"]: line["train/loss"] for line in read_metrics(killed / "metrics.jsonl") if "train/loss" in line
    }


def test_rows_that_an_earlier_version_left_are_recognised(tmp_path: Path) -> None:
    """Without a kind: by what they hold, whatever the order of their names."""
    lines: list[dict[str, Any]] = [
        {"step": 1, "epoch": 0.5, "train/loss": 2.0, "lr/all": 0.1, "speed/data_wait": 0.1},
        {"step": 2, "epoch": 1.0, "val/accuracy": 0.5, "val/loss": 1.5, "val_ema/loss": 1.4},
        {"step": 2, "epoch": 1.0, "test/accuracy": 0.5, "test/loss": 1.5},
    ]
    run = wandb.init(
        project="p", id="old", mode="offline", dir=tmp_path, settings=wandb.Settings(quiet=True, console="off")
    )
    tables = {"val/per_class": wandb.Table(["class"], [["rose"]]), "val/worst_pictures": wandb.Table(["file"], [["1"]])}
    for row in (*lines, {"step": 2, "epoch": 1.0, **tables}):
        run.log(row)
    run.finish()
    new = {"step": 3, "epoch": 1.5, "train/loss": 1.0, "lr/all": 0.1}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*lines, new)))
    tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline"))
    tracker.open("old", 3)
    tracker.log({"epoch": 1.0, **tables}, step=2, kind="val tables")
    tracker.log({"epoch": 1.0, "val/accuracy": 0.4}, step=4)
    tracker.finish()
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert [(row["step"], row["kind"]) for row in history(read_wandb(files[-1]))] == [(3, "train"), (4, "val")]


def test_axes_and_bests(wandb_records: list[dict[str, Any]], killed: Path) -> None:
    metric_of = {}
    for record in wandb_records:
        if "metric" in record:
            metric = record["metric"]
            metric_of[metric.get("name") or metric.get("glob_name") or metric.get("globName")] = metric
    assert {"train/*", "lr/*", "speed/*", "val/*", "test/*"} <= set(metric_of)
    assert "step" in json.dumps(metric_of["train/*"])
    assert "epoch" in json.dumps(metric_of["val/*"])
    summary: dict[str, Any] = {}
    for record in wandb_records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["best/accuracy"] == max(metrics(killed, "val_ema/accuracy"))
    assert {"best/epoch", "best/step", "test/accuracy"} <= set(summary)


def test_tables_and_images(wandb_records: list[dict[str, Any]], killed: Path) -> None:
    rows = [row for row in history(wandb_records) if "val/worst_pictures.path" in row]
    steps = [row["step"] for row in rows]
    ends = [line["step"] for line in read_metrics(killed / "metrics.jsonl") if "val/loss" in line]
    assert steps == sorted(set(steps)), "none comes twice"
    assert set(ends[-2:]) <= set(steps) <= set(ends), "those of an epoch that W&B had not written are lost with it"
    media = {path.name: path for path in killed.glob("wandb/offline-run-*/files/media/**/*") if path.is_file()}
    table = json.loads(media[Path(rows[-1]["val/worst_pictures.path"]).name].read_text())
    assert table["columns"] == ["picture", "file", "class", "predicted", "confidence", "loss"]
    losses = [row[5] for row in table["data"]]
    assert losses == sorted(losses, reverse=True)
    table_artifacts = [each for each in artifacts(wandb_records) if "worst_pictures" in each["name"]]
    images = [entry["path"] for entry in table_artifacts[-1]["manifest"]["contents"] if entry["path"].endswith(".jpg")]
    assert len(set(images)) == len(table["data"])
    per_class = json.loads(media[Path(rows[-1]["val/per_class.path"]).name].read_text())
    assert [row[0] for row in per_class["data"]] == ["daisy", "rose", "tulip"]
    assert any("confusion_matrix" in name for row in rows for name in row)


def artifacts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["artifact"] for record in records if "artifact" in record]


def test_artifact_holds_the_model(wandb_records: list[dict[str, Any]], killed: Path) -> None:
    models = [artifact for artifact in artifacts(wandb_records) if artifact["type"] == "model"]
    aliases = [alias for artifact in models for alias in artifact["aliases"]]
    assert {"best", "last"} <= set(aliases)
    best = next(artifact for artifact in models if "best" in artifact["aliases"])
    names = {entry["path"] for entry in best["manifest"]["contents"]}
    assert names == {"README.md", "config.json", "model.safetensors", "seen.safetensors"}
    assert load_spec(killed / "model").scores


def test_tensorboard_shows_each_step_once(killed: Path) -> None:
    events = EventAccumulator(str(killed / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    lines = read_metrics(killed / "metrics.jsonl")
    for name in ("train/loss", "val/accuracy", "lr/all"):
        curve = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in curve] == [step for step, _ in expected]
        assert [value for _, value in curve] == pytest.approx([value for _, value in expected], rel=1e-6)
    tags = events.Tags()["images"]
    assert any("confusion_matrix" in tag for tag in tags)
    assert any("worst_pictures" in tag for tag in tags)


def test_matrix_is_drawn_with_any_names() -> None:
    plain = draw_confusion(np.array([[3, 1], [0, 4]]), ["$a_{b$", "<script>"])
    other = draw_confusion(np.array([[1, 3], [4, 0]]), ["$a_{b$", "<script>"])
    assert plain.dtype == np.uint8
    assert plain.shape[2] == 3
    assert plain.shape == other.shape
    assert (plain != other).any()


# A network that does not answer


class Server(JsonHandler):
    """As much of W&B's as it takes to begin a run."""

    def do_POST(self) -> None:
        query = json.loads(self.body() or "{}") if self.path == "/graphql" else {}
        data: dict[str, Any] = {}
        if "UpsertBucket" in str(query.get("query")):
            project = {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": query["variables"].get("name"), "displayName": "d", "description": "",
                      "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}  # fmt: skip
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in str(query.get("query")):
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        if "viewer" in str(query.get("query")):
            data = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        self.answer({"data": data})


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with serving(Server) as server:
        yield server


@pytest.mark.slow
def test_a_network_that_was_never_there_is_no_hindrance(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", "--tracking.wandb", "online"]
    nobody = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    with Ranks(tmp_path, words, variables=nobody) as ranks:
        assert ranks.codes(120) == [0], ranks.output()
        assert "W&B does not answer" in ranks.output()
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    shown = [row["train/loss"] for row in history(read_wandb(file)) if "train/loss" in row]
    assert shown == metrics(tmp_path / "run", "train/loss")


@pytest.mark.slow
def test_a_network_that_goes_away_slows_nothing(photos: Path, tmp_path: Path, server: ThreadingHTTPServer) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 4})
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", "--tracking.wandb", "online"]
    there = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "WANDB_API_KEY": "a" * 40,
    }
    with Ranks(tmp_path, words, variables=there) as ranks:
        ranks.wait_for(tmp_path / "run/checkpoints/last")
        server.shutdown()
        server.server_close()
        began = time.monotonic()
        ranks.wait_for(tmp_path / "run/model/config.json")
        while "model: " not in ranks.output() and time.monotonic() - began < 60:
            time.sleep(0.1)
        trained = time.monotonic() - began
        assert trained < 30, "the training itself does not wait"
        assert ranks.codes(150) == [0], ranks.output()
    assert len(metrics(tmp_path / "run", "val/loss")) == 4


# Sweeps


def test_the_sweep_drives_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command, expanded as W&B's agent does, is one that the program reads."""
    sweep = parse_yaml((PROJECT / "scripts/sweep.yaml").read_text(), "sweep")
    words: list[str] = []
    for name, parameter in sweep["parameters"].items():
        values = parameter.get("values") or [parameter.get("value", parameter.get("min"))]
        words.append(f"--{name}={values[-1]}")
    command = sweep["command"]
    assert command[0] == "${env}"
    assert command[1:4] == ["python", "-m", "accel_flowers"]
    assert command[4] == "train"
    assert command[-1] == "${args}"
    config = config_from_flags(load_recipe(command[5]), [*command[6:-1], *words], program="test")
    assert config.resume == "auto", "a run that was preempted goes on"
    assert config.tracking.wandb == "online"
    assert config.optim.lr == sweep["parameters"]["optim.lr"]["min"]
    assert config.schedule.name == "step"
    assert sweep["metric"]["name"] == "val/accuracy"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert _default_run_dir("resnet18-finetune", config, {}) == "runs/sweep-s1/r1"
