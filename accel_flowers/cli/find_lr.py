"""`find-lr`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import check_recipe_first
from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.core.console import write_result
from accel_flowers.distributed.environment import is_main_process


@dataclass(frozen=True)
class _FindLrWords:
    """Find a learning rate for a recipe: its own training, at a rate that rises from step to step until the loss blows up.

    All flags of `train` can follow; under `accelerate launch` all processes train together, as in a run. Nothing of what is learned
    is kept.
    """

    low: float = 1e-6
    """First learning rate."""
    high: float = 1.0
    """Last learning rate."""
    steps: int = 100
    """Optimizer steps from the one to the other."""
    json: bool = False
    """Print all steps and the proposal as one JSON object."""
    html: Path | None = None
    """Write a page with the curve."""


def find_lr_command(words: Sequence[str]) -> int:
    program = "accel-flowers find-lr RECIPE"
    check_recipe_first(_FindLrWords, words, program)
    asked, rest = tyro.cli(_FindLrWords, args=words[1:], prog=program, return_unknown_args=True)
    config = config_from_flags(load_recipe(words[0]), rest, program=program, speaks=is_main_process())
    from accel_flowers.training.lr_finder import find_lr

    found = find_lr(config, low=asked.low, high=asked.high, steps=asked.steps, owns_process=True)
    if is_main_process():
        if asked.html:
            from accel_flowers.html.pages import write_page
            from accel_flowers.report.plots import lr_plot

            plot = lr_plot(found.lrs, found.losses, found.smoothed, found.lr)
            write_page(asked.html, "find_lr.html", recipe=words[0], found=found, plot=plot)
        write_result(json.dumps(found.as_json(), indent=1) if asked.json else found.in_words())
    return 0
