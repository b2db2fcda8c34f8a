"""Folders of pictures that are no flowers, drawn with numpy: many classes of unlike sizes, whose names look like anything but names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ODD_NAMES = (
    "1", "2", "10", "007", "none", "None", "true", "No", "null", "nan", "1e5", "1.0", "~", "two words", "été", "薔薇", "Zürich (2)",
    "a,b", 'the "quoted"', "it's", "a;b", "50%", "#7", "x=1", "{a}", "[b]", "- dash", "train set", "model", "&amp;",
    "2024-01-01", "0x10", "yes", "on", "+1", "=SUM(A1)", "🚲", "Привет", "a: b", "__init__",
)  # fmt: skip
"""What a reader of YAML, CSV, JSON, HTML or a spreadsheet may take for something else."""


def many_names(count: int = 102) -> tuple[str, ...]:
    """The odd ones first, then numbers, as sets of many classes have them."""
    numbers = (str(number) for number in range(11, 11 + count))
    return (*ODD_NAMES, *numbers)[:count]


def long_tail(count: int, *, most: int = 60, least: int = 2) -> list[int]:
    """Sizes of classes: few have many pictures, most have few."""
    return [round(least + (most - least) * (1 - place / (count - 1)) ** 8) for place in range(count)]


def draw_shape(label: int, number: int, size: int = 24) -> Image.Image:
    """A bar, ring or chequer whose angle, colour and spacing are its class's; place and noise are the picture's."""
    chance = np.random.Generator(np.random.Philox(key=[label, number]))
    y, x = np.mgrid[0:size, 0:size] - size / 2 + chance.uniform(-2, 2, (2, 1, 1))
    angle, spacing = 0.61 * label, 3 + label % 7
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shape = (
        np.sin(along / spacing * 3) > 0,
        (np.hypot(x, y) % (2 * spacing)) < spacing,
        (np.sin(along / spacing * 2) * np.sin(across / spacing * 2)) > 0,
    )[label % 3]
    colour = np.array([(37 * label) % 256, (91 * label + 60) % 256, (53 * label + 120) % 256])
    pixels = np.where(shape[..., None], colour, 255 - colour) + chance.integers(-12, 13, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_folder(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Path:
    """`root/CLASS/NN.png`; several of the odd names stand for themselves on a Linux disk alone."""
    for label, (name, count) in enumerate(zip(names, sizes, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw_shape(label, number).save(root / name / f"{number:02d}.png")
    return root
