"""Real runs for the tests: tiny recipes, started in this process or by the launcher in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accel_flowers.config.schema import Config
from accel_flowers.tracking.run_dir import read_metrics

PROJECT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO_PROCESSES = [*LAUNCH, "--config_file", str(PROJECT / "accelerate_configs/cpu_2_processes.yaml")]
PROGRAM = ["-m", "accel_flowers"]


def tiny_recipe(**sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe that trains in seconds on small images; sections given go over it.

    SqueezeNet has no batch norm, so one and two processes do the same arithmetic.
    """
    recipe: dict[str, dict[str, Any]] = {
        "data": {
            "split": "80/10/10",
            "train_transforms": [
                {"RandomResizedCrop": {"size": 32}},
                "RandomHorizontalFlip",
                {"ColorJitter": {"brightness": 0.2}},
            ],
            "eval_transforms": [{"Resize": {"size": [32, 32]}}],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_workers": 0,
        },
        "model": {"name": "squeezenet1_1", "weights": "none"},
        "optim": {"lr": 1e-2},
        "train": {
            "epochs": 2,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "eval_batch_size": 4,
            "log_every_steps": 1,
        },
        "tracking": {"report": False},
    }
    return {name: {**recipe.get(name, {}), **sections.get(name, {})} for name in {**recipe, **sections}}


def tiny_config(photos: Path, run_dir: Path, **sections: dict[str, Any]) -> Config:
    """The same, resolved, for `train()`."""
    recipe = tiny_recipe(**sections)
    recipe["data"]["path"] = str(photos)
    return Config.model_validate({**recipe, "run_dir": str(run_dir)})


def without_photos(folder: Path) -> Path:
    """A folder that is there and has no photos: whoever reads it says so."""
    empty = folder / "no photos are read"
    empty.mkdir()
    return empty


def write_recipe(path: Path, **sections: dict[str, Any]) -> Path:
    """The same as a file (JSON is YAML), for the command line; float32 on any machine."""
    train = {"precision": "launcher", **sections.get("train", {})}
    path.write_text(json.dumps(tiny_recipe(**{**sections, "train": train})))
    return path


def run_program(
    *words: str | Path, launcher: list[str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`accel-flowers WORDS` in a process of its own, or in those of a launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*(launcher or [sys.executable]), *PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=PROJECT,  # so that this checkout is what runs
        check=False,
    )


def metrics(run_dir: Path, name: str) -> list[float]:
    """The course of one value in a run's metrics.jsonl."""
    return [line[name] for line in read_metrics(run_dir / "metrics.jsonl") if name in line]
