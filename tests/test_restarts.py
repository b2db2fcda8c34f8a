"""A launcher that starts failed processes again (`--max_restarts`) needs nobody to say `--resume auto`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.distributed.launch import identify_launcher, is_restart_of
from accel_flowers.tracking.run_dir import METRICS_FILE, RunDirLock, check_run_dir, open_run_dir, write_config
from tests.conftest import make_folder
from tests.faults import Launched, differences, fault_recipe
from tests.runs import TWO_PROCESSES, tiny_config

RESTARTING = [*TWO_PROCESSES, "--max_restarts", "3"]


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    return [
        fault_recipe(tmp_path / "recipe.yaml"),
        "--data.path", make_folder(tmp_path / "photos", per_class=12),
        "--train.epochs", "4",
    ]  # fmt: skip


def wait_for_restart(run: Launched, ended: set[int]) -> None:
    """Until the launcher has two new ranks."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ranks = {pid for pid, rank in run.pids().items() if rank is not None}
        if len(ranks) == 2 and not ranks & ended:
            return
        time.sleep(0.02)
    raise TimeoutError(run.output())


@pytest.mark.holds("A launcher with `--max_restarts` goes on by itself")
@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_rank_is_killed_and_one_is_told_to_stop(words: list[str | Path], tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    with Launched(RESTARTING, disturbed, *words, resume="never") as run:
        for step, number, rank in ((4, signal.SIGKILL, 1), (9, signal.SIGUSR1, 0)):
            run.wait_for_step(step)
            ranks = {pid for pid, rank in run.pids().items() if rank is not None}
            run.signal(number, rank=rank)
            wait_for_restart(run, ranks)
        assert run.wait(120) == 0, run.output()
        assert run.output().count("going on after step ") == 2
    with Launched(RESTARTING, undisturbed, *words, resume="never") as run:
        assert run.wait(120) == 0, run.output()
        assert "going on after step " not in run.output()
    assert differences(disturbed, undisturbed) == []  # among them the lines of metrics.jsonl: none lost, none twice


@pytest.mark.slow
@pytest.mark.multiprocess
def test_another_ones_run_stays_as_it_is(words: list[str | Path], tmp_path: Path) -> None:
    """The first start finds it, and so does each of the launcher's further ones."""
    run_dir = tmp_path / "run"
    with Launched(RESTARTING, run_dir, *words, resume="never") as run:
        run.wait_for_step(4)
        run.signal(signal.SIGKILL)
        run.wait(30)
    before = {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
    with Launched([*TWO_PROCESSES, "--max_restarts", "1"], run_dir, *words, resume="never") as run:
        assert run.wait(120) != 0
        assert run.output().count("holds a run already") >= 2, "once for each start"
    assert {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()} == before


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if a launcher had started this process for the first time."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    return monkeypatch


def test_only_the_launcher_that_began_a_run_goes_on_with_it(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(tmp_path, run_dir)
    with RunDirLock() as lock:
        environment = open_run_dir(run_dir, lock)
        write_config(run_dir, config, environment)
        (run_dir / METRICS_FILE).write_text('{"step": 1}\n')  # one that did no step would give way
        with pytest.raises(UserError, match="holds a run already"):
            check_run_dir(run_dir, config, lock)
        launched.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        check_run_dir(run_dir, config, lock)
        for other in ({**environment, "launcher": {**environment["launcher"], "started": 1}}, {"run_id": "abc"}):
            write_config(run_dir, config, other)
            with pytest.raises(UserError, match="holds a run already"):
                check_run_dir(run_dir, config, lock)


@pytest.mark.parametrize("change", [{"host": "h"}, {"process": 1}, {"started": 1}, {"boot": "b"}, {"run_id": "r"}])
def test_each_part_tells_launchers_apart(launched: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    launcher = identify_launcher()
    assert launcher is not None
    launched.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert is_restart_of(launcher)
    assert not is_restart_of({**launcher, **change})


def test_nothing_is_a_restart_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert identify_launcher() is None
    assert not is_restart_of(None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not is_restart_of(None), "two that are unknown are not the same"
