"""YAML as people mean it: YAML 1.2, strict about repeated keys, its mistakes told with their lines."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from accel_flowers.errors import UserError


def parse_yaml(text: str, source: str) -> Any:
    """YAML 1.2 as plain Python values; a repeated key is an error, `1e-4` is a number, `no` is a string.

    Raises:
        UserError: when the text is no YAML; the message names `source` and the line.
    """
    try:
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
