"""A study → one HTML page."""

from __future__ import annotations

from pathlib import Path

from accel_flowers.config.schema import Config
from accel_flowers.html.pages import Thumbnails, write_page
from accel_flowers.report import text as words
from accel_flowers.report.draw import REPORT_FILE
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import classes_plot, confusion_plot
from accel_flowers.study.summary import Summary

_CANDIDATES = 60
"""Labels to look at that the page shows."""


def write_study_page(run_dir: Path, summary: Summary, config: Config) -> Path:
    """Write `report.html` into the study's directory.

    Args:
        run_dir: the study's.
        summary: what its runs said.
        config: says where the images are.

    Raises:
        UserError: the file cannot be written.
    """
    found = summary.findings
    plots = {}
    if found:
        told = f"{words.images(found.num_images)} out of fold"
        plots = {"confusion": confusion_plot(found, told), "classes": classes_plot(found, told)}
    write_page(
        run_dir / REPORT_FILE,
        "study.html",
        advice="Make room, or give another place.",
        name=run_dir.absolute().name,
        summary=summary,
        found=found,
        good=words.how_good(found) if found else "",
        worst=words.worst_class(found) if found else ("", ""),
        labels=summary.labels_in_words(),
        candidates=summary.candidates[:_CANDIDATES] if found and found.beats_baseline else (),
        plots=plots,
        thumbnail=Thumbnails(Photos(config.data.path).read),
    )
    return run_dir / REPORT_FILE
