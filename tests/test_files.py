"""Files and folders that are replaced: the old one or the new one, whole and on the disk, whatever interrupts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_flowers.core import files
from accel_flowers.core.files import make_folder_once, replace_file, replace_folder, restore_folder, user_cache


class Flushes:
    """What was flushed to the disk and renamed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        really, rename = files.flush_to_disk, Path.rename

        def flush(path: Path) -> None:
            self.names.append(path.name)
            really(path)

        def renamed(path: Path, target: Path) -> Path:
            self.names.append(f"{path.name} -> {Path(target).name}")
            return rename(path, target)

        monkeypatch.setattr(files, "flush_to_disk", flush)
        monkeypatch.setattr(files.os, "sync", lambda: self.names.append("everything"))
        monkeypatch.setattr(Path, "rename", renamed)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Flushes:
    return Flushes(monkeypatch)


def fill(path: Path, content: str) -> None:
    with replace_folder(path) as partial:
        (partial / "in").mkdir()
        (partial / "in/one").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_is_flushed_before_it_gets_its_name(tmp_path: Path, flushes: Flushes) -> None:
    (tmp_path / "x").write_text("old")
    with replace_file(tmp_path / "x") as partial:
        partial.write_text("new")
        assert (tmp_path / "x").read_text() == "old"
    assert contents(tmp_path) == {"x": "new"}
    assert flushes.names == [".x.part", tmp_path.name]


@pytest.mark.parametrize("how", ["the writer fails", "the disk fails"])
def test_a_file_that_could_not_be_written_leaves_the_old_one(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("old")

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    if how == "the disk fails":
        monkeypatch.setattr(files, "flush_to_disk", fail)

    def write() -> None:
        with replace_file(tmp_path / "x") as partial:
            partial.write_text("half")
            if how == "the writer fails":
                fail(partial)

    with pytest.raises(OSError, match="No space"):
        write()
    assert contents(tmp_path) == {"x": "old"}


def test_a_link_left_where_a_file_is_written_aside_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / ".x.part").symlink_to("precious")
    with replace_file(tmp_path / "x") as partial:
        partial.write_text("new")
    assert contents(tmp_path) == {"precious": "keep", "x": "new"}


def test_a_folder_is_flushed_before_it_gets_its_name(tmp_path: Path, flushes: Flushes) -> None:
    fill(tmp_path / "run/model", "first")
    assert flushes.names == ["in", "one", ".model.part", ".model.part -> model", "run"]
    flushes.names.clear()
    fill(tmp_path / "run/model", "second")
    assert flushes.names[3:] == ["model -> .model.old", ".model.part -> model", "run"]
    assert contents(tmp_path) == {"run/model/in/one": "second"}


def test_many_files_are_flushed_at_once(tmp_path: Path, flushes: Flushes) -> None:
    with replace_folder(tmp_path / "x") as partial:
        for number in range(100):
            (partial / str(number)).touch()
    assert flushes.names == ["everything", ".x.part -> x", tmp_path.name]


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_folder_that_could_not_be_filled_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    fill(tmp_path / "x", "old")

    def write() -> None:
        with replace_folder(tmp_path / "x") as partial:
            (partial / "half").touch()
            raise error

    with pytest.raises(type(error)):
        write()
    assert contents(tmp_path) == {"x/in/one": "old"}
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("by", ["the next writer", "a reader"])
def test_a_crash_between_the_two_renames_is_undone(by: str, tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.old")
    (tmp_path / ".x.part").mkdir()
    if by == "a reader":
        restore_folder(tmp_path / "x")
    else:
        with pytest.raises(NotADirectoryError), replace_folder(tmp_path / "x"):
            (tmp_path / "x/in/one/more").touch()
    assert (tmp_path / "x/in/one").read_text() == "old"
    assert not (tmp_path / ".x.old").exists()


def test_what_a_crash_left_after_both_renames_is_removed(tmp_path: Path) -> None:
    fill(tmp_path / "x", "new")
    (tmp_path / ".x.old/in").mkdir(parents=True)
    fill(tmp_path / "x", "newer")
    assert contents(tmp_path) == {"x/in/one": "newer"}
    assert os.listdir(tmp_path) == ["x"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "x", "old")
    really = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == ".x.part":
            raise OSError("no")
        return really(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "x", "new")
    assert contents(tmp_path) == {"x/in/one": "old"}


def test_of_two_that_make_a_folder_at_once_the_first_is_taken(tmp_path: Path) -> None:
    with make_folder_once(tmp_path / "x") as partial:
        (partial / "late").touch()
        (tmp_path / "x").mkdir()
        (tmp_path / "x/early").touch()
    assert os.listdir(tmp_path) == ["x"]
    assert os.listdir(tmp_path / "x") == ["early"]


@pytest.mark.parametrize(
    ("given", "place"), [(None, ".cache"), ("", ".cache"), ("relative", ".cache"), ("/elsewhere", "/elsewhere")]
)
def test_the_cache_of_the_user(given: str | None, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_cache() == tmp_path / place / "accel_flowers"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link", "file", "folder", "nothing"])
@pytest.mark.parametrize("where", ["{}", ".{}.part", ".{}.old"])
def test_whatever_lies_where_a_folder_goes_is_in_nobodys_way(tmp_path: Path, kind: str, where: str) -> None:
    """A pipe that is opened waits for somebody who writes, for ever."""
    there = tmp_path / where.format("model")
    if kind == "pipe":
        os.mkfifo(there)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/kept").touch()
        there.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        there.write_text("old")
    elif kind == "folder":
        there.mkdir()
        os.mkfifo(there / "pipe")
    with replace_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert kind != "link" or (tmp_path / "elsewhere/kept").exists()
