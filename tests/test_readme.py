"""The README is true: its commands are understood, its file tree and tables name what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from accel_flowers.cli.commands import COMMANDS
from accel_flowers.config.loading import config_from_flags, load_recipe, recipe_names
from tests.runs import PROJECT

README = (PROJECT / "README.md").read_text()


def commands() -> list[list[str]]:
    """The words of every `accel-flowers` and `accelerate launch` command of the README and the recipes' headers."""
    texts = [
        README,
        *(file.read_text().replace("#", " ") for file in sorted((PROJECT / "accel_flowers/config/recipes").iterdir())),
    ]
    found = []
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r" {2,}(accel-flowers|accelerate launch) ", line):
                found += [shlex.split(part, comments=True) for part in line.split("&&")]
    return found


def program_words(words: list[str]) -> list[str]:
    """What `accel-flowers` gets, also behind the launcher."""
    return words[1:] if words[0] == "accel-flowers" else words[words.index("accel_flowers") + 1 :]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_is_understood(words: list[str]) -> None:
    command, *rest = program_words(words)
    assert command in COMMANDS
    if command == "train":
        config_from_flags(load_recipe(rest[0]), rest[1:], program="accel-flowers train")
    for word in words:
        if word.startswith("accelerate_configs/"):
            assert (PROJECT / word).is_file()


def test_there_are_commands() -> None:
    assert {program_words(words)[0] for words in commands()} >= {"train", "inspect", "evaluate", "predict", "sample"}


def test_every_package_is_named() -> None:
    packages = sorted(file.parent.name for file in (PROJECT / "accel_flowers").glob("*/__init__.py"))
    assert len(packages) > 10
    assert [name for name in packages if f"| `{name}/` |" not in README] == []
    table = README.split("## Where things are")[1]
    assert sorted(re.findall(r"^\| `(\w+)/` \|", table, flags=re.MULTILINE)) == packages


def test_tables_name_every_recipe_and_configuration() -> None:
    results = (PROJECT / "RESULTS.md").read_text()
    for name in recipe_names():
        assert f"`{name}`" in README, name
        assert f"`{name}`" in results, name
    for file in (PROJECT / "accelerate_configs").iterdir():
        assert f"`accelerate_configs/{file.name}`" in README


def test_project_speaks_of_itself() -> None:
    """No path of a machine, no package registry's host."""
    hosts = "|".join(
        ("python" + "hosted", "pypi" + r"\.org", "registry" + r"\.npmjs")
    )  # in pieces: not to be found here
    forbidden = re.compile(rf"/home/|/root/|/Users/|{hosts}")
    files = [
        file
        for pattern in ("*.md", "*.toml", "accel_flowers/**/*.*", "scripts/*", "accelerate_configs/*", "tests/*.py")
        for file in PROJECT.glob(pattern)
        if file.is_file() and file.suffix != ".pyc" and file != Path(__file__)
    ]
    assert len(files) > 60
    assert [file for file in files if forbidden.search(file.read_text())] == []
