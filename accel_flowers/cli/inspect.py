"""`inspect`."""

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
class _InspectWords:
    """Look at all images before any of them costs training time.

    Exit code 1: problems that harm training were found: files that cannot be read, and copies (identical files or near
    duplicates) under two classes or in two parts. All else is a warning, for a person to judge, and leaves the exit code
    0: other copies, images far from every other, classes of very different size, small and long images, EXIF turns,
    unusual colour modes. 2 is a mistake in the words or in the folder's layout.
    """

    source: tyro.conf.Positional[str]
    """Folder with one sub-folder per class (or train, val and test of such), a .zip of one, or hub:OWNER/NAME."""
    label_column: str | None = None
    """Column of the classes of a dataset or a CSV; None = the one there is."""
    label_separator: str | None = None
    """What stands there between several class names, as ';' in 'rose;tulip'."""
    label_columns: tuple[str, ...] = ()
    """Columns of 0 and 1 instead, one for each class; all = those that hold nothing else."""
    label_fixes: Path | None = None
    """A CSV of file and label, as `accel-flowers labels` writes it: an empty label leaves the picture out, a class is the picture's."""
    json: bool = False
    """Print all findings as one JSON object."""
    html: Path | None = None
    """Also write a page with the images to look at; it stands alone."""
    split: Path | None = None
    """A run's split.json: find copies across its parts."""
    near: int = 8
    """Near duplicates differ in at most so many bits of a 64-bit perceptual hash (0 to 16)."""
    show_transforms: str | None = None
    """Recipe (name or file) whose augmentations are drawn on a sheet, as the network sees them in the first epochs."""
    transforms_out: Path = Path("transforms.png")
    """Where that sheet goes."""
    num_workers: int | None = None
    """Processes that look at images; None = the cores of this machine, 0 = this one alone."""


_INSPECT_ANSWERS = {
    "--data": "the folder comes without a flag: accel-flowers inspect DIR",
    "--out": "--html FILE writes a page, --json prints all of it",
    "--batch-size": "pictures are looked at one by one",
}


def inspect_command(words: Sequence[str]) -> int:
    asked = parse_words(_InspectWords, words, "inspect", answers=_INSPECT_ANSWERS)
    if is_left_out():
        return 0  # inspection is for one process: started on several, the first does it
    from accel_flowers.inspection.command import inspect_source
    from accel_flowers.inspection.text import as_json, in_words

    findings = inspect_source(
        asked.source,
        label_column=asked.label_column,
        label_separator=asked.label_separator,
        label_columns=asked.label_columns,
        label_fixes=asked.label_fixes,
        split_file=asked.split,
        max_bits=asked.near,
        num_workers=asked.num_workers,
        html=asked.html,
        recipe=asked.show_transforms,
        sheet=asked.transforms_out,
    )
    write_result(json.dumps(as_json(findings), indent=1, ensure_ascii=False) if asked.json else in_words(findings))
    if asked.html:
        _log.info(f"the pictures to look at: {asked.html}")
    if asked.show_transforms:
        _log.info(f"augmentations of {asked.show_transforms}: {asked.transforms_out}")
    return 1 if findings.harmful else 0
