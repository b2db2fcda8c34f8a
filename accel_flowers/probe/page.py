"""What a probe found → one HTML page with the pictures to look at."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from accel_flowers.data.table import ImageTable
from accel_flowers.html.pages import Thumbnails, write_page
from accel_flowers.probe.curve import LearningCurve
from accel_flowers.probe.result import ProbeResult
from accel_flowers.probe.text import baseline, forecast_in_words, how, labels_in_words
from accel_flowers.report import text as words
from accel_flowers.report.plots import Plot, confusion_plot, draw
from accel_flowers.tracking.figures import COLOURS

_CANDIDATES = 60
"""Labels to look at that the page shows."""
_ROWS = 20
"""Classes, or files that were left out, that it lists."""


def write_probe_page(path: Path, result: ProbeResult, table: ImageTable) -> None:
    """Write the page, of bounded size whatever was found.

    Raises:
        UserError: the file cannot be written.
    """
    main = result.findings
    write_page(
        path,
        "probe.html",
        advice="Give another folder with --out DIR.",
        result=result,
        main=main,
        good=words.how_good(main),
        baseline=baseline(result),
        how=how(result.best),
        forecast=forecast_in_words(result.curve),
        sizes=[(round(size), each) for size, each in zip(result.curve.sizes, result.curve.accuracies, strict=True)],
        worst=words.worst_class(main),
        labels=labels_in_words(result),
        candidates=result.candidates[:_CANDIDATES] if main.beats_baseline else (),
        plots={
            "curve": curve_plot(result.curve),
            "confusion": confusion_plot(main, f"{words.images(main.num_images)} out of fold"),
        },
        MOST_ROWS=_ROWS,
        thumbnail=Thumbnails(lambda name: table.read(table.row_of(name))),
    )


def curve_plot(curve: LearningCurve) -> Plot:
    """Accuracy by the number of pictures, and the forecast."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        values = [each.value for each in curve.accuracies]
        for sizes, intervals, role in (
            (curve.sizes, curve.accuracies, "blue"),
            ((float(curve.twice),), (curve.forecast,), "orange"),
        ):
            middles = [each.value for each in intervals]
            ends = [
                [each.value - each.low for each in intervals],
                [each.high - each.value for each in intervals],
            ]
            axes.errorbar(sizes, middles, yerr=ends, fmt="o", color=COLOURS[role], capsize=3)
        axes.plot(curve.sizes, values, color=COLOURS["blue"])
        dashes = [curve.sizes[-1], curve.twice], [values[-1], curve.forecast.value]
        axes.plot(*dashes, color=COLOURS["orange"], linestyle=(0, (5, 2)))
        axes.set_xscale("log")
        axes.set_xticks([*curve.sizes, curve.twice], [f"{round(size):,}" for size in (*curve.sizes, curve.twice)])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
        axes.set_xlabel("pictures that were learned from")
        axes.set_ylabel("accuracy (%)")

    told = ", ".join(
        f"{100 * each.value:.1f} % of {round(size):,}" for size, each in zip(curve.sizes, curve.accuracies, strict=True)
    )
    alt = f"Accuracy by the number of pictures: {told}; forecast {100 * curve.forecast.value:.1f} % of {curve.twice:,}."
    return draw("curve", alt, (480, 320), paint)
