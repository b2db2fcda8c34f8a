"""Files from outside: what is no regular file, too large, no text or no JSON is told, and nothing waits for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_flowers.core.reading import parse_json, read_file, read_text


def cause(path: str | Path) -> str:
    """Why it cannot be read, as the operating system would put it."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - what it says is what this returns
        read_text(path, max_bytes=2**20)
    assert caught.value.filename == str(path)
    assert caught.value.strerror
    return caught.value.strerror


def test_a_file_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "a b\n"
    file.write_bytes("Glöckchen\r\n".encode())
    (tmp_path / "link").symlink_to(file)
    assert read_text(file, max_bytes=100) == read_text(tmp_path / "link", max_bytes=100) == "Glöckchen\r\n"
    assert read_file(str(file), max_bytes=100) == file.read_bytes()


def test_the_limit_is_allowed_and_one_more_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(2**20))
    assert len(read_file(file, max_bytes=2**20)) == 2**20
    file.write_bytes(bytes(2**20 + 1))
    assert cause(file) == "larger than the 1 MiB allowed"
    os.truncate(file, 2**42)
    assert cause(file) == "larger than the 1 MiB allowed"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert cause(tmp_path / "pipe") == "not a regular file"
    assert cause("/dev/zero") == "not a regular file"
    assert cause(tmp_path) == "Is a directory"
    assert cause(tmp_path / "none") == "No such file or directory"
    assert cause(tmp_path / "loop") == "Too many levels of symbolic links"
    assert cause("x" * 5000) == "File name too long"
    assert cause("a\0b") == "its name holds a NUL character"


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, "/dev/zero"):
        cause(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "ä".encode("latin-1"), "{}".encode("utf-16")])
def test_what_is_no_text(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert cause(tmp_path / "file").startswith("no UTF-8 text ('utf-8' codec can't decode byte")


def test_json_comes_back() -> None:
    assert parse_json('{"a": [1, {"b": null, "a": 2}]}') == {"a": [1, {"b": None, "a": 2}]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ('{"a": ' * 100_000, "it is nested too deeply"),
        ('[{"a": 1, "b": 2, "a": 3}]', "it has 'a' twice"),
        ("9" * 10_000, "digits"),
        ("\ufeff{}", "BOM"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_json(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(text)
