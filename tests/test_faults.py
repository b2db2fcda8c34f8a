"""Two processes that are killed, stopped, or find a damaged checkpoint end bit for bit as if nothing had happened.

`scripts/fault_drill.py` is the long form.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.faults import Forked, Launched, differences, fault_recipe
from tests.runs import LAUNCH, PROGRAM, PROJECT, TWO_PROCESSES

pytestmark = pytest.mark.multiprocess
NUM_STEPS = 19  # 5 epochs of 30 images, 8 a step
ONE_PROCESS = [*LAUNCH, "--cpu", "--num_processes", "1"]
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""What follows is the first process in there."""


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
@pytest.mark.parametrize(
    ("launcher", "number"),
    [(ONE_PROCESS, signal.SIGKILL), (ONE_PROCESS, signal.SIGTERM), (TWO_PROCESSES, signal.SIGUSR1)],
    ids=["one", "one-term", "two"],
)
def test_a_launcher_that_is_killed_alone_ends_the_run(
    launcher: list[str], number: signal.Signals, words: list[str | Path], tmp_path: Path
) -> None:
    """By what a scheduler sends it, too, where it does not listen: to SIGUSR1 none does."""
    run_dir = tmp_path / "run"
    with Launched(launcher, run_dir, *words, "--train.epochs", "500") as launched:
        launched.wait_for_step(4)
        launched.signal_launcher(number)
        launched.wait(30)
        assert "the launcher is gone: stopping" in launched.output()
        step = int(launched.output().split("stopped by a signal after step ")[1].split(",")[0])
    assert (run_dir / f"checkpoints/step-{step:08d}").is_dir()


@pytest.fixture
def container() -> list[str]:
    """Words before a command that make it a container's first process."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    for own in (CONTAINER, [*CONTAINER, "--user", "--map-root-user"]):
        if subprocess.run([*own, "true"], capture_output=True, check=False).returncode == 0:
            return own
    pytest.skip("this system allows no namespace of processes")


@pytest.mark.holds("A signal to stop, to any process")
@pytest.mark.slow
@pytest.mark.parametrize("first", ["the program", "its launcher"])
def test_the_first_process_of_a_container(
    first: str, container: list[str], words: list[str | Path], tmp_path: Path
) -> None:
    """As the program it hears that the container is stopped; a launcher of one process does not, and that is told."""
    run_dir = tmp_path / "run"
    command = [sys.executable] if first == "the program" else ONE_PROCESS
    with Launched([*container, *command], run_dir, *words, "--train.epochs", "500") as run:
        run.wait_for_step(4)
        (process,) = (pid for pid in run.pids() if first_inside(pid))
        os.kill(process, signal.SIGTERM)
        if first == "the program":
            assert run.wait(30) == 75
            assert "stopped by a signal after step " in run.output()
        else:
            step = run.steps_seen()
            run.wait_for_step(step + 10)
            assert not run.has_ended(), run.output()
        assert ("drops SIGTERM" in run.output()) == (first != "the program")


def first_inside(pid: int) -> bool:
    """Whether a process is the first one of its own namespace, and not of ours."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    return len(numbers) > 1 and numbers[-1] == "1"


@pytest.mark.holds("Nothing of a run that is killed lives on")
@pytest.mark.slow
def test_the_reader_of_a_training_that_was_killed_returns(words: list[str | Path], tmp_path: Path) -> None:
    """`train ... | tee log`: the loader's workers are not this program's children, and hold its output, too."""
    run_dir = tmp_path / "run"
    program = [sys.executable, *PROGRAM, "train", *map(str, words), "--run-dir", str(run_dir)]
    more = ["--data.num-workers", "2", "--train.epochs", "500"]
    with subprocess.Popen([*program, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=PROJECT) as run:
        deadline = time.monotonic() + 120
        while not (run_dir / "checkpoints/last").exists():
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.kill()
        run.communicate(timeout=30)


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
