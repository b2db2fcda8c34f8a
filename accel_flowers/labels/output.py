"""Doubtful labels as words, as a CSV to edit, and as JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accel_flowers.core.errors import printable
from accel_flowers.core.files import write_text_durably, writing
from accel_flowers.core.plural import number_of
from accel_flowers.labels.judged import Judged
from accel_flowers.report.text import SURE_OF_LABELS, images, part_name

SHOWN = 60
"""Doubtful labels that are listed in words and shown on the page; the CSV and the JSON have all."""
COLUMNS = ("file", "given", "suggested", "p_given", "p_suggested", "label")


def headline(judged: Judged) -> str:
    """How many labels look wrong, of how many that could be judged."""
    if not judged.main.beats_baseline:
        return "No label can be judged"
    count, judgeable = len(judged.candidates), number_of(judged.num_judged, "label")
    return (
        f"{count:,} of {judgeable} look{'s' if count == 1 else ''} wrong"
        if count
        else f"None of {judgeable} looks wrong"
    )


def explained(judged: Judged) -> list[str]:
    """Who judged which labels, and how far to believe it; sentences."""
    told = []
    if judged.kind == "run":
        held_out = images(judged.num_judged)
        told.append(
            f"A run judges what it held out: {held_out} of validation and test. The {judged.num_learned:,} that it learned from, with "
            "their labels, it cannot judge; train RECIPE --folds 5, or probe PHOTOS --out DIR, judge all of them."
        )
    else:
        whom = "a run" if judged.kind == "folds" else "a linear head"
        told.append(f"All {images(judged.num_judged)} were judged, each by {whom} that never saw it.")
    if not judged.main.beats_baseline:
        told.append(
            f"But on {_of_what(judged)} ({images(judged.main.num_images)}) the model is not surely better than always saying one class: where "
            "it disagrees with a label, that says nothing of the label."
        )
        return told
    told.append(
        "How many labels of a class are wrong follows from the pictures of which the model is as sure of another class as it usually is "
        "of that class's own (confident learning, cleanlab); listed are as many, those whose label it believes least, the most doubtful first."
    )
    accuracy = judged.main.accuracy.value
    if judged.candidates and accuracy < SURE_OF_LABELS:
        told.append(
            f"The model is wrong itself on {100 * (1 - accuracy):.0f} % of {_of_what(judged)}, so many of these will be its own mistakes."
        )
    told.append("A person decides: a rare view of a class looks wrong, too.")
    return told


def _of_what(judged: Judged) -> str:
    return f"what is {part_name(judged.main.part)}" if judged.kind == "run" else "all of them"


def in_words(judged: Judged) -> str:
    """For a terminal."""
    lines = [headline(judged), *(f"  {line}" for line in explained(judged))]
    for each in judged.candidates[:SHOWN]:
        lines.append(
            f"{printable(each.file)}: {printable(each.suggested)}? {100 * each.p_suggested:.0f} % "
            f"(label: {printable(each.given)} {100 * each.p_given:.0f} %)"
        )
    if (more := len(judged.candidates) - SHOWN) > 0:
        lines.append(f"and {more:,} more, which --csv FILE and --json list")
    return "\n".join(lines)


def as_json(judged: Judged) -> dict[str, Any]:
    """Plain values."""
    return {
        "kind": judged.kind,
        "num_judged": judged.num_judged,
        "num_learned": judged.num_learned,
        "accuracy": asdict(judged.main.accuracy),
        "beats_baseline": judged.main.beats_baseline,
        "candidates": [asdict(each) for each in judged.candidates],
        "earlier_fixes": dict(judged.fixes),
    }


def earlier_fixes(judged: Judged) -> dict[str, str]:
    """What the label fixes that it was made with say of pictures that are not doubted again: picture → class, or ""."""
    doubted = {each.file for each in judged.candidates}
    return {name: label or "" for name, label in sorted(judged.fixes.items()) if name not in doubted}


def write_csv(path: Path, judged: Judged) -> None:
    """Write the list, to be edited and given to `data.label_fixes`.

    A row for each doubtful label, the most doubtful first, whose empty `label` leaves the picture out. Behind them stand the fixes
    that it was made with, so that the new file replaces theirs.

    Raises:
        UserError: the file cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        (each.file, each.given, each.suggested, f"{each.p_given:.4f}", f"{each.p_suggested:.4f}", "")
        for each in judged.candidates
    )
    writer.writerows((name, "", "", "", "", label) for name, label in earlier_fixes(judged).items())
    with writing(f"'{path}'", "Give another file with --csv FILE."):
        write_text_durably(path, stream.getvalue())


def csv_in_words(path: Path, judged: Judged) -> list[str]:
    """What to do with the file, a line each."""
    told = f"'{path}': {number_of(len(judged.candidates), 'label')} to look at"
    if earlier := earlier_fixes(judged):
        told += f", and {number_of(len(earlier), 'fix', many='fixes')} that these pictures were looked at with"
    return [
        told,
        "look at them first: a score without the pictures that a model got wrong is too good",
        f"to train without them: --data.label-fixes {path}; or write into its column label first: a class for what you correct, the given "
        "class for what you keep",
    ]
