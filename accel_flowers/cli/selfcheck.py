"""`selfcheck`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.cli.common import parse_words
from accel_flowers.cli.launch_config import launch_configs
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.core.signals import signals_stop

_MOST_MINUTES = 24 * 60


@dataclass(frozen=True)
class _SelfcheckWords:
    """Try this machine: short runs on drawn images, without a network; ends with a table of the promises that hold here.

    Exit code 0: nothing failed; 1: something did, and the table says what to do about it.
    """

    launch: str = ""
    """A configuration of accelerate launch, or a name that launch-config lists; nothing = the one for all GPUs of this machine, or two CPU processes."""
    minutes: float = 10.0
    """After which no part begins, and what runs is ended."""
    only: tuple[str, ...] = ()
    """Parts to try, as the lines name them; nothing = all."""


def selfcheck_command(words: Sequence[str]) -> int:
    asked = parse_words(_SelfcheckWords, words, "selfcheck")
    if not 0 < asked.minutes <= _MOST_MINUTES:
        raise UserError(f"--minutes {asked.minutes:g} is not allowed: more than 0 and at most {_MOST_MINUTES} are.")
    from accel_flowers.selfcheck.command import selfcheck

    shipped = launch_configs()
    file = shipped.get(asked.launch.removesuffix(".yaml"), Path(asked.launch)) if asked.launch else None
    with signals_stop("while it tried this machine; its runs are ended."):
        found = selfcheck(file, shipped, minutes=asked.minutes, only=asked.only)
    write_result(found.in_words())
    return 0 if found.all_held else 1
