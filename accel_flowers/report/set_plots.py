"""Figures of pictures with several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from accel_flowers.core.order import natural_key
from accel_flowers.report.plots import MOST_CLASSES, Plot, draw
from accel_flowers.report.sets import SetClass, SetFindings
from accel_flowers.tracking.figures import COLOURS, paint_cooccurrence, shorten


def precision_plot(found: SetFindings, words: str) -> Plot:
    """Average precision of each class with its interval, and F1 at its threshold; the worst on top."""
    ranked: list[SetClass] = sorted(
        (each for each in found.classes if each.ap), key=lambda each: each.ap.value if each.ap else 0.0
    )[:MOST_CLASSES]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(ranked))
        intervals = [each.ap for each in ranked if each.ap]
        low, high = [each.low for each in intervals], [each.high for each in intervals]
        axes.hlines(places - 0.12, low, high, color=COLOURS["blue"], linewidth=1.6, alpha=0.55)
        style: dict[str, Any] = {"markersize": 5.5, "linestyle": "none"}
        values = [each.value for each in intervals]
        axes.plot(values, places - 0.12, "o", color=COLOURS["blue"], label="average precision", **style)
        axes.plot([each.f1 for each in ranked], places + 0.12, "s", color=COLOURS["orange"], label="F1", **style)
        axes.set_yticks(range(len(ranked)), [shorten(each.name) for each in ranked])
        axes.set_ylim(len(ranked) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(-0.012, 1.012)
        axes.set_xlabel("score, bars: 95 % interval")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2)

    height = 110 + 30 * len(ranked)
    return draw("classes", f"Average precision and F1 of each class, {words}.", (430, height), paint)


def cooccurrence_plot(found: SetFindings, words: str) -> Plot:
    """Which classes come together; of many those with the most pictures."""
    counts = np.diagonal(found.pairs)
    largest: list[int] = np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist()
    shown = sorted(largest, key=lambda label: natural_key(found.classes[label].name))
    pairs, names = found.pairs[np.ix_(shown, shown)], [found.classes[label].name for label in shown]

    def paint(figure: Figure) -> None:
        paint_cooccurrence(figure.subplots(), pairs, names)

    return draw("cooccurrence", f"Classes that come together, {words}.", (430, 400), paint)
