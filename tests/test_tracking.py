"""metrics.jsonl: its lines, a run cut off in the middle, a resumed run; and the names of Accelerate's trackers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.errors import UserError
from accel_flowers.tracking.jsonl import JsonlTracker, forget_after
from accel_flowers.tracking.run_dir import METRICS_FILE, read_metrics
from accel_flowers.tracking.trackers import build_trackers, prefixed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A metrics file that is not there yet."""
    return tmp_path / METRICS_FILE


def write(path: Path, *steps: int) -> list[dict[str, float]]:
    """Log a line for each step; returns what was logged."""
    tracker = JsonlTracker(path)
    lines = [{"step": step, "train/loss": 1 / step} for step in steps]
    for line in lines:
        tracker.log({"train/loss": line["train/loss"]}, step=line["step"])
    return lines


def test_each_log_is_one_line_with_its_step(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.store_init_configuration({"train": {"epochs": 3}})
    assert not path.exists(), "the configuration has its own file"
    tracker.log({"train/loss": 0.5, "lr": 1e-3}, step=10)
    tracker.log({"val/accuracy": 1.0}, step=20, commit=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "train/loss": 0.5, "lr": 1e-3},
        {"step": 20, "val/accuracy": 1.0},
    ]
    assert tracker.tracker == path


def test_another_tracker_adds_to_the_file(path: Path) -> None:
    lines = [*write(path, 1, 2), *write(path, 3)]
    assert read_metrics(path) == lines


def test_a_line_can_be_read_as_soon_as_it_is_logged(path: Path) -> None:
    tracker = JsonlTracker(path)
    for step in (1, 2):
        tracker.log({}, step=step)
        assert read_metrics(path)[-1] == {"step": step}


def test_no_file_has_no_lines(path: Path) -> None:
    assert read_metrics(path) == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_that_was_cut_off_is_left_out(path: Path, cut: int) -> None:
    first, last = write(path, 1, 3)
    whole = path.read_bytes()
    assert len(json.dumps(last)) >= 29
    path.write_bytes(whole[:-cut])
    assert read_metrics(path) == [first]
    forget_after(path, 5, scored=True)
    write(path, 4)
    assert [line["step"] for line in read_metrics(path)] == [1, 4], "a resumed run goes on with a line of its own"


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1]), (2, [1]), (3, [1, 3, 3]), (9, [1, 3, 3, 5])])
def test_what_comes_after_a_step_is_forgotten(path: Path, step: int, kept: list[int]) -> None:
    lines = write(path, 1, 3, 3, 5)
    forget_after(path, step, scored=True)
    assert read_metrics(path) == [line for line in lines if line["step"] <= step]
    assert [line["step"] for line in read_metrics(path)] == kept
    assert [entry.name for entry in path.parent.iterdir()] == [METRICS_FILE], "no temporary file stays"


def test_forgetting_before_anything_was_logged(path: Path) -> None:
    forget_after(path, 0, scored=True)
    assert read_metrics(path) == []


def test_values_that_are_no_numbers_survive(path: Path) -> None:
    JsonlTracker(path).log({"train/loss": float("nan"), "val/f1/Blüte\n花": 0.5}, step=1)
    (line,) = read_metrics(path)
    assert line["train/loss"] != line["train/loss"]
    assert line["val/f1/Blüte\n花"] == 0.5


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, []),
        ({"wandb": "online"}, ["wandb"]),
        ({"wandb": "offline"}, ["wandb"]),
        ({"tensorboard": True}, ["tensorboard"]),
        ({"wandb": "offline", "tensorboard": True}, ["wandb", "tensorboard"]),
    ],
    ids=str,
)
def test_build_trackers(tmp_path: Path, options: dict[str, object], names: list[str]) -> None:
    trackers = build_trackers(TrackingConfig.model_validate(options), tmp_path)
    assert [tracker.name for tracker in trackers if tracker.name != "jsonl"] == names
    assert "jsonl" in [tracker.name for tracker in trackers]
    assert list(tmp_path.iterdir()) == [], "nothing is opened yet"


def test_tensorboard_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest))  # fmt: skip
    build_trackers(TrackingConfig(wandb="offline"), Path("run"))
    with pytest.raises(UserError, match=r"tracking\.tensorboard needs .* pip install 'accel-flowers\[tensorboard\]'"):
        build_trackers(TrackingConfig(tensorboard=True), Path("run"))


def test_names_get_a_prefix() -> None:
    assert prefixed("val", {"loss": 1.0, "accuracy": 0.5}) == {"val/loss": 1.0, "val/accuracy": 0.5}
