"""Runs that are stopped, short of disk, or resumed on another number of processes, in processes that nobody launched."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.faults import Forked, differences, far_apart, fault_recipe, recipe_without_batch_norm
from tests.impatient import ENTRY
from tests.ranks import finish
from tests.runs import metrics

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def resume(run_dir: Path, words: list[str | Path], *, processes: int) -> str:
    """Go on with a run to its end."""
    return finish(run_dir.parent, ["train", *words, "--run-dir", run_dir, "--resume", "auto"], processes=processes)


@pytest.mark.slow
@pytest.mark.holds("A signal to stop, to any process")
def test_a_signal_during_the_evaluation_waits_for_none_of_it(photos: Path, tmp_path: Path) -> None:
    """It is agreed between two batches; the evaluation is done again, once, after the resume."""
    recipe = fault_recipe(tmp_path / "recipe.yaml")
    slow = ["--data.split", "40/60", "--data.eval-transforms", "[{Resize: {size: [224, 224]}}]",
            "--train.eval-batch-size", "1", "--train.log-every-steps", "1", "--train.epochs", "3"]  # fmt: skip
    words: list[str | Path] = [recipe, "--data.path", photos, *slow]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    resume(whole, words, processes=2)
    at = int(next(line for line in (whole / "metrics.jsonl").read_text().splitlines() if "val/loss" in line)[9:].split(",")[0])  # fmt: skip
    with Forked(2, stopped, *words) as run:
        deadline = time.monotonic() + 60
        while len(metrics(stopped, "train/loss")) < at and time.monotonic() < deadline:
            time.sleep(0.002)
        assert not metrics(stopped, "val/loss"), "too late to prove anything"
        run.signal(1, signal.SIGTERM)  # on either process
        assert run.codes(30) == [75, 75], run.output()
        assert f"stopped by a signal after step {at}" in run.output()
    assert not metrics(stopped, "val/loss")
    state = json.loads((stopped / "checkpoints/last/state.json").read_text())
    assert (state["step"], state["epochs_scored"]) == (at, 0)
    resume(stopped, words, processes=2)
    assert differences(whole, stopped) == []


@pytest.mark.holds("A signal to stop, to any process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_save(photos: Path, tmp_path: Path, number: signal.Signals) -> None:
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, "--train.epochs", "500"]
    with Forked(1, tmp_path / "run", *words) as run:
        run.wait_for_step(2)
        run.signal(0, number)
        assert run.codes(30) == [75], run.output()
        said = run.output()
    step = int(said.partition("stopped by a signal after step ")[2].partition(",")[0])
    assert (tmp_path / f"run/checkpoints/step-{step:08d}").is_dir()
    assert "Traceback" not in said


@pytest.mark.holds("A full disk ends the run with the cause")
@pytest.mark.slow
@pytest.mark.parametrize("what", ["metrics", "checkpoint"])
def test_a_full_disk_ends_the_run_with_the_cause(photos: Path, tmp_path: Path, what: str) -> None:
    """No file may grow beyond its size; with room again the run ends as if nothing had been."""
    often = what == "checkpoint"
    flags = ["--train.epochs", "3", "--train.global-batch-size", "4", "--train.log-every-steps", "1",
             "--checkpoint.every-steps", "2" if often else "1000"]  # fmt: skip
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, *flags]
    whole, short = tmp_path / "whole", tmp_path / "short"
    resume(whole, words, processes=2)
    with Forked(2, short, *words) as run:
        deadline = time.monotonic() + 60
        while len(metrics(short, "train/loss")) < 11 and time.monotonic() < deadline:  # epochs end at 8, 15 and 23
            time.sleep(0.002)
        run.limit_file_size(100_000 if often else (short / "metrics.jsonl").stat().st_size)
        codes, said = run.codes(30), run.output()
    assert codes[0] == 2, said
    assert codes[1] in (1, 2), said
    expected = r"The checkpoint of step 1\d in '" if often else r"metrics\.jsonl'"
    assert re.search(rf"{expected}.*cannot be written: .*File too large", said), said
    assert "Traceback" not in said
    resume(short, words, processes=2)
    assert differences(whole, short) == []


@pytest.mark.holds("Nothing is overwritten unasked")
def test_one_run_at_a_time(photos: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, "--train.epochs", "500"]
    with Forked(1, tmp_path / "run", *words) as first:
        first.wait_for_step(2)
        (tmp_path / "second").mkdir()
        second = Forked(1, tmp_path / "run", *words, entry=ENTRY)
        assert second.codes(60) == [2]
        assert f"is being trained by process {first.pids[0]} on" in second.said(0)
        assert not first.has_ended()


@pytest.mark.holds("A run that was killed and resumed ends as if it had not been")
@pytest.mark.holds("The first step, also after a resume, sums gradients as later ones")
@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit(photos: Path, tmp_path: Path) -> None:
    """DDP lays out its gradient buckets anew after the first backward pass: here before the first step."""
    batch = ["--train.global-batch-size", "12"]
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, *batch]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    resume(whole, words, processes=3)
    with Forked(3, killed, *words) as run:
        run.wait_for_step(5)
        for rank in range(3):
            run.signal(rank, signal.SIGKILL)
    assert "going on after step" in resume(killed, words, processes=3)
    assert differences(whole, killed) == []


@pytest.mark.holds("The same on another number of processes")
@pytest.mark.holds("Losses of a whole run on 1, 2 and 4 processes")
@pytest.mark.holds("Dropout")
def test_any_number_of_processes_goes_on(photos: Path, tmp_path: Path) -> None:
    """Begun on one, resumed on four, then on two: the same samples, and losses that agree to 1e-5."""
    words: list[str | Path] = [recipe_without_batch_norm(tmp_path / "recipe.yaml"), "--data.path", photos]
    of_one, of_four, of_all = (tmp_path / name for name in ("one", "four", "all"))
    resume(of_one, words, processes=1)
    assert "4 x cpu" in resume(of_four, words, processes=4)
    assert far_apart(of_one, of_four) == []
    assert metrics(of_one, "train/loss") != metrics(of_four, "train/loss"), "they do sum in another order"
    for processes, step in ((1, 5), (4, 11)):
        with Forked(processes, of_all, *words) as run:
            run.wait_for_step(step)
            for rank in range(processes):
                run.signal(rank, signal.SIGKILL)
            assert run.steps_seen() < 19, "killed too late to prove anything"
    resume(of_all, words, processes=2)
    assert far_apart(of_one, of_all) == []
