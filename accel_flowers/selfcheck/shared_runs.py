"""Runs that several parts look at, made once."""

from __future__ import annotations

from pathlib import Path

from accel_flowers.selfcheck.bench import Bench, Ended


def base_run(bench: Bench) -> Ended:
    """The run that others are compared with: float32, deterministic, without batch norm."""
    return bench.train("base", bench.recipe("plain"))


def whole_recipe(bench: Bench) -> Path:
    """Batch norm, dropout, a moving rate and average, many checkpoints: all that a resume must bring back."""
    return bench.recipe(
        "whole",
        model={"name": "shufflenet_v2_x0_5", "dropout": 0.3},
        optim={"name": "adamw", "lr": 1e-3},
        schedule={"name": "cosine"},
        train={"epochs": 4, "log_every_steps": 3},
        ema={"decay": 0.9},
        checkpoint={"every_steps": 1},
    )


def undisturbed_run(bench: Bench) -> Ended:
    return bench.train("undisturbed", whole_recipe(bench))
