"""`benchmark`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from accel_flowers.cli.common import check_recipe_first
from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_main_process


@dataclass(frozen=True)
class _BenchmarkWords:
    """Measure how fast a recipe trains here: loading alone, computing alone, both; what the bottleneck is, and what else was tried.

    Under `accelerate launch` with several processes: what 1 … all of them compute, with the recipe's step and with one that grows with
    them. All flags of `train` can follow. It takes a minute or two; nothing of what is learned is kept.
    """

    json: bool = False
    """Print all numbers as one JSON object."""
    seconds: float = 3.0
    """Length of each measurement."""


def benchmark_command(words: Sequence[str]) -> int:
    program = "accel-flowers benchmark RECIPE"
    check_recipe_first(_BenchmarkWords, words, program)
    asked, rest = tyro.cli(_BenchmarkWords, args=words[1:], prog=program, return_unknown_args=True)
    if not 0 < asked.seconds <= 600:
        raise UserError(f"--seconds {asked.seconds:g} is not allowed: a measurement takes more than 0 and at most 600.")
    config = config_from_flags(load_recipe(words[0]), rest, program=program, speaks=is_main_process())
    from accel_flowers.training.benchmark import benchmark

    found = benchmark(config, seconds=asked.seconds, owns_process=True)
    if is_main_process():
        write_result(json.dumps(found.as_json(), indent=1) if asked.json else found.in_words())
    return 0
