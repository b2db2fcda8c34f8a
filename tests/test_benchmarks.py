"""The benchmarks run; what they measure on a busy machine says nothing, so it is not judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.runs import PROJECT


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_exactness(processes: int, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=20)
    small = "--model squeezenet1_1 --size 64 --precision no --steps 3 --epochs 2 --batch 16 --micro-batch 8"
    done = subprocess.run(
        [sys.executable, "benchmarks/exactness.py", "--data.path", str(photos), *small.split(),
         "--val-pictures", "7", "--repeats", "1", "--threads", "1", "--processes", str(processes)],
        capture_output=True, text=True, timeout=220, cwd=PROJECT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exact / plain") == 3


@pytest.mark.slow
def test_start() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/start.py", "--pictures", "100", "200", "--side", "32", "--recipe", "quickstart",
         "--repeats", "1", "--timeline", "--", "--train.global-batch-size", "8"],
        capture_output=True, text=True, timeout=220, cwd=PROJECT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 pictures of 10 classes: " in done.stdout
    assert done.stdout.count(": median loop ") == 2
    assert " bytes a picture" in done.stdout


@pytest.mark.slow
def test_start_tells_why_there_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/start.py", "--data.path", "no-such-folder"],
        capture_output=True, text=True, timeout=100, cwd=PROJECT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "There is no folder" in done.stderr
