"""What surrounds a command: files named like libraries, no home, no place for temporary files or caches, no folder to stand in."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest

from accel_flowers.cli.main import main
from accel_flowers.core.environment import libraries_first, need_home
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import user_cache
from accel_flowers.data.sources.load import load_images
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


def test_a_user_without_a_home_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries would make a folder "~" where the command was typed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])  # an account that no file knows
    assert os.path.expanduser("~") == "~"
    with pytest.raises(RuntimeError, match="home directory"):
        user_cache()
    monkeypatch.setenv("HOME", "~")  # so that it is taken back at the end
    need_home()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert user_cache().is_relative_to(home)


def test_a_home_that_is_somebody_elses_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "~")
    (tmp_path / f"accel_flowers-{os.getuid()}").symlink_to("/")
    need_home()
    assert Path(os.environ["HOME"]).parent == tmp_path
    assert not Path(os.environ["HOME"]).is_symlink()


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = os.getcwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    try:
        (tmp_path / "gone").rmdir()
        with pytest.raises(SystemExit) as ended:
            main(["recipes"])
    finally:
        os.chdir(here)
    assert ended.value.code == 2
    assert "The working directory is gone" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_folder(tmp_path / "photos")
    shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache/datasets")
    with pytest.raises(UserError, match=r"unpacked in '.*cache/datasets.*cannot be written.*HF_HOME"):
        load_images(str(tmp_path / "photos.zip"))


@pytest.mark.holds("A long TMPDIR keeps no workers from meeting")
def test_workers_meet_whatever_tmpdir_is(tmp_path: Path) -> None:
    """In a process of its own: multiprocessing keeps its folder for as long as a process lives."""
    place = tmp_path / "/".join(["scratch-of-job-1234567"] * 5)
    place.mkdir(parents=True)
    program = (
        "import tempfile; from accel_flowers.core.parallel import map_in_order; from math import sqrt\n"
        "if __name__ == '__main__': print(list(map_in_order(sqrt, [1, 4], processes=1)), tempfile.gettempdir())"
    )
    done = run_in(tmp_path, "-P", "-c", program, TMPDIR=str(place))
    assert (done.returncode, done.stdout) == (0, f"[1.0, 2.0] {place}\n"), done.stderr
