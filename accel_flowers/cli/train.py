"""`train` and `recipes`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
    study, flags = split_study_words(words[1:])
    config = config_from_flags(load_recipe(recipe), flags, program=program, speaks=is_main_process())
    if config.run_dir is None:
        config = config.model_copy(update={"run_dir": _default_run_dir(Path(recipe).stem, config, study)})
    if study:
        return _train_study(config, study)
    from accel_flowers.training.train import train

    train(config, owns_process=True)
    return 0


_STUDY_FLAGS = ("--seeds", "--folds", "--keep")


def split_study_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags that make several runs of one, with their values, and the other words.

    Raises:
        UserError: a flag without its value.
    """
    study: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        flag, equals, value = word.partition("=")
        if flag not in _STUDY_FLAGS:
            rest.append(word)
            continue
        given = value if equals else next(waiting, "")
        if not given or given.startswith("--"):
            raise UserError(f"{flag} wants a value: --seeds 5, --seeds 3,7,11, --folds 5 or --keep ensemble.")
        study[flag] = given
    return study, rest


def _train_study(config: Config, words: dict[str, str]) -> int:
    keep = words.get("--keep", "none")
    if keep not in ("none", "ensemble", "soup"):
        raise UserError(f"--keep {keep} is not allowed: none, ensemble or soup.")
    if "--seeds" not in words and "--folds" not in words:
        raise UserError("--keep says what becomes of several runs: give --seeds or --folds, too.")
    seeds, folds = _numbers("--seeds", words.get("--seeds", "")), _numbers("--folds", words.get("--folds", ""))
    if len(seeds) == 1 and "," not in words["--seeds"]:
        seeds = list(range(config.train.seed, config.train.seed + seeds[0]))
    if len(folds) > 1:
        raise UserError(f"--folds {words['--folds']}: give one number, such as --folds 5.")
    from accel_flowers.study.run import train_study

    found = train_study(config, seeds=seeds, folds=sum(folds), keep=keep, owns_process=True)  # type: ignore[arg-type]
    if found.summary:
        write_result(found.summary.in_words())
    return 0


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{flag} {text}: give whole numbers, such as {flag} 5.") from None


def _default_run_dir(recipe: str, config: Config, study: Mapping[str, str]) -> str:
    if study:
        return f"runs/{recipe}-{'folds' if '--folds' in study else 'seeds'}"
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
