"""YAML as people mean it: YAML 1.2, strict about repeated keys, its mistakes told with their lines."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from accel_flowers.core.errors import UserError

MAX_BYTES = 2**20
"""Size of a file of YAML; a recipe is a hundredth of that."""
_MAX_VALUES = 20_000
_MAX_DEPTH = 64


def parse_yaml(text: str, source: str) -> Any:
    """YAML 1.2 as plain Python values; a repeated key is an error, `1e-4` is a number, `no` is a string.

    Raises:
        UserError: when the text is no YAML, or more than a recipe can be; the message names `source` and the line.
    """
    try:
        _check_size(text)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        cause = place + ", ".join(words for words in (error.context, error.problem) if words)
    except RecursionError:
        cause = "it is nested too deeply"
    except YAMLError as error:
        cause = str(error)
    except Exception as error:  # noqa: BLE001 - an impossible date or a tag on nonsense make its reader fail in any way
        cause = f"a value in it cannot be read ({str(error) or type(error).__name__})"
    raise UserError(f"{source} is not valid YAML: {cause}")


def _check_size(text: str) -> None:
    """Refuse what a few lines of aliases to aliases would blow up to, before anything of it is made.

    Raises:
        YAMLError: too many values, each counted as often as aliases repeat it, or too many levels.
    """
    if len(text) > MAX_BYTES:
        raise YAMLError(f"it has more than {MAX_BYTES:,} characters")
    sizes: dict[str, int] = {}  # of what each anchor names
    open_collections: list[tuple[str | None, int]] = []  # its anchor, and how many values there were before it
    values = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_collections.append((event.anchor, values))
            values += 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_collections.pop()
            if anchor:
                sizes[anchor] = values - before
        elif isinstance(event, AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_collections):
                raise YAMLError(f"the alias *{event.anchor} stands inside of what it names")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent):
            values += 1
        if values > _MAX_VALUES:
            raise YAMLError(f"it has more than {_MAX_VALUES:,} values, those that aliases repeat counted each time")
        if len(open_collections) > _MAX_DEPTH:
            raise YAMLError("it is nested too deeply")


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Block-style YAML with the keys in their given order."""
    yaml = YAML()
    yaml.width = 2**31  # no line is broken: ruamel.yaml loses tabs where it breaks one
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()


def flow_yaml(values: list[Any]) -> str:
    """A list on one line, as a command-line argument holds it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 10_000
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue().strip()
