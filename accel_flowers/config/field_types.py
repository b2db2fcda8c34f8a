"""Types of the fields of a configuration: what a value may be in a recipe, on the command line and in Python."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import tyro
from pydantic import (
    AfterValidator,
    ConfigDict,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from accel_flowers.core import registry
from accel_flowers.core.yaml_text import flow_yaml, parse_yaml


def allowed(words: str) -> WrapValidator:
    """One message for a value of several possible forms, instead of one for each form that it has not."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"must be {words}") from None

    return WrapValidator(check)


ThreeNumbers = Annotated[tuple[float, float, float], allowed("three numbers: for red, green and blue")]


def _above_zero(value: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(value) <= 0:
        raise ValueError("a standard deviation must be above 0")
    return value


StandardDeviation = AfterValidator(_above_zero)
"""Pixels are divided by it, here and in a saved model."""

PLAIN_VALUE = TypeAdapter[JsonValue](JsonValue, config=ConfigDict(allow_inf_nan=False))

TransformSpec = Annotated[
    str | dict[str, Any],
    AfterValidator(PLAIN_VALUE.validate_python),  # no dates, sets or circles of YAML's, which no file would hold again
    allowed("the name of a transform, or its name with arguments: 'Resize: {size: 256}'"),
]
"""`"RandomHorizontalFlip"` or `{"RandomResizedCrop": {"size": 224}}`: a torchvision v2 transform and its arguments."""

AUTO = "auto"
"""What people write for "as the network was trained"; it is None in a configuration."""

_TransformList = tuple[TransformSpec, ...]
TransformList = Annotated[
    _TransformList | None,
    # On the command line a list of transforms is one argument in YAML's flow style.
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=lambda words: parse_yaml(words[0], "the list of transforms"),
        is_instance=lambda value: value is None or isinstance(value, (list, tuple)),
        str_from_instance=lambda transforms: [AUTO if transforms is None else flow_yaml(list(transforms))],
    ),
]


Options = Annotated[
    dict[str, Any],
    AfterValidator(PLAIN_VALUE.validate_python),
    allowed("a mapping of names to plain values: '{gamma: 2}'"),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=lambda words: parse_yaml(words[0], "the options"),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda options: [flow_yaml(options)],
    ),
]
"""Arguments of a part, by name; on the command line one word in YAML's flow style."""


ONE_OR_MORE_TRANSFORMS = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="YAML",
    instance_from_str=lambda words: parse_yaml(words[0], "the transform"),
    is_instance=lambda value: value is None or isinstance(value, (str, dict, list)),
    str_from_instance=lambda transform: [transform if isinstance(transform, str) else flow_yaml(transform)],
)


def known(kind: registry.Kind, *built_in: str, of_timm: bool = False) -> AfterValidator:
    """The name of a built-in part, or of a registered one of the user's own; or of timm, which is asked when it is built."""

    def check(name: str) -> str:
        if of_timm and name.startswith(registry.TIMM_PREFIX):
            return name
        if name not in built_in and registry.find(kind, name) is None:
            raise ValueError(registry.unknown(kind, name, built_in))
        return name

    return AfterValidator(check)


def named_each(value: Any) -> Any:
    """See that each of a list is a name, or one name with its arguments."""
    for spec in value if isinstance(value, list) else [value]:
        if isinstance(spec, dict) and len(spec) != 1:
            raise ValueError(
                "one with arguments is one name and their values; several are a list: '[mixup, progressive_size]'"
            )
    return value


def part_name(spec: str | dict[str, Any]) -> str:
    """Of a part that is given by its name, or by its name with arguments."""
    return spec if isinstance(spec, str) else str(next(iter(spec), ""))


def _tracker(spec: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(spec, dict) and (len(spec) != 1 or not isinstance(next(iter(spec.values())), dict | None)):
        raise ValueError("a tracker with arguments is one name and their values: 'my/live: {port: 80}'")
    name = part_name(spec)
    if name not in ACCELERATES_TRACKERS and registry.find("tracker", name) is None:
        raise ValueError(registry.unknown("tracker", name, ACCELERATES_TRACKERS))
    return spec


ACCELERATES_TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of the trackers that Accelerate has; whether one is installed is seen when it is built."""

TrackerList = Annotated[
    tuple[
        Annotated[
            str | dict[str, Any],
            AfterValidator(PLAIN_VALUE.validate_python),
            allowed("the name of a tracker, or its name with arguments: 'my/live: {port: 80}'"),
            AfterValidator(_tracker),
        ],
        ...,
    ],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=lambda words: _as_list(parse_yaml(words[0], "the trackers")),
        is_instance=lambda value: isinstance(value, (list, tuple)),
        str_from_instance=lambda trackers: [flow_yaml(list(trackers))],
    ),
]


def _as_list(value: Any) -> Any:
    """One tracker need not stand in brackets."""
    return [value] if isinstance(value, (str, dict)) else value


UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path as people write it, "~/photos" too; other words, such as "80/20", stay as they are."""


def is_utf8(text: str) -> bool:
    """Not so where the shell gave bytes of another encoding, which no file of a run could hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def transform_parts(*specs: TransformSpec) -> list[str]:
    """Names of the transforms, also of those inside others, that have the form of a user's own."""
    found: list[str] = []
    for spec in specs:
        name, arguments = (spec, None) if isinstance(spec, str) else next(iter(spec.items()))
        if registry.is_own_name(str(name)):
            found.append(str(name))
        inner = arguments.get("transforms") if isinstance(arguments, dict) else None
        if isinstance(inner, list):
            found += transform_parts(*inner)
    return found


def regular_expression(pattern: str) -> str:
    """For a pydantic field: a pattern that Python's `re` takes.

    Raises:
        ValueError: it does not.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern
