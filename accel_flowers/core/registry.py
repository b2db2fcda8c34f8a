"""Names → parts: how a transform, model, loss, task, metric, optimizer or tracker of the user's own comes in.

Built-in parts have plain names (`resnet18`, `adamw`); a user's have a prefix (`my/rain`), so that no later version of this
program can take a name away. Code comes in only by `import_parts`, which the command line's `--import` calls, or by
`register` in Python: never because a recipe, a run directory or a saved model names it. What was taken is recorded with
the name and digest of its module, so that a reader without it can be told what to add.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from accel_flowers.core.errors import UserError, did_you_mean

Kind = Literal["transform", "batch_transform", "model", "loss", "task", "metric", "optimizer", "tracker"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TIMM_PREFIX = "timm/"
"""Of timm's networks and optimizers, and so of no part of a user's own."""
_NAME = re.compile(rf"(?!{TIMM_PREFIX})[A-Za-z][\w.-]*/[A-Za-z][\w.-]*")
_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part:
    """A registered part."""

    kind: Kind
    name: str
    make: Callable[..., Any]
    """What makes it; what it takes and gives depends on the kind (docs/extending.md)."""
    options: Mapping[str, Any]
    """What else was said of it, for example `lower_is_better` of a metric."""

    @property
    def module(self) -> str:
        """Name of the module that defines it."""
        return str(_definition(self.make).__module__)

    def described(self) -> dict[str, str]:
        """Module and digest of its source, for the files of a run."""
        try:
            file = inspect.getsourcefile(_definition(self.make))
            source = Path(file).read_bytes() if file else b""
        except (OSError, TypeError):  # typed into a notebook or an interpreter
            source = b""
        digest = hashlib.blake2b(source, digest_size=16).hexdigest() if source else "unknown"
        return {"module": self.module, "digest": digest}


def _definition(make: Any) -> Any:
    """The class or function behind what was registered, which may be a partial function or an object."""
    while isinstance(make, functools.partial):
        make = make.func
    return make if inspect.isclass(make) or inspect.isroutine(make) else type(make)


_parts: dict[tuple[Kind, str], Part] = {}


def register(kind: Kind, name: str, **options: Any) -> Callable[[_T], _T]:
    """Give a part of your own a name: `@register("transform", "my/rain")` above a class or function.

    Registering the same name again replaces the part, as running a notebook's cell again does.

    Args:
        kind: what it is.
        name: "prefix/name": letters, digits, ".", "_" and "-".
        options: of a metric, `lower_is_better=True`.

    Raises:
        UserError: no such kind, or a name of another form.
    """
    if kind not in KINDS:
        raise UserError(f"register: there is no kind '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"register: a part's name has a prefix of its own and a slash, such as 'my/{kind}', not '{name}'."
        )

    def keep(make: _T) -> _T:
        _parts[kind, name] = Part(kind, name, make, options)
        return make

    return keep


def find(kind: Kind, name: str) -> Part | None:
    """The registered part; None where there is none."""
    return _parts.get((kind, name))


def registered(kind: Kind) -> list[str]:
    """Names of all registered parts of a kind, sorted."""
    return sorted(name for each, name in _parts if each == kind)


def is_own_name(name: object) -> bool:
    """Whether a name has the form of a user's part, and so of none of ours."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def unknown(kind: Kind, name: str, built_in: Iterable[str] = ()) -> str:
    """What to tell somebody whose name is none: what is allowed, and what brings a part of their own in."""
    allowed = [*built_in, *registered(kind)]
    if is_own_name(name):
        known = f" Registered: {', '.join(registered(kind))}." if registered(kind) else ""
        return (
            f"the {kind} '{name}' is not known here.{did_you_mean(name, registered(kind))}{known} It is a part of somebody's own: "
            "add --import MODULE (or accel_flowers.register in Python), where MODULE is the Python module that registers it"
        )
    return f"there is no {kind} '{name}'.{did_you_mean(name, allowed)}" + (
        f" Allowed: {', '.join(allowed)}" if allowed else ""
    )


def described(named: Mapping[Kind, Sequence[str]]) -> dict[str, dict[str, str]]:
    """ "kind my/name" → module and digest of each registered part among these names; built-in ones are left out."""
    return {
        f"{kind} {name}": part.described()
        for kind, names in named.items()
        for name in names
        if (part := find(kind, name))
    }


def import_parts(modules: Sequence[str]) -> None:
    """Import the user's modules, which register their parts.

    Args:
        modules: names as in `import my_module` (the working directory is searched, too), or paths of .py files.

    Raises:
        UserError: there is no such module, or it fails while it is imported.
    """
    for given in modules:
        folder, name = os.path.split(given[:-3]) if given.endswith(".py") else ("", given)
        place = os.path.abspath(folder or os.curdir)
        if place not in sys.path:
            # At the end: a file of the user's must not stand in for a library. Loader workers get the same path.
            sys.path.append(place)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0]:
                raise UserError(
                    f"--import {given}: it needs the module '{error.name}', which is not installed."
                ) from error
            raise UserError(
                f"--import {given}: there is no module '{name}' in {place} or among the installed ones. "
                "Give a module's name (my_parts) or the path of its file (parts/my_parts.py)."
            ) from None
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--import {given}: it cannot be imported: {type(error).__name__}: {error}.") from error
