"""What several commands need."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import tyro

from accel_flowers.config.loading import recipe_names
from accel_flowers.core.errors import UserError, did_you_mean

IMPORT_FLAG = "--import"


def expand_home(word: str) -> str:
    """A word of the command line as a shell would have made it: those expand "~/x" alone, not that of "--out=~/x"."""
    flag, is_, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{is_}{os.path.expanduser(value)}"


def split_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that `--import` names, wherever it stands, and the other words.

    Raises:
        UserError: the flag without a module.
    """
    modules: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == IMPORT_FLAG:
            module = next(waiting, None)
            if module is None or module.startswith("-"):
                raise UserError(
                    f"{IMPORT_FLAG} wants a module: {IMPORT_FLAG} my_parts, or {IMPORT_FLAG} parts/my_parts.py."
                )
            modules.append(module)
        elif word.startswith(f"{IMPORT_FLAG}="):
            modules.append(word.removeprefix(f"{IMPORT_FLAG}="))
        else:
            rest.append(word)
    return modules, rest


_ALIASES = {
    "--output": "--out",
    "--output-dir": "--out",
    "--out-dir": "--out",
    "-o": "--out",
    "--data-dir": "--data",
    "--data-path": "--data",
    "--data.path": "--data",
    "--dataset": "--data",
    "--workers": "--num-workers",
    "--data.num-workers": "--num-workers",
    "--data.on-bad-image": "--on-bad-image",
    "--data.label-column": "--label-column",
    "--model.weights": "--weights",
    "--model.name": "--backbones",
    "--backbone": "--backbones",
    "--num-folds": "--folds",
    "--topk": "--top-k",
    "-k": "--top-k",
    "--num-images": "--images-per-class",
    "--per-class": "--images-per-class",
    "--size": "--image-size",
}
"""Flags as people know them from elsewhere → ours; taken where the command has the latter."""
_DEVICE = "the first GPU is taken where there is one; hide it by CUDA_VISIBLE_DEVICES= in front"
_ANSWERS = {"--device": _DEVICE, "--gpu": _DEVICE, "--cpu": _DEVICE}

_Words = TypeVar("_Words")


def parse_words(kind: type[_Words], words: Sequence[str], command: str, *, answers: Mapping[str, str] = {}) -> _Words:
    """The words after a command as its dataclass; flags known from elsewhere are taken for ours where they mean the same.

    Args:
        kind: a dataclass of what the command takes.
        words: of the command line.
        command: its name.
        answers: flags that it has not → what to do instead.

    Raises:
        UserError: a flag that there is not, in a line, with what to type instead.
    """
    known = set(_flags(kind))
    taken: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        is_flag = word.startswith("-") and (word.startswith("--") or flag in _ALIASES)
        if not is_flag or flag in known or flag == "--help":
            taken.append(word)
        elif _ALIASES.get(flag) in known:
            taken.append(f"{_ALIASES[flag]}{equals}{value}")
        elif answer := {**_ANSWERS, **answers}.get(_ALIASES.get(flag, flag)):
            raise UserError(f"There is no flag {name} here: {answer}.")
        else:
            hint = did_you_mean(flag, sorted(known))
            raise UserError(f"There is no flag {name}.{hint} accel-flowers {command} --help tells all.")
    return tyro.cli(kind, args=taken, prog=f"accel-flowers {command}")


def _flags(kind: type) -> Iterator[str]:
    """Every flag of a dataclass, those that switch off too."""
    for field in dataclasses.fields(kind):
        if "Positional" in str(field.type):
            continue
        dashed = field.name.replace("_", "-")
        yield f"--{dashed}"
        if field.type in (bool, "bool"):
            yield f"--no-{dashed}"


def check_recipe_first(kind: type, words: Sequence[str], program: str) -> None:
    """See that a recipe is the first word after a command that trains one; `--help` there prints the command's own flags and exits.

    Args:
        kind: a dataclass of what the command takes beside the recipe's fields.
        words: after the command.
        program: how messages call it.

    Raises:
        UserError: it is not.
    """
    if words and words[0] in ("-h", "--help"):
        tyro.cli(kind, args=["--help"], prog=program)
    if not words or words[0].startswith("-"):
        raise UserError(f"RECIPE comes first: {program} --data.path DIR. Recipes: {', '.join(recipe_names())}.")
