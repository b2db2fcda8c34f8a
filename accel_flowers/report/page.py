"""What was found → one HTML file that asks nobody for anything. Everything that comes from a run is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from accel_flowers import __version__
from accel_flowers.files import write_text_durably, writing
from accel_flowers.report import words
from accel_flowers.report.plots import MOST_CLASSES, Plot


def render(template: str, **values: Any) -> str:
    """Fill a template of this package.

    Args:
        template: file name, such as "report.html".
        values: what it shows; strings are text, never markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accel_flowers.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "words": words,
        "version": __version__,
        "figure": _figure,
        "MOST_CLASSES": MOST_CLASSES,
        "MOST_ROWS": 20,
    }
    environment.filters |= {"percent": words.percent, "span": words.span, "printable": _printable}
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with writing(f"The page '{path}'", "Make room, or give another place."):
        write_text_durably(path, text.encode("utf-8", "replace").decode())


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


def _printable(name: str) -> str:
    """A name without the characters that would turn the text around or hide it."""
    return "".join(
        character if character.isprintable() or character == "\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}"
        for character in name
    )
