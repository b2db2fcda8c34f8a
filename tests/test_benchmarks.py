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
