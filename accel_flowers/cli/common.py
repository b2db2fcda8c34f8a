"""What several commands need."""

from __future__ import annotations

import os
from collections.abc import Sequence

from accel_flowers.core.errors import UserError

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
