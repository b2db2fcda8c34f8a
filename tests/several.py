"""Drawn pictures with any number of labels each: coloured shapes on grey, and a CSV that says which are there."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.ranks import finish
from tests.runs import write_recipe

SHAPES = {"rose": (220, 30, 60), "leaf": (30, 170, 60), "sky": (40, 80, 230)}
"""Class → colour of its shape; `rare` below is drawn as a white cross."""


def labels_of(number: int) -> tuple[str, ...]:
    """The classes of a picture, the same for the same number: every combination occurs, also none."""
    names = [name for place, name in enumerate(sorted(SHAPES)) if number % 8 >> place & 1]
    return (*names, *(["rare"] if number % 10 == 3 else []))


def draw(names: tuple[str, ...], number: int, size: int = 48) -> Image.Image:
    """A shape for each of the names, where chance puts it."""
    chance = np.random.default_rng(number)
    image = Image.fromarray(chance.integers(110, 140, (size, size, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    for name in names:
        x, y = (int(place) for place in chance.integers(2, size // 2, 2))
        box = (x, y, x + size // 3, y + size // 3)
        if name == "rare":
            pen.line(box, fill="white", width=4)
        elif name == "leaf":
            pen.rectangle(box, fill=SHAPES[name])
        else:
            pen.ellipse(box, fill=SHAPES[name])
    return image


def make_pictures(folder: Path, num_images: int = 80) -> dict[str, tuple[str, ...]]:
    """Draw pictures into a folder. Returns file → its classes."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {f"{number:03d}.png": labels_of(number) for number in range(num_images)}
    for number, (file, names) in enumerate(labels.items()):
        draw(names, number).save(folder / file)
    return labels


def write_separated(folder: Path, labels: dict[str, tuple[str, ...]], *, name: str = "labels.csv") -> None:
    """One column of names with a semicolon between them."""
    with (folder / name).open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "labels"])
        rows.writerows([file, ";".join(names)] for file, names in labels.items())


def write_columns(folder: Path, labels: dict[str, tuple[str, ...]], *, name: str = "labels.csv") -> None:
    """A column of 0 and 1 for each class."""
    classes = sorted({label for names in labels.values() for label in names})
    with (folder / name).open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", *classes])
        rows.writerows([file, *(int(each in names) for each in classes)] for file, names in labels.items())


def recipe_of(path: Path, pictures: Path, **sections: Any) -> Path:
    """Everything that must go on exactly: mixing, an average, a soup, views, weights of classes, dropout."""
    own = {
        "data": {
            "path": str(pictures), "label_separator": ";", "split": "60/20/20",
            "batch_transform": {"mixup": {"alpha": 0.2, "chance": 0.5}},
        },
        "model": {"dropout": 0.1, "tta": "auto"},
        "optim": {"name": "adamw", "lr": 2e-3},
        "loss": {"class_weights": "balanced", "label_smoothing": 0.05},
        "train": {"epochs": 4, "micro_batch_size": 2, "log_every_steps": 3},
        "ema": {"decay": 0.9},
        "soup": {"epochs": 2},
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    return write_recipe(path, **{name: {**own.get(name, {}), **sections.get(name, {})} for name in {**own, **sections}})


def train_several(folder: Path, pictures: Path, **sections: Any) -> tuple[Path, str]:
    """A run on one process beside its recipe.yaml, and what it said."""
    recipe = recipe_of(folder / "recipe.yaml", pictures, **sections)
    return folder / "run", finish(folder, ["train", recipe, "--run-dir", folder / "run"])
