"""Figures that trackers and pages share: the confusion matrix, and the colours of all plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from accel_flowers.metrics.confusion import Ints

COLOURS = {
    "ink": "#1b2126",
    "muted": "#5b6871",
    "line": "#d5dce2",
    "on-fill": "#fefefe",
    "blue": "#0a6cb0",
    "orange": "#b84a08",
    "green": "#00795a",
    "purple": "#8a4f9e",
    "brown": "#7d5a1e",
    "pink": "#b83b7c",
}
"""Role → colour on white. Each is unlike all others, so that it can be found again in an SVG; orange against blue (Okabe and
Ito) can be told apart in any colour vision, and never stands for a meaning alone."""
MOST_NUMBERED = 12
"""Classes up to which there is room for the counts."""
MOST_NAMED = 24
"""Classes up to which an image for a dashboard has their names, as the report has so many in its plots."""
MOST_DOTS = 500
"""Cells on a side of the matrix of many classes: each takes two pixels or more."""


def shorten(name: str, length: int = 18) -> str:
    """A class name that leaves room for the figure; tables have it whole."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def paint_confusion(axes: Any, matrix: Ints, totals: Ints, names: Sequence[str]) -> None:
    """Rows: true class, columns: predicted class; right answers blue, mistakes orange, both darker for more.

    Args:
        axes: of Matplotlib.
        matrix: counts [C, C] of the classes that are shown.
        totals: images of each of them, [C]; a row's colours are shares of them.
        names: of the classes.
    """
    from matplotlib.patches import Rectangle

    count = len(names)
    axes.grid(False)
    for row, column in np.ndindex(matrix.shape):
        share = int(matrix[row, column]) / max(int(totals[row]), 1)
        strength = 0.12 + 0.88 * share if row == column else min(1.0, 0.2 + 1.6 * share)
        fill = "blue" if row == column else "orange"
        if not matrix[row, column]:
            fill, strength = "line", 0.35
        place = (column + 0.03, row + 0.03)
        axes.add_patch(Rectangle(place, 0.94, 0.94, facecolor=COLOURS[fill], alpha=strength, linewidth=0))
        if count <= MOST_NUMBERED and matrix[row, column]:
            axes.text(
                column + 0.5,
                row + 0.5,
                str(matrix[row, column]),
                ha="center",
                va="center",
                color=COLOURS["on-fill" if strength > 0.6 else "ink"],
                fontsize=12 if count <= 8 else 10,
            )
    axes.set(xlim=(0, count), ylim=(count, 0), xticks=np.arange(count) + 0.5, yticks=np.arange(count) + 0.5)
    short = [shorten(name, 14) for name in names]
    slanted = count > 5 or max(map(len, short)) > 9
    axes.set_xticklabels(
        short,
        rotation=40 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
        parse_math=False,  # a class may be called $5
    )
    axes.set_yticklabels(short, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("predicted class (pictures)")
    axes.set_ylabel("true class")
    axes.set_aspect("equal")


def draw_confusion(matrix: Ints, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """A confusion matrix [C, C] as an image, uint8 [H, W, 3]; it takes no more room and time for more classes than a page has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 2.5 + 0.6 * min(len(names), MOST_NAMED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if len(names) > MOST_NAMED:
        _paint_as_dots(figure.add_subplot(), matrix)
    else:
        paint_confusion(figure.add_subplot(), matrix, matrix.sum(axis=1), names)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def paint_cooccurrence(axes: Any, pairs: Ints, names: Sequence[str]) -> None:
    """How often classes come together: of the images of a row's class the share that has the column's, too; the diagonal counts.

    Args:
        axes: of Matplotlib.
        pairs: images that have both, [C, C]; the diagonal has those of each class.
        names: of the classes.
    """
    from matplotlib.patches import Rectangle

    count, of_each = len(names), np.diagonal(pairs)
    shares = pairs / np.maximum(of_each[:, None], 1)
    axes.grid(False)
    if count <= MOST_NAMED:
        for row, column in np.ndindex(pairs.shape):
            strength = 0.8 if row == column else 0.12 + 0.88 * shares[row, column] if pairs[row, column] else 0.0
            place, role = (column + 0.03, row + 0.03), "line" if row == column else "blue"
            axes.add_patch(Rectangle(place, 0.94, 0.94, facecolor=COLOURS[role], alpha=strength, linewidth=0))
        axes.set(xlim=(0, count), ylim=(count, 0))
    else:
        fill = 1 - shares[..., None] * (1 - _rgb("blue"))
        fill[np.arange(count), np.arange(count)] = _rgb("line")
        axes.imshow(fill, extent=(0, count, count, 0), interpolation="nearest")
    if count <= MOST_NUMBERED:
        for row, column in np.ndindex(pairs.shape):
            if pairs[row, column]:
                role = "on-fill" if row != column and shares[row, column] > 0.6 else "ink"
                style = {"ha": "center", "va": "center", "color": COLOURS[role], "fontsize": 10}
                axes.text(column + 0.5, row + 0.5, str(pairs[row, column]), **style)
    if count <= MOST_NAMED:
        places, short = np.arange(count) + 0.5, [shorten(name, 14) for name in names]
        axes.set_xticks(places, short, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(places, short, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    numbered = "" if count <= MOST_NAMED else ", by its number in the list of classes"
    axes.set_xlabel(f"that also have this class{numbered}")
    axes.set_ylabel("of the pictures with this class")
    axes.set_aspect("equal")


def draw_cooccurrence(pairs: Ints, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Which classes come together [C, C] as an image, uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 2.5 + 0.6 * min(len(names), MOST_NAMED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    paint_cooccurrence(figure.add_subplot(), pairs, names)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _paint_as_dots(axes: Any, matrix: Ints) -> None:
    """The same colours with a dot for each cell, or for a square of cells, and classes by their numbers."""
    count = len(matrix)
    side = -(-count // MOST_DOTS)  # classes in a dot
    starts = np.arange(0, count, side)
    cells = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    right = np.add.reduceat(np.diagonal(matrix), starts)
    share = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    strength = np.where(cells > 0, np.minimum(1.0, 0.2 + 1.6 * share), 0.0)
    on_diagonal = np.arange(len(cells))
    # A dot of several classes is as blue as they are right: mistakes among them leave it pale.
    strength[on_diagonal, on_diagonal] = 0.12 + 0.88 * right / np.maximum(cells.sum(axis=1), 1)
    full = np.empty((*cells.shape, 3))
    full[:] = _rgb("orange")
    full[on_diagonal, on_diagonal] = _rgb("blue")
    axes.imshow(
        1 - strength[..., None] * (1 - full), extent=(0.5, count + 0.5, count + 0.5, 0.5), interpolation="nearest"
    )
    of_each = f", {side} classes a dot" if side > 1 else ""
    axes.set_xlabel(f"predicted class, by its number in the list of classes (1 to {count}{of_each})")
    axes.set_ylabel("true class")


def _rgb(role: str) -> npt.NDArray[np.float64]:
    return np.array([int(COLOURS[role][place : place + 2], 16) / 255 for place in (1, 3, 5)])
