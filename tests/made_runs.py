"""Run directories written by hand: what a report reads, without a training; the answers are what a test wants them to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accel_flowers.config.schema import Config
from accel_flowers.data.split import PARTS, Split, save_split
from accel_flowers.metrics.classification import Predictions, summarize
from accel_flowers.metrics.predictions import save_predictions
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.tracking.run_dir import write_config
from tests.runs import tiny_recipe

ENVIRONMENT = {"run_id": "0123abcd", "accel_flowers": "0", "num_processes": 1, "precision": "no", "device": "cpu"}


def make_predictions(labels: Sequence[int], num_classes: int, *, seed: int = 0, skill: float = 1.5) -> Predictions:
    """Plausible answers: logits that favour the true class by `skill`, plus noise."""
    generator = np.random.default_rng(seed)
    truth = np.asarray(labels, dtype=np.int64)
    logits = generator.normal(size=(len(truth), num_classes)) + skill * np.eye(num_classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(probabilities[np.arange(len(truth)), truth])
    return Predictions(truth, probabilities.astype(np.float32), losses.astype(np.float32))


def make_run(
    run_dir: Path,
    photos: Path,
    class_names: tuple[str, ...],
    *,
    per_part: int = 8,
    names: Sequence[str] = (),
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    skill: float = 1.5,
    draw: bool = True,
    finished: bool = True,
    **sections: dict[str, Any],
) -> Path:
    """Write a run directory, and the photos that it names.

    Args:
        per_part: images of each class in each part.
        names: file names to use first, for hostile ones.
        draw: whether the photos are written.
        finished: whether the run has come to its end.
        sections: of the recipe, over those of `tiny_recipe`.
    """
    run_dir.mkdir(parents=True)
    split_parts: dict[str, str] = {}
    labels: dict[str, int] = {}
    for label, name in enumerate(class_names):
        folder = name.replace("/", "_")
        for place in range(per_part * len(parts)):
            own = names[place] if place < len(names) else f"{place:03d}.png"
            split_parts[f"{folder}/{own}"], labels[f"{folder}/{own}"] = parts[place % len(parts)], label
            if draw:
                path = photos / folder / own
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.random.default_rng(label * 1000 + place).integers(0, 256, (8 + place, 10, 3), dtype=np.uint8)
                Image.fromarray(image).resize((60, 48 + place)).save(path)
    split = Split(class_names, split_parts, {"odd/é<b>.png": "cut short"}, (tuple(list(split_parts)[:2]),))
    save_split(split, run_dir / "split.json")
    recipe = tiny_recipe(**sections)
    recipe["data"]["path"] = str(photos)
    write_config(run_dir, Config.model_validate({**recipe, "run_dir": str(run_dir)}), ENVIRONMENT)
    lines: list[dict[str, float]] = []
    for epoch in (1, 2):
        lines += [
            {"step": 2 * epoch - 1, "epoch": epoch - 0.5, "train/loss": 2.0 / epoch, "lr/all": 0.01 / epoch},
            {
                "step": 2 * epoch,
                "epoch": epoch,
                "train/loss": 1.8 / epoch,
                "train/accuracy": 0.2 * epoch,
                "lr/all": 0.01 / epoch,
            },
            {
                "step": 2 * epoch,
                "epoch": epoch,
                "val/loss": 1.9 / epoch,
                "val/accuracy": 0.3 * epoch,
                "val/macro_f1": 0.3,
            },
        ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not finished:
        return run_dir
    held_out = [part for part in parts if part != "train"]
    files = {part: split.files_of(part) for part in held_out}
    said = {
        part: make_predictions([labels[file] for file in files[part]], len(class_names), seed=seed + place, skill=skill)
        for place, part in enumerate(held_out)
    }
    save_predictions(run_dir / "predictions.parquet", said, files, class_names)
    torch.manual_seed(seed)
    spec = ModelSpec(
        architecture="squeezenet1_1",
        class_names=class_names,
        transforms=({"Resize": {"size": [64, 64]}},),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        temperature=1.25,
        scores={part: {**summarize(said[part], class_names), "epoch": 2, "step": 4} for part in held_out},
    )
    network, _ = build_network("squeezenet1_1", len(class_names))
    save_model(run_dir / "model", clean_state_dict(network), spec)
    return run_dir
