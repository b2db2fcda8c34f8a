"""`evaluate` on several processes is as guarded as training: one that fails, is killed or differs ends all, with a message."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import write_recipe

pytestmark = pytest.mark.multiprocess
SOON = 40.0
"""Seconds within which all must have ended."""


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and photos to score it on."""
    folder = tmp_path_factory.mktemp("scored")
    photos = make_folder(folder / "photos", per_class=40)
    recipe = write_recipe(folder / "recipe.yaml", train={"epochs": 1, "eval_batch_size": 1})
    finish(folder, ["train", recipe, "--data.path", photos, "--run-dir", folder / "run"])
    return folder / "run/model", photos


def test_photos_that_one_process_sees_otherwise_end_it_on_all(scored: tuple[Path, Path], tmp_path: Path) -> None:
    model, photos = scored
    theirs = tmp_path / "theirs"
    shutil.copytree(photos, theirs)
    for file in sorted((theirs / "rose").iterdir()):  # the main process checks its own folder alone
        file.write_bytes(b"no image any more")
    ours, other = (["evaluate", model, "--data", each, "--num-workers", "0"] for each in (photos, theirs))
    with Ranks(tmp_path, ours, other) as ranks:
        codes = ranks.codes(SOON)
        said = ranks.said(0)
    assert codes == [2, 2]
    assert "content of 'rose/" in said
    assert "on process 1" in said


KILLED = """
import os, signal, threading, time

def watch():
    while not any("_exchange" in thread.name for thread in threading.enumerate()):  # the heartbeat has begun
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
"""


def test_a_process_that_is_killed_ends_it_on_the_other(scored: tuple[Path, Path], tmp_path: Path) -> None:
    model, photos = scored
    (tmp_path / "killed.py").write_text(KILLED)
    words = ["evaluate", model, "--data", photos, "--num-workers", "0"]
    with Ranks(tmp_path, words, [*words, "--import", tmp_path / "killed.py"]) as ranks:
        codes = ranks.codes(SOON)
        said = ranks.said(0)
    assert codes == [1, -signal.SIGKILL]
    assert "process 1" in said


def test_processes_with_other_models_do_not_start(scored: tuple[Path, Path], tmp_path: Path) -> None:
    model, photos = scored
    other = tmp_path / "model"
    shutil.copytree(model, other)
    spec = (other / "config.json").read_text()
    (other / "config.json").write_text(spec.replace('"eval_batch_size": 1', '"eval_batch_size": 2'))
    words = (["evaluate", each, "--data", photos, "--num-workers", "0"] for each in (model, other))
    with Ranks(tmp_path, *words) as ranks:
        assert ranks.codes(SOON) == [2, 2]
        assert "The processes do not agree" in ranks.said(0)
