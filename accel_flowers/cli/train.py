"""`train` and `recipes`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.cli.common import parse_words
from accel_flowers.config.loading import config_from_flags, load_recipe, recipe_names
from accel_flowers.config.schema import Config
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_main_process


def train_command(words: Sequence[str]) -> int:
    program = "accel-flowers train RECIPE"
    if words and words[0] in ("-h", "--help"):
        config_from_flags(Config(), ["--help"], program=program)
    if not words or words[0].startswith("-"):
        rest = f" {words[0]} ..." if words else " --data.path DIR"
        raise UserError(f"RECIPE comes first: accel-flowers train RECIPE{rest} Recipes: {', '.join(recipe_names())}.")
    recipe = words[0]
    config = config_from_flags(load_recipe(recipe), words[1:], program=program, speaks=is_main_process())
    if config.run_dir is None:
        config = config.model_copy(update={"run_dir": _default_run_dir(Path(recipe).stem, config)})
    from accel_flowers.training.train import train

    train(config, owns_process=True)
    return 0


def _default_run_dir(recipe: str, config: Config) -> str:
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and run:
        return f"runs/sweep-{sweep}/{run}"  # a W&B sweep runs one recipe many times
    return f"runs/{recipe}" + ("-fast-dev-run" if config.debug.fast_dev_run else "")


@dataclass(frozen=True)
class _RecipesWords:
    """List the recipes that come with the package."""


def recipes_command(words: Sequence[str]) -> int:
    parse_words(_RecipesWords, words, "recipes")
    rows = [("recipe", "model", "published", "what it does")]
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append((name, recipe.model.name, recipe.about.published, recipe.about.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        write_result("  ".join([*padded, row[3]]))
    return 0
