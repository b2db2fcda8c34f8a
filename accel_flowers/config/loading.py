"""Recipes and command-line flags → a `Config`: every mistake in one message, none as a traceback."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError

from accel_flowers.config.habits import as_ours
from accel_flowers.config.schema import Config, Section
from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.core.reading import read_text
from accel_flowers.core.yaml_text import MAX_BYTES, parse_yaml

RECIPES = resources.files("accel_flowers.config") / "recipes"

ENVIRONMENT_KEY = "environment"
"""Key under which a run's config.yaml records versions and hardware; ignored when such a file is read as a recipe."""
PARTS_KEY = "parts"
"""Key inside it: the user's own parts, with the modules that they came from."""
_SHOWN_MISTAKES = 50
_SHORT = reprlib.Repr()
"""Writes what was given in a line, whatever it is."""
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = (
    5,
    9,
    9,
    200,
    50,
    200,
)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe by name or a YAML file by path.

    Args:
        name_or_path: a name of `recipe_names`, or a file.
        overrides: dotted names of fields → values that go over the recipe's: `{"train.epochs": 5, "run_dir": "runs/a"}`.

    Raises:
        UserError: unknown name, unreadable file, or mistakes in it or in the overrides (all of them in one message).
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):  # unlike Path's, it answers for any name
        recipe = read_config(path, what=f"The recipe {path}")
    else:
        names = recipe_names()
        if name_or_path not in names:
            raise UserError(
                f"There is no recipe '{name_or_path}'.{did_you_mean(str(name_or_path), names)} "
                f"Recipes: {', '.join(names)}. A recipe of your own is the path of a .yaml file."
            )
        recipe = config_from_yaml(
            (RECIPES / f"{name_or_path}.yaml").read_text("utf-8"), source=f"recipe {name_or_path}"
        )
    return with_overrides(recipe, overrides) if overrides else recipe


def with_overrides(recipe: Config, overrides: Mapping[str, Any], *, what: str = "The overrides") -> Config:
    """The recipe with values put over it: dotted name → value.

    Raises:
        UserError: all mistakes in one message, which calls them `what`.
    """
    values = recipe.model_dump()
    for name, value in overrides.items():
        *sections, field = name.split(".")
        place: Any = values
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[field] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{what} have mistakes:\n{describe_mistakes(error)}") from None


def read_config(path: Path, *, what: str) -> Config:
    """Read and validate a file.

    Args:
        path: the file.
        what: how a message calls it where it cannot be read.

    Raises:
        UserError: an unreadable file, or mistakes in it.
    """
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}.") from None
    return config_from_yaml(text, source=str(path))


def config_from_yaml(text: str, *, source: str) -> Config:
    """Validate the text of a recipe.

    Raises:
        UserError: naming every mistake with its place, what was given and what is allowed.
    """
    values = parse_yaml(text, source)
    if values is None:
        raise UserError(f"{source} is empty: a recipe has sections such as 'data:' and 'train:'.")
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold sections such as 'data:' and 'train:', not {type(values).__name__}.")
    environment = values.pop(ENVIRONMENT_KEY, None)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        hint = _recorded_modules(environment)
        raise UserError(f"{source} has mistakes:\n{describe_mistakes(error)}{hint}") from None


def _recorded_modules(environment: object) -> str:
    """Which modules a run's own parts came from, as it says itself; they are named, never imported."""
    parts = environment.get(PARTS_KEY) if isinstance(environment, dict) else None
    if not isinstance(parts, dict):
        return ""
    said = [
        f"\n  The run took {name} from the Python module {part.get('module')!s}."
        for name, part in list(parts.items())[:_SHOWN_MISTAKES]
        if isinstance(part, dict) and "module" in part  # not so a teacher
    ]
    return "".join(said)


def config_from_flags(recipe: Config, words: Sequence[str], *, program: str, speaks: bool = True) -> Config:
    """The recipe with command-line flags put over it; `--help` among the words prints every field and exits.

    tyro reads the words into unchecked sections first, so that one message can name all mistakes at once.

    Args:
        recipe: what the flags go over.
        words: the flags and their values.
        program: how the messages call the command.
        speaks: False on all processes but one, so that tyro's messages come once.

    Raises:
        UserError: naming every value that is not allowed, or a flag that there is not.
        SystemExit: status 2 for a word that is no value for its flag, after tyro's message.
    """
    unchecked = tyro.cli(
        Config,
        default=recipe,
        args=as_ours(words),
        prog=program,
        description=_DESCRIPTION,
        console_outputs=speaks,
        registry=_UNCHECKED,
    )
    try:
        return Config.model_validate(unchecked.model_dump(warnings=False))
    except ValidationError as error:
        raise UserError(f"The command line has mistakes:\n{describe_mistakes(error)}") from None


_DESCRIPTION = (
    "Fine-tune an image classifier. RECIPE is a name (see `accel-flowers recipes`) or a YAML file; flags go over it. "
    "Several runs as one: --seeds 5 (or --seeds 3,7,11) or --folds 5, with --keep ensemble or soup for one model of all."
)

_UNCHECKED = tyro.constructors.ConstructorRegistry()


@_UNCHECKED.struct_rule
def _unchecked_section(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    if not (isinstance(info.type, type) and issubclass(info.type, Section)):
        return None
    hints = get_type_hints(info.type, include_extras=True)
    fields = tuple(
        tyro.constructors.StructFieldSpec(
            name=name, type=hints[name], default=getattr(info.default, name), helptext=field.description
        )
        for name, field in info.type.model_fields.items()
    )
    return tyro.constructors.StructConstructorSpec(instantiate=info.type.model_construct, fields=fields)


def describe_mistakes(error: ValidationError) -> str:
    """Every mistake on a line of its own: the field, what was given, what is allowed."""
    mistakes = error.errors()
    lines = [_describe_mistake(mistake) for mistake in mistakes[:_SHOWN_MISTAKES]]
    more = len(mistakes) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more"] if more else [])])


def _describe_mistake(mistake: Mapping[str, Any]) -> str:
    location = [str(part) for part in mistake["loc"]]
    section, known = _resolve(location)
    if mistake["type"] == "extra_forbidden":
        allowed = sorted(section.model_fields)
        hint = did_you_mean(location[len(known)], allowed)
        field = ".".join(location[: len(known) + 1])
        return f"  {field}: there is no such field.{hint} Allowed here: {', '.join(allowed)}."
    field = ".".join(known)
    if mistake["type"] != "invalid_key":  # then a number is a place in a list
        field += "".join(f"[{place}]" for place in mistake["loc"][len(known) :] if isinstance(place, int))
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "tuple_type":
        message = "must be a list"
    if mistake["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a section with fields of its own: {', '.join(section.model_fields)}"
    given = mistake["input"]
    shown = "" if isinstance(given, (BaseModel, dict)) else f" (given: {_SHORT.repr(given)})"
    return f"  {field or 'configuration'}: {message}{shown}"


def _resolve(location: list[str]) -> tuple[type[BaseModel], list[str]]:
    """The section that a mistake lies in, and the leading part of its location that names real fields."""
    section: type[BaseModel] = Config
    known: list[str] = []
    for part in location:
        if part not in section.model_fields:
            break
        known.append(part)
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return section, known
