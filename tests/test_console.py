"""What cannot be printed: a log is no reason to end a run, and a result that is lost is told."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from accel_flowers.cli.main import main
from accel_flowers.core.console import Lenient, Progress, wrap_at_words, write_error, write_result
from tests.broken_streams import KINDS, open_broken
from tests.conftest import make_folder
from tests.ranks import Ranks
from tests.runs import PROGRAM, PROJECT, metrics, write_recipe


@pytest.mark.holds("What cannot be printed ends no run")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_whatever_becomes_of_its_log(kind: str, tmp_path: Path) -> None:
    photos, recipe, run_dir = make_folder(tmp_path / "photos"), write_recipe(tmp_path / "recipe.yaml"), tmp_path / "run"
    words = [kind, "train", recipe, "--data.path", photos, "--run-dir", run_dir]
    with Ranks(tmp_path, words, entry="tests.broken_streams:run") as ranks:
        assert ranks.codes(60) == [0], ranks.output()
    assert len(metrics(run_dir, "val/loss")) == 2
    assert (run_dir / "model/config.json").exists()


@pytest.mark.holds("What cannot be printed ends no run")
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["launch-config"]], ids=" ".join)
def test_a_result_that_cannot_be_printed_is_told(kind: str, words: list[str]) -> None:
    """Silently where a reader has seen enough. Python itself would fail once more, with 120, while it ends."""
    broken = open_broken(kind)
    done = subprocess.run(
        [sys.executable, *PROGRAM, *words], stdout=broken, stderr=subprocess.PIPE, text=True, cwd=PROJECT, timeout=60, check=False
    )  # fmt: skip
    os.close(broken)
    assert done.returncode == 1
    cause = {"full": "No space left on device", "terminal gone": "Input/output error"}.get(kind)
    assert done.stderr == (f"accel-flowers: the result cannot be printed: {cause}\n" if cause else "")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_mistake_keeps_its_exit_code(kind: str) -> None:
    broken = open_broken(kind)
    done = subprocess.run(
        [sys.executable, *PROGRAM, "nosuch"], stdout=broken, stderr=broken, cwd=PROJECT, timeout=60, check=False
    )
    os.close(broken)
    assert done.returncode == 2


def test_what_others_print_fails_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the user's own may print; the result is another matter."""
    monkeypatch.setattr("accel_flowers.cli.train.recipe_names", lambda: print("hello") or [])
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr("accel_flowers.cli.train.write_result", lambda text: None)
        with pytest.raises(SystemExit) as ended:
            main(["recipes"])
        monkeypatch.undo()
    assert ended.value.code == 1, "what is still to be written is the result, too"


def test_a_stream_that_works_again_is_written_again() -> None:
    class Sometimes(io.StringIO):
        full = False

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Sometimes()
    lenient = Lenient(stream)
    for line, full in (("one", False), ("two", True), ("three", False)):
        stream.full = full
        print(line, file=lenient, flush=True)
    assert stream.getvalue() == "one\nthree\n"


def test_a_bar_and_a_line_know_that_they_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, 0, enabled=True) as progress:
        progress.step(1, loss=1, lr=1, images_per_second=1)
        tqdm.write("a line", file=sys.stderr)
    assert (
        "\ra line\n" in terminal.getvalue() or "\x1b[A" in terminal.getvalue() or "\r          " in terminal.getvalue()
    )


def test_results_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_result("one\ntwo")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_message_is_broken_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    message = f"{'word ' * 40}\naccel-flowers train {'--a-flag 1 ' * 20}\n  {'indented ' * 20}\nshort"
    monkeypatch.setenv("COLUMNS", "80")
    streams = Terminal(), io.StringIO()
    for stream in streams:
        monkeypatch.setattr(sys, "stderr", stream)
        write_error(message)
    assert streams[0].getvalue() == f"{wrap_at_words(f'accel-flowers: {message}', 80)}\n"
    assert streams[1].getvalue() == f"accel-flowers: {message}\n", "a file is searched by line"
    terminal = wrap_at_words(f"accel-flowers: {message}", 80)
    lines = terminal.split("\n")
    assert [line for line in lines if len(line) > 80] == [message.split("\n")[1]], "a command is copied whole"
    assert terminal.split() == f"accel-flowers: {message}".split()
    assert all(line.startswith("  ") for line in lines if "indented" in line)
