"""Whose modules are imported: never the user's own files in the place of libraries, and none after the first step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest

from accel_flowers.core.import_path import libraries_first
from accel_flowers.metrics.label_metrics import LabelScores
from tests.conftest import make_folder
from tests.runs import PROJECT, write_recipe


def run_in(folder: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, which finds this checkout as it would find an installed program."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.holds("No file of the user's stands in for a library")
@pytest.mark.parametrize("path", ["", os.pathsep, f"{os.pathsep}."], ids=["as it is", "an empty part", "with ."])
def test_files_named_like_libraries_are_left_alone(path: str, tmp_path: Path) -> None:
    for name in ("tyro", "pydantic", "typing_extensions", "datasets", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file was run')")
    done = run_in(tmp_path, "-m", "accel_flowers", "recipes", PYTHONPATH=f"{PROJECT}{path}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("named", ["", ".", "elsewhere"])
def test_the_working_directory_comes_last_or_not_at_all(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", named)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(PROJECT), "."])
    libraries_first()
    assert sys.path == [str(PROJECT), *([os.path.realpath(tmp_path)] if named == "." else [])]
    assert os.environ["PYTHONSAFEPATH"] == "1", "the server of the workers begins with a path of its own"


def test_a_checkout_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    libraries_first()
    assert sys.path == ["", "/elsewhere"]


_LATE = """
import sys
from accel_flowers.cli.main import main
from accel_flowers.training.step import TrainStep

before, really = [], TrainStep.__call__
def step(self, batch):
    before.extend(sys.modules if not before else ())
    return really(self, batch)
TrainStep.__call__ = step
try:
    main(sys.argv[1:])
finally:
    print("late:", *sorted(set(sys.modules) - set(before)))
"""


@pytest.mark.holds("No file of the user's stands in for a library")
@pytest.mark.slow
def test_nothing_is_imported_after_the_first_step(tmp_path: Path) -> None:
    photos, recipe = make_folder(tmp_path / "photos"), write_recipe(tmp_path / "recipe.yaml", tracking={"report": True})
    (tmp_path / "late.py").write_text(_LATE)
    for name in ("evaluate", "cleanlab", "captum", "scipy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file was run')")
    words = ["train", recipe, "--data.path", photos, "--run-dir", "run", "--train.epochs", "1"]
    done = run_in(tmp_path, "-P", "late.py", *words)
    assert done.returncode == 0, done.stderr
    late = done.stdout.splitlines()[-1].removeprefix("late:").split()
    assert [name for name in late if not name.startswith("encodings.")] == []


@pytest.mark.parametrize("method", ["compute", "add_batch", "add"])
def test_without_docstrings_scores_are_made(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONOPTIMIZE=2 takes them away."""
    monkeypatch.setattr(getattr(evaluate.EvaluationModule, method), "__doc__", None)
    scores = LabelScores(2).compute(predictions=np.array([0, 1]), references=np.array([0, 1]))
    assert scores["accuracy"] == 1
