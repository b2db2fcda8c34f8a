"""A run that fits into its minutes: the arithmetic, that the trial leaves nothing behind, and that a resume keeps the plan."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.training import budget
from accel_flowers.training.budget import Pace, steps_within
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.faults import Forked, differences, fault_recipe
from tests.ranks import finish
from tests.runs import metrics, tiny_config
from tests.specs import read_spec


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@given(seconds=st.floats(0, 1000), head_epochs=st.sampled_from([0.0, 1.0, 2.5]), epochs=st.integers(1, 9))
def test_as_many_steps_as_fit(seconds: float, head_epochs: float, epochs: int) -> None:
    plan, pace = BatchPlan(100, epochs, 8), Pace(1.0, 0.25, 3.0, 4.0)
    steps = steps_within(seconds, pace, plan, head_epochs=head_epochs)
    assert 0 <= steps <= plan.num_steps
    assert not steps or pace.seconds_of(steps, plan, head_epochs=head_epochs) <= seconds
    assert steps == plan.num_steps or pace.seconds_of(steps + 1, plan, head_epochs=head_epochs) > seconds


def test_seconds_by_hand() -> None:
    """100 images, 8 a step: 1.5 epochs of the head are 19 steps, and 30 steps are 2.4 epochs with 3 evaluations."""
    plan, pace = BatchPlan(100, 5, 8), Pace(1.0, 0.25, 3.0, 4.0)
    assert pace.seconds_of(30, plan, head_epochs=1.5) == 19 * 0.25 + 11 + 3 * 3 + 4
    assert pace.seconds_of(10, plan, head_epochs=1.5) == 10 * 0.25 + 3 + 4


def test_a_plan_that_ends_inside_an_epoch() -> None:
    plan = BatchPlan(100, 5, 8).ending_at(30)
    assert (plan.num_steps, plan.epochs, plan.length) == (30, 3, 2.4)
    assert [plan.epochs_completed_at(step) for step in (12, 13, 25, 29, 30)] == [0, 1, 2, 2, 3]
    whole = BatchPlan(100, 5, 8)
    assert whole.ending_at(whole.num_steps).length == whole.length == 5


@pytest.mark.slow
def test_a_run_ends_in_its_minutes(photos: Path, tmp_path: Path) -> None:
    """From the call to the last score; far fewer epochs than the recipe has, and the cosine ends where the run does."""
    minutes, begun = 0.2, time.monotonic()
    train(tiny_config(photos, tmp_path / "run", train={"epochs": 100_000, "minutes": minutes, "log_every_steps": 1}))
    passed = time.monotonic() - begun
    assert 0.5 * 60 * minutes < passed < 2 * 60 * minutes, "other work on the machine may come and go"
    rates = metrics(tmp_path / "run", "lr/all")
    assert rates[0] == 1e-2
    assert 0 < rates[-1] < 1e-4


@pytest.mark.holds("A run of so many minutes keeps its plan")
def test_the_trial_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    """Where all epochs fit, the run is the one without minutes, to the bit: with batch norm, momentum and an average."""
    sections = {"model": {"name": "shufflenet_v2_x0_5"}, "optim": {"name": "adamw", "lr": 1e-3}, "ema": {"decay": 0.9}}
    for name, minutes in (("without", None), ("with", 5.0)):
        config = tiny_config(photos, tmp_path / name, train={"minutes": minutes, "head_epochs": 0.5}, **sections)
        train(config)
    assert differences(tmp_path / "without", tmp_path / "with") == [
        "last/state.json",
        "best/state.json",
        "model/config.json",
    ]
    specs = [read_spec(tmp_path / name / "model") for name in ("without", "with")]
    assert specs[1]["training"]["settings"]["train"].pop("minutes") == 5
    assert specs[0] == specs[1], "the recipe alone says of what it was"
    assert json.loads((tmp_path / "with/checkpoints/last/state.json").read_text())["num_steps"] == 8


@pytest.mark.parametrize(
    ("seconds", "head_epochs", "words"),
    [
        (1e9, 0, r"train\.minutes 1 are too few.*Give more"),
        (5.0, 1.0, r"no more than 0\.\d+ of an epoch.*fewer of these epochs"),
    ],
)
def test_what_does_not_fit_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, head_epochs: float, words: str
) -> None:
    monkeypatch.setattr(budget, "_try", lambda *_: Pace(10.0, 15.0, seconds, seconds))
    config = tiny_config(photos, tmp_path / "run", train={"minutes": 1.0, "head_epochs": head_epochs, "epochs": 9})
    with pytest.raises(UserError, match=words):
        train(config)


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.holds("A run of so many minutes keeps its plan")
def test_a_resume_keeps_the_plan(photos: Path, tmp_path: Path) -> None:
    """On two processes, killed, resumed on two, whatever they would find in a trial now."""
    flags = ["--train.minutes", "0.12", "--train.epochs", "1000", "--train.global-batch-size", "8"]
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, *flags]
    run_dir = tmp_path / "run"
    with Forked(2, run_dir, *words) as run:
        run.wait_for_step(3)
        for rank in range(2):
            run.signal(rank, signal.SIGKILL)
        assert "train.minutes 0.12: " in run.output()
        planned = int(run.output().partition("train.minutes 0.12: ")[2].split(" ")[0].replace(",", ""))
        assert run.steps_seen() < planned
    said = finish(tmp_path, ["train", *words, "--run-dir", run_dir, "--resume", "auto"], processes=2)
    assert "train.minutes 0.12: " not in said, "no second trial"
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    assert state["step"] == state["num_steps"] == planned
    assert metrics(run_dir, "lr/all")[-1] < 1e-4
