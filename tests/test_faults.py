"""Two processes that are killed, stopped, or find a damaged checkpoint end bit for bit as if nothing had happened.

`scripts/fault_drill.py` is the long form.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.faults import Forked, Launched, differences, fault_recipe
from tests.runs import LAUNCH, TWO_PROCESSES

pytestmark = pytest.mark.multiprocess
NUM_STEPS = 19  # 5 epochs of 30 images, 8 a step


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    root = tmp_path_factory.mktemp("data")
    return [fault_recipe(root / "recipe.yaml"), "--data.path", make_folder(root / "photos", per_class=12)]


@pytest.fixture(scope="module")
def undisturbed(words: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(run_dir, words)
    return run_dir


def finish(run_dir: Path, words: list[str | Path]) -> str:
    """Run to the end; returns what it said."""
    with Forked(2, run_dir, *words) as run:
        assert run.codes(120) == [0, 0], run.output()
        assert "2 x cpu" in run.output()
        return run.output()


@pytest.mark.holds("A run that was killed and resumed ends as if it had not been")
def test_killed_twice(undisturbed: Path, words: list[str | Path], tmp_path: Path) -> None:
    """While the first checkpoint is written, and between two later ones."""
    run_dir = tmp_path / "run"
    for step, writing in ((2, True), (7, False)):
        with Forked(2, run_dir, *words) as run:
            run.wait_for_step(step, writing=writing)
            for rank in (0, 1):
                run.signal(rank, signal.SIGKILL)
            run.codes(30)
            assert step <= run.steps_seen() < NUM_STEPS, "killed too late to prove anything"
    assert re.search(r"going on after step [678]", finish(run_dir, words))
    assert differences(run_dir, undisturbed) == []


@pytest.mark.holds("A signal to stop, to any process")
@pytest.mark.slow
def test_stopped_by_a_signal_through_the_launcher(undisturbed: Path, words: list[str | Path], tmp_path: Path) -> None:
    """SIGTERM through the launcher hits the loaders' workers, too."""
    run_dir = tmp_path / "run"
    with Launched(TWO_PROCESSES, run_dir, *words, "--data.num-workers", "1") as launched:
        launched.wait_for_step(4)
        launched.signal_launcher(signal.SIGTERM)
        assert launched.wait(30) != 0
        step = stopped_at(launched.output(), run_dir)
    assert step >= 4
    assert f"going on after step {step}" in finish(run_dir, words)
    assert differences(run_dir, undisturbed) == []


@pytest.mark.holds("A signal to stop, to any process")
def test_stopped_by_a_signal_to_one_process(undisturbed: Path, words: list[str | Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with Forked(2, run_dir, *words) as forked:
        forked.wait_for_step(11)
        forked.signal(1, signal.SIGUSR1)
        assert forked.codes(30) == [75, 75], forked.output()
        step = stopped_at(forked.output(), run_dir)
    assert step >= 11
    assert f"going on after step {step}" in finish(run_dir, words)
    assert differences(run_dir, undisturbed) == []


@pytest.mark.holds("Processes do not outlive their launcher")
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[*LAUNCH, "--cpu", "--num_processes", "1"], TWO_PROCESSES], ids=["one", "two"])
def test_a_launcher_that_is_killed_alone_ends_the_run(
    launcher: list[str], undisturbed: Path, words: list[str | Path], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with Launched(launcher, run_dir, *words, "--train.epochs", "500") as launched:
        launched.wait_for_step(4)
        launched.signal_launcher(signal.SIGKILL)
        launched.wait(30)
        assert "the launcher is gone: stopping" in launched.output()
        step = int(launched.output().split("stopped by a signal after step ")[1].split(",")[0])
    assert (run_dir / f"checkpoints/step-{step:08d}").is_dir()


def stopped_at(said: str, run_dir: Path) -> int:
    """The step that a run says it has saved, and has."""
    assert said.count("stopped by a signal after step ") == 1
    step = int(said.split("stopped by a signal after step ")[1].split(",")[0])
    state = json.loads((run_dir / f"checkpoints/step-{step:08d}/state.json").read_text())
    assert state["step"] == step < NUM_STEPS
    return step


@pytest.mark.holds("A damaged one is named, and the one before it used")
def test_damaged_newest_checkpoint(undisturbed: Path, words: list[str | Path], tmp_path: Path) -> None:
    """It is named, and the one before it is used."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir, symlinks=True)
    newest = run_dir / f"checkpoints/step-{NUM_STEPS:08d}/optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    said = finish(run_dir, words)
    assert f"{newest.parent} is damaged: optimizer.pt is not what was written" in said
    assert f"going on after step {NUM_STEPS - 1}" in said
    assert differences(run_dir, undisturbed) == []


@pytest.mark.holds("A signal to stop, to any process")
@pytest.mark.slow
def test_ctrl_c_through_the_launcher_is_told_in_a_line(words: list[str | Path], tmp_path: Path) -> None:
    """What else is printed is the launcher's own: it raises an error for each signal, however its processes end."""
    run_dir = tmp_path / "run"
    with Launched(TWO_PROCESSES, run_dir, *words, "--train.epochs", "500") as launched:
        launched.wait_for_step(4)
        ranks = [pid for pid, rank in launched.pids().items() if rank is not None]
        launched.signal_launcher(signal.SIGINT)
        assert launched.wait(60) != 0
        said = launched.output()
    assert stopped_at(said, run_dir) >= 4
    assert said.count("stopped by a signal") == 1
    assert "accel_flowers/" not in said, "no traceback goes through the program"
    assert len(ranks) == 2
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]


@pytest.mark.holds("One process dies: all end")
@pytest.mark.slow
def test_the_others_end_with_one_that_is_killed(undisturbed: Path, words: list[str | Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for rank in (0, 1):
        with Launched(TWO_PROCESSES, run_dir, *words) as run:
            run.wait_for_step(5 + 5 * rank)
            run.signal(signal.SIGKILL, rank=rank)
            assert run.wait(30) != 0
    finish(run_dir, words)
    assert differences(run_dir, undisturbed) == []
