"""What was found → one HTML file that asks nobody for anything. Everything that comes from a run is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from accel_flowers.core.errors import printable
from accel_flowers.core.files import writing
from accel_flowers.html.pages import environment_of, write_html
from accel_flowers.report import text as words
from accel_flowers.report.plots import MOST_CLASSES, Plot


def render(template: str, **values: Any) -> str:
    """Fill a template of this package.

    Args:
        template: file name, such as "report.html".
        values: what it shows; strings are text, never markup.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = environment_of("accel_flowers.report")
    environment.globals |= {"words": words, "figure": _figure, "MOST_CLASSES": MOST_CLASSES, "MOST_ROWS": 20}
    environment.filters |= {"percent": words.percent, "span": words.span, "printable": _printable}
    return environment


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_html(path, text, advice="Make room, or give another place.")


def write_plots(directory: Path, plots: list[Plot]) -> None:
    """Write each plot as a PNG of its own.

    Raises:
        UserError: they cannot be written.
    """
    with writing(f"The plots in '{directory}'", "Make room, or give another place."):
        directory.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (directory / f"{plot.name}.png").write_bytes(plot.png)


def _figure(plot: Plot) -> Markup:
    """Matplotlib escapes what it is given, so its SVG is markup."""
    return Markup(plot.svg)


def _printable(text: str) -> str:
    """As on a terminal, but for the spaces that hold a number and its unit together."""
    return "\N{NO-BREAK SPACE}".join(printable(piece) for piece in text.split("\N{NO-BREAK SPACE}"))
