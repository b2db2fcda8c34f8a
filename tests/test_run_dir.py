"""One run a directory: whoever comes second is refused, however close behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.metrics.predictions import load_predictions, save_predictions
from accel_flowers.report.read import read_run
from accel_flowers.tracking.run_dir import RunDirLock, check_run_dir, open_run_dir, read_metrics, write_config
from accel_flowers.training.train import train
from tests.runs import tiny_config


@pytest.mark.holds("Nothing is overwritten unasked")
@pytest.mark.parametrize("ended", [True, False])
def test_of_two_runs_begun_at_once_one_is_refused(ended: bool, tmp_path: Path) -> None:
    """Both find the directory empty; while the second one still reads its images, the first begins, or even ends."""
    run_dir = tmp_path / "run"
    config, other = (tiny_config(tmp_path, run_dir, optim={"lr": lr}) for lr in (0.1, 0.2))
    with RunDirLock(0.2) as second:
        check_run_dir(run_dir, other, second)
        with RunDirLock(0.2) as first:
            check_run_dir(run_dir, config, first)
            write_config(run_dir, config, open_run_dir(run_dir, first))
            begun = (run_dir / "config.yaml").read_bytes()
            if not ended:
                with pytest.raises(UserError, match="is being trained by process"):
                    open_run_dir(run_dir, second)
        if ended:
            with pytest.raises(UserError, match="Another run began in"):
                open_run_dir(run_dir, second)
    assert (run_dir / "config.yaml").read_bytes() == begun


def test_a_run_that_ended_before_it_began_leaves_the_directory_to_the_next(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(tmp_path, run_dir)
    with RunDirLock(0.2) as second:
        check_run_dir(run_dir, config, second)
        with RunDirLock(0.2) as first:
            check_run_dir(run_dir, config, first)
            open_run_dir(run_dir, first)
        assert open_run_dir(run_dir, second)["run_id"]


def broken_lock(path: Path, what: str) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path.name)
    else:
        path.mkdir()


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "loop"])
def test_a_lock_that_is_no_file_is_told(what: str, tmp_path: Path) -> None:
    broken_lock(tmp_path / ".lock", what)
    with pytest.raises(UserError, match=r"no regular file|cannot be written"), RunDirLock(0.2) as lock:
        lock.take(tmp_path)


@pytest.mark.parametrize(
    "line", ['"epoch": "x"', '"val/loss": [1]', '"val/loss": true', f'"epoch": {10**400}', '"a": {}']
)
def test_a_line_of_scores_holds_numbers(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, {line}}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_what_python_writes_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": NaN, "b": -Infinity, "c": null, "d": 1, "e": 1e-3}\n')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.holds("A full disk ends the run with the cause")
@pytest.mark.parametrize("file", ["split.json", "config.yaml", "metrics.jsonl"])
def test_a_full_disk_at_the_start_is_told_and_leaves_nothing_half(
    file: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == f".{file}.part":
            really(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        train(tiny_config(folder, run_dir, train={"epochs": 1}))
    assert not (run_dir / file).exists()
    assert not list(run_dir.glob(".*.part"))
    monkeypatch.undo()
    train(tiny_config(folder, run_dir, train={"epochs": 1}))


@pytest.mark.parametrize("text", ["", "[]", "null", "x", "1"])
def test_a_configuration_without_sections_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_run(tmp_path)


def test_predictions_without_rows_are_told(tmp_path: Path) -> None:
    save_predictions(tmp_path / "predictions.parquet", {}, {}, ("rose", "tulip"))
    with pytest.raises(UserError, match="it has no rows"):
        load_predictions(tmp_path / "predictions.parquet")


def test_what_the_system_refuses_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere/x")

    monkeypatch.setattr("accel_flowers.cli.train.recipe_names", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["recipes"])
    assert ended.value.code == 2
    assert "'somewhere/x': Read-only file system" in capsys.readouterr().err
