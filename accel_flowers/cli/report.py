"""`report` and `compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.distributed.environment import is_left_out


@dataclass(frozen=True)
class _ReportWords:
    """Draw a run as one page (RUN_DIR/report.html) with its plots (RUN_DIR/plots/): scores, mistakes, labels, data."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a run, finished or going on."""
    data: str | None = None
    """Where the photos are now; None = where the run had them."""


_REPORT_ANSWERS = {
    "--out": "the page is always RUN_DIR/report.html",
    "--html": "the page is always RUN_DIR/report.html",
    "--run-dir": "the run comes without a flag: accel-flowers report RUN_DIR",
}


def report_command(words: Sequence[str]) -> int:
    asked = parse_words(_ReportWords, words, "report", answers=_REPORT_ANSWERS)
    if is_left_out():
        return 0
    from accel_flowers.report.draw import draw_report

    write_result(str(draw_report(asked.run_dir, asked.data)))
    return 0


@dataclass(frozen=True)
class _CompareWords:
    """Compare runs on the held-out images that all of them have: a table, a page, and whether the gain could be luck."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs; the others are compared with the first."""
    out: Path = Path("compare.html")
    """The page."""
    data: str | None = None
    """Where the photos are now; None = where the first run had them."""
    json: bool = False
    """Print all numbers as one JSON object instead of the table."""


_COMPARE_ANSWERS = {
    "--html": "--out FILE says where the page goes",
}


def compare_command(words: Sequence[str]) -> int:
    asked = parse_words(_CompareWords, words, "compare", answers=_COMPARE_ANSWERS)
    if is_left_out():
        return 0
    from accel_flowers.study.compare import are_studies, compare_studies

    if len(asked.run_dirs) > 1 and are_studies(asked.run_dirs):
        studies = compare_studies(asked.run_dirs)
        write_result(json.dumps(studies.as_json(), indent=1, ensure_ascii=False) if asked.json else studies.in_words())
        return 0
    from accel_flowers.report.compare import compare_runs, in_words

    found = compare_runs(asked.run_dirs, out=asked.out, data=asked.data)
    write_result(
        json.dumps(found.as_json(), indent=1, ensure_ascii=False) if asked.json else f"{in_words(found)}\n\n{asked.out}"
    )
    return 0
