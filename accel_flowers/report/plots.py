"""Findings → figures: each drawn once, as an SVG that takes on the page's colours and as a PNG for elsewhere.

Colours have roles. In the SVG each role becomes a variable of the page, so that light, dark and print need no second
drawing; orange against blue (Okabe and Ito) can be told apart in any colour vision, and never stands for a meaning alone.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from accel_flowers.core.order import natural_key
from accel_flowers.core.plural import number_of
from accel_flowers.metrics.calibration import ReliabilityBins
from accel_flowers.report.findings import Calibration, ClassFindings, PartFindings
from accel_flowers.tracking.figures import COLOURS, paint_confusion, shorten

SERIES = ("blue", "orange", "green", "purple", "brown", "pink")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3)), (0, (3, 1, 1, 1)))
MOST_POINTS = 600
"""Points of a line; of more, neighbours are averaged, which no eye would tell and the page need not carry."""
MOST_CLASSES = 24
"""Classes that a figure shows one by one."""
_STYLE: Any = {
    "figure.dpi": 72,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $5
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Plot:
    """A figure in both forms, and what it shows in words for whoever cannot see it."""

    name: str
    svg: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Course:
    """Values of one quantity over the epochs of a run."""

    label: str
    epochs: Sequence[float]
    values: Sequence[float]


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None], *, title: str = "") -> Plot:
    """Make a plot.

    Args:
        name: of the PNG, without its ending.
        alt: what it shows.
        size: width and height in pixels of the page.
        paint: puts the axes onto the figure.
        title: of the PNG, which stands alone; the page has headings of its own. Empty = `alt`.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        # A script that the font lacks, a name that leaves no room: the page's own font has it, and the table tells it.
        warnings.filterwarnings("ignore", module=r"matplotlib|accel_flowers\.report")
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from|.*[Tt]ight.?layout|.*constrained_layout")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure)
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.suptitle(textwrap.fill((title or alt).rstrip("."), int(size[0] / 7)), fontsize=11, parse_math=False)
        figure.savefig(pixels, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Plot(name, _for_page(vector.getvalue(), alt), pixels.getvalue(), alt)


def _for_page(svg: str, alt: str) -> str:
    """Matplotlib's file as a part of a page: roles for colours, the page's font, no fixed size, no numbered groups."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    rest = re.sub(r'(?<= )style="[^"]*"', lambda match: _style_for_page(match[0]), rest)
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{_attribute(alt)}">{rest}'


def _style_for_page(style: str) -> str:
    for role, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{role})")
    style = re.sub(r"font-family: [^;\"]*(; )?", "", style)
    return re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, style)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + (f"; font-weight: {match[1]}" if match[1] else "")


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def _percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def course_plot(
    name: str,
    title: str,
    unit: str,
    courses: Sequence[Course],
    *,
    alt: str,
    best: float | None = None,
    percent: bool = False,
    marked: bool = True,
) -> Plot:
    """Values over the epochs; those with few points have them marked.

    Args:
        title: what the y axis shows.
        unit: its unit; empty where it has none.
        best: epoch that is marked.
        percent: values are shares.
        marked: whether single points show where there are few.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, course in enumerate(courses):
            role = SERIES[place % len(SERIES)]
            few = marked and len(course.values) <= 30
            axes.plot(
                _thinned(course.epochs),
                _thinned(course.values),
                label=course.label,
                color=COLOURS[role],
                linestyle=DASHES[place % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)] if few else None,
            )
        if best is not None:
            axes.axvline(best, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                "best", (best, 0 if percent else 1), xycoords=("data", "axes fraction"), xytext=(-4, 3 if percent else -3),
                textcoords="offset points", ha="right", va="bottom" if percent else "top", color=COLOURS["muted"], fontsize=10,
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{title} ({unit})" if unit else title)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if percent:
            _percent(axes.yaxis)
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        values = [value for course in courses for value in course.values]
        if max(values) - min(values) <= 1e-6 * abs(max(values)):  # else the axis would be one of rounding errors
            axes.set_ylim(0, 1 if percent else 1.25 * max(values) or 1)
        if len(courses) > 1:
            _legend_above(axes)

    shown = courses[0].label if len(courses) == 1 and courses[0].label != title else ""
    return draw(name, alt, (340, 240), paint, title=f"{title}, {shown}" if shown else title)


def lr_plot(lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], proposed: float | None) -> Plot:
    """The loss over a rising learning rate, on a scale of powers; the proposal is marked."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(lrs, losses, ".", markersize=3, color=COLOURS["muted"], label="steps")
        axes.plot(lrs, smoothed, color=COLOURS["blue"], label="smoothed")
        if proposed is not None:
            axes.axvline(proposed, color=COLOURS["orange"], linestyle=DASHES[1], label="proposed")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.set_ylim(0, 1.2 * max(smoothed))  # what blows up goes out of the picture
        _legend_above(axes)

    where = f"; {proposed:.2g} is proposed" if proposed is not None else ""
    return draw("learning-rate", f"Loss over a rising learning rate{where}.", (640, 300), paint)


def _thinned(values: Sequence[float]) -> list[float]:
    size = -(-len(values) // MOST_POINTS)
    return [float(np.mean(values[first : first + size])) for first in range(0, len(values), size or 1)]


def _legend_above(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2, handlelength=1.8, columnspacing=1.2
    )


def confusion_plot(found: PartFindings, words: str) -> Plot:
    """Rows: true class, columns: predicted class; of many classes those with the most mistakes."""
    shown = _classes_worth_showing(found)
    matrix = found.matrix[np.ix_(shown, shown)]
    totals = found.matrix.sum(axis=1)[shown]
    names = [found.classes[label].name for label in shown]

    def paint(figure: Figure) -> None:
        paint_confusion(figure.subplots(), matrix, totals, names)

    return draw("confusion", f"Confusion matrix, {words}.", (430, 400), paint)


def _classes_worth_showing(found: PartFindings) -> list[int]:
    """All classes, or those with the most mistakes, in the order of their names."""
    mistakes = found.matrix.sum(axis=0) + found.matrix.sum(axis=1) - 2 * np.diagonal(found.matrix)
    shown: list[int] = np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist()
    return sorted(shown, key=lambda label: natural_key(found.classes[label].name))


def classes_plot(found: PartFindings, words: str) -> Plot:
    """Precision, recall and F1 of each class with their intervals, the worst F1 on top."""
    ranked: list[ClassFindings] = sorted((each for each in found.classes if each.num_images), key=lambda c: c.f1.value)
    ranked = ranked[:MOST_CLASSES]
    kinds = (("F1", "f1", "o", "blue"), ("precision", "precision", "^", "green"), ("recall", "recall", "s", "orange"))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for offset, (label, attribute, marker, role) in zip((-0.22, 0, 0.22), kinds, strict=True):
            intervals = [getattr(each, attribute) for each in ranked]
            places = np.arange(len(ranked)) + offset
            axes.hlines(
                places,
                [i.low for i in intervals],
                [i.high for i in intervals],
                color=COLOURS[role],
                linewidth=1.6,
                alpha=0.55,
            )
            axes.plot(
                [i.value for i in intervals],
                places,
                marker,
                color=COLOURS[role],
                label=label,
                markersize=5.5,
                linestyle="none",
            )
        axes.set_yticks(range(len(ranked)), [shorten(each.name) for each in ranked])
        axes.set_ylim(len(ranked) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        for place in range(1, len(ranked)):
            axes.axhline(place - 0.5, color=COLOURS["line"], linewidth=0.7)
        _percent(axes.xaxis)
        axes.set_xlim(right=1.012)
        axes.set_xlabel("score (%), bars: 95 % interval")
        _legend_above(axes)

    height = 110 + 48 * len(ranked) if len(ranked) <= 8 else 110 + 30 * len(ranked)
    return draw("classes", f"Precision, recall and F1 of each class, {words}.", (430, height), paint)


def reliability_plot(found: Calibration, words: str) -> Plot:
    """How often it was right against how sure it was, above how many images that were."""

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), label="perfect")
        kinds: list[tuple[str, ReliabilityBins, str, str, Any]] = [("as predict says", found.served, "blue", "o", "-")]
        if found.raw is not None:
            kinds.append(("without temperature", found.raw, "orange", "s", (0, (5, 2))))
        for label, bins, role, marker, dashes in kinds:
            full = bins.counts > 0
            upper.plot(
                bins.confidence[full],
                bins.accuracy[full],
                color=COLOURS[role],
                marker=marker,
                linestyle=dashes,
                label=label,
            )
        width = 1 / len(found.served.counts)
        lower.bar(
            found.served.edges[:-1] + width / 2, found.served.counts, width * 0.86, color=COLOURS["blue"], alpha=0.75
        )
        upper.set(xlim=(0, 1.02), ylim=(0, 1.02))
        upper.set_ylabel("right (%)")
        lower.set_xlabel("how sure the model was (%)")
        lower.set_ylabel("pictures")
        lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        for axis in (upper.yaxis, lower.xaxis):
            _percent(axis)
        _legend_above(upper)

    return draw("reliability", f"Reliability diagram, {words}.", (430, 400), paint)


def counts_plot(counts: Mapping[str, Mapping[str, int]]) -> Plot:
    """Images of each class in each part, one bar a class."""
    order = sorted(counts, key=lambda name: -sum(counts[name].values()))
    shown = order[:MOST_CLASSES]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(shown))
        for part, label, role, alpha in (
            ("train", "training", "blue", 0.9),
            ("val", "validation", "orange", 0.9),
            ("test", "test", "green", 0.9),
        ):
            values = np.array([counts[name].get(part, 0) for name in shown])
            if values.any():
                axes.barh(range(len(shown)), values, 0.66, left=left, color=COLOURS[role], alpha=alpha, label=label)
                left += values
        axes.set_yticks(range(len(shown)), [shorten(name) for name in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("pictures")
        _legend_above(axes)

    total = sum(sum(parts.values()) for parts in counts.values())
    return draw("counts", f"{number_of(total, 'picture')} by class and part.", (430, 110 + 26 * len(shown)), paint)


def sizes_plot(sizes: Sequence[tuple[int, int]]) -> Plot:
    """Width and height of the images."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        width, height = zip(*sizes, strict=True)
        # Rasterised: thousands of points as shapes would make the page large.
        axes.plot(
            width,
            height,
            "o",
            color=COLOURS["blue"],
            alpha=0.35,
            markersize=4,
            markeredgewidth=0,
            rasterized=len(sizes) > 500,
        )
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.set_xlabel("width (pixels)")
        axes.set_ylabel("height (pixels)")

    return draw("sizes", f"Width and height of {len(sizes)} pictures.", (420, 300), paint)
