"""`labels`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.distributed.environment import is_left_out

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LabelsWords:
    """List the labels that look wrong, by a model that never saw them: of all pictures by a probe or a study of folds, of the
    held-out ones by a run.

    --csv writes a file to edit: train with --data.label-fixes FILE as it is, and the pictures are left out; or first write the
    right class into its last column.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of probe --out, of train --folds, or of a run."""
    csv: Path | None = None
    """Write the list as file, given, suggested, p_given, p_suggested, label; the most doubtful first, label is yours to fill."""
    html: Path | None = None
    """Write a page with the pictures, their near-duplicates and those that are like no other; it stands alone."""
    data: str | None = None
    """Where the photos are now; None = where they were."""
    json: bool = False
    """Print all of it as one JSON object."""


_LABELS_ANSWERS = {
    "--out": "--csv FILE writes the list, --html FILE the page",
    "--run-dir": "the directory comes without a flag: accel-flowers labels DIR",
}


def labels_command(words: Sequence[str]) -> int:
    asked = parse_words(_LabelsWords, words, "labels", answers=_LABELS_ANSWERS)
    if is_left_out():
        return 0
    from accel_flowers.core.files import check_writable

    for path, flag in ((asked.csv, "--csv"), (asked.html, "--html")):
        if path is not None:
            check_writable(path, flag)
    from accel_flowers.labels.judged import judge_labels
    from accel_flowers.labels.output import as_json, csv_in_words, in_words, write_csv

    judged = judge_labels(asked.directory, asked.data)
    write_result(json.dumps(as_json(judged), indent=1, ensure_ascii=False) if asked.json else in_words(judged))
    if asked.csv:
        write_csv(asked.csv, judged)
        for line in csv_in_words(asked.csv, judged):
            _log.info(line)
    if asked.html:
        from accel_flowers.labels.neighbours import find_neighbours
        from accel_flowers.labels.page import write_labels_page

        write_labels_page(asked.html, judged, find_neighbours(judged))
        _log.info(f"the pictures to look at: {asked.html}")
    return 0
