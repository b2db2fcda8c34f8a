"""What `tune` searches: fields of a recipe, each with a range or a list of values.

"optim.lr=1e-4:1e-1" is a range, searched evenly on a scale of powers where it spans a factor of ten or more and 0 is not in it;
"loss.label_smoothing=0,0.1" is a list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_flowers.config.loading import with_overrides
from accel_flowers.config.schema import Config, flat_fields
from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.core.yaml_text import parse_yaml

_POWERS = 10.0
"""From this factor between its ends on a range is searched on a scale of powers."""
_EXAMPLES = "--search optim.lr=1e-4:1e-1 loss.label_smoothing=0,0.1"
_NOT_SEARCHED = (
    "run_dir",
    "resume",
    "data.path",
    "data.split",
    "train.seed",
    "train.best_metric",
    "tracking",
    "checkpoint",
    "debug",
)
"""What a comparison holds still."""


@dataclass(frozen=True)
class Range:
    """Numbers between two ends."""

    low: float
    high: float
    whole: bool
    """Whole numbers alone: both ends are."""

    @property
    def log(self) -> bool:
        """Whether it is searched on a scale of powers."""
        return self.low > 0 and self.high >= _POWERS * self.low


Choices = tuple[Any, ...]
Space = Mapping[str, Range | Choices]
"""Dotted name of a field → where its value is searched."""


def default_space(config: Config) -> Space:
    """What most recipes are worth searching for: a rate up to ten times lower or higher, and two ways against overfitting."""
    lr, decay = config.optim.lr, config.optim.weight_decay
    return {
        "optim.lr": Range(lr / 10, lr * 10, whole=False),
        "optim.weight_decay": tuple(sorted({0.0, 1e-4, 1e-2, decay})),
        "loss.label_smoothing": tuple(sorted({0.0, 0.1, config.loss.label_smoothing})),
    }


def parse_space(words: Sequence[str], config: Config) -> Space:
    """Read what `--search` says.

    Args:
        words: "FIELD=LOW:HIGH" or "FIELD=A,B,C".
        config: has the fields.

    Raises:
        UserError: no such field, one that a comparison must hold still, or values that it does not take.
    """
    space: dict[str, Range | Choices] = {}
    known = [name for name in flat_fields(config) if not _held_still(name)]
    for word in words:
        name, equals, text = word.partition("=")
        field = name.removeprefix("--").replace("-", "_")
        if not equals or not text:
            raise UserError(f"--search {word}: give a field and its values: {_EXAMPLES}")
        if _held_still(field):
            raise UserError(f"--search {field}: all trials must have the same, else their scores cannot be compared.")
        if field not in known:
            raise UserError(
                f"--search: there is no field '{field}'.{did_you_mean(field, known)} For example: {_EXAMPLES}"
            )
        space[field] = _parse_values(field, text)
        for value in _ends(space[field]):
            with_overrides(config, {field: value}, what=f"--search {field}")
    return space


def _held_still(field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in (*_NOT_SEARCHED, "about"))


def _parse_values(field: str, text: str) -> Range | Choices:
    low, colon, high = text.partition(":")
    if not colon:
        values = tuple(parse_yaml(value, f"--search {field}") for value in text.split(","))
        if len(values) < 2 or len({str(value) for value in values}) < len(values):
            raise UserError(
                f"--search {field}={text}: give two or more different values, or a range such as {field}=1:10."
            )
        return values
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"--search {field}={text}: a range has two numbers, such as {field}=1e-4:1e-1.") from None
    if not (ends[0] < ends[1] and all(map(math.isfinite, ends))):
        raise UserError(f"--search {field}={text}: the first number of a range is the lower one.")
    whole = all(end.strip().lstrip("-").isdigit() for end in (low, high))
    return Range(*ends, whole=whole)


def _ends(values: Range | Choices) -> list[Any]:
    if isinstance(values, Range):
        ends = [values.low, values.high]
        return [int(end) for end in ends] if values.whole else ends
    return list(values)


def holds(space: Space, config: Config) -> dict[str, Any] | None:
    """The recipe's own values, where all of them lie inside."""
    own = {name: flat_fields(config)[name] for name in space}
    return own if all(_inside(space[name], value) for name, value in own.items()) else None


def _inside(values: Range | Choices, value: Any) -> bool:
    if isinstance(values, Range):
        return isinstance(value, (int, float)) and values.low <= value <= values.high
    return value in values


def in_words(values: Mapping[str, Any]) -> str:
    """Field and value of each."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_flags(values: Mapping[str, Any]) -> Iterable[str]:
    """What to type for them."""
    return (f"--{name.replace('_', '-')} {_short(value)}" for name, value in values.items())
