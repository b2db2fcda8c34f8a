"""Findings of pictures with several labels → plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accel_flowers.core.plural import number_of
from accel_flowers.html.pages import percent
from accel_flowers.metrics.thresholds import USUAL
from accel_flowers.report.sets import SetFindings, SetMistake
from accel_flowers.report.text import NOT_TOLD, SURE_OF_LABELS, images, names_of, part_name, span

_NOT_BETTER = "The model is not surely better than an answer that looks at no picture"


def how_good(found: SetFindings) -> str:
    """The score and how sure it is."""
    if found.learnt:
        return f"Of {images(found.num_images)}, {found.right:,} have all their labels right and none too many."
    return (
        f"On other pictures of this kind expect {span(found.map)} (95\N{NO-BREAK SPACE}% interval). Of {images(found.num_images)}, "
        f"{found.right:,} have all their labels right and none too many ({percent(found.exact.value)})."
    )


def baseline(found: SetFindings) -> tuple[str, str]:
    """What no look at the pictures gets; and, where the score is not surely above it, what that means (else empty)."""
    told = (
        f"mAP is the mean over classes of average precision: how high the pictures with a class stand among all, by its probability. An "
        f"answer that looks at no picture has {percent(found.baseline)}, the mean share of pictures with a class."
    )
    if found.beats_baseline:
        return told, ""
    return told, f"{_NOT_BETTER}, so nothing is concluded here from what the model says."


def worst_class(found: SetFindings) -> tuple[str, str]:
    """Which class is told worst, and how."""
    if not found.beats_baseline:
        return NOT_TOLD, f"{_NOT_BETTER}: which class it is worst at says nothing."
    worst = found.worst
    assert worst.ap is not None
    if worst.ap.value == 1:
        return "No class stands out", "Every class has all its pictures in front of all others."
    said = (
        f"Of its {images(worst.num_images)} {worst.missed:,} {'is' if worst.missed == 1 else 'are'} missed, and it is said of "
        f"{images(worst.extra)} without it."
    )
    few = " With so few pictures that is not certain." if worst.num_images < 10 else ""
    return f"{worst.name} is worst, average precision {percent(worst.ap.value)}", said + few


def thresholds(found: SetFindings) -> tuple[str, str]:
    """From which probability on classes are said, and whether the number of labels comes out right."""
    moved = [each.name for each in found.classes if each.threshold != USUAL]
    headline = "Every class is said from 0.5 on"
    if moved:
        low, high = min(each.threshold for each in found.classes), max(each.threshold for each in found.classes)
        headline = f"Thresholds from {low:.2f} to {high:.2f}"
    chosen = (
        f"Validation chose {'that' if len(moved) == 1 else 'those'} of {names_of(moved)}; the others are 0.5. "
        if moved
        else "Validation chose no other: a threshold moves only where that helps pictures that it was not fitted on. "
    )
    return headline, (
        f"{chosen}Said of a picture are then {found.said_per_image:.2f} on average, and {found.labels_per_image:.2f} are its labels."
    )


def doubtful_labels(
    found: Sequence[SetMistake], looked_at: Mapping[str, int], not_looked_at: int, main: SetFindings
) -> tuple[str, str, str]:
    """How many labels look wrong, how far to believe it, and among which they were looked for."""
    if main.learnt:
        return NOT_TOLD, "All pictures here trained the network, with their labels.", "None is held out."
    total = sum(looked_at.values())
    method = (
        f"A label is named, missing or too many, when the model is as sure of the other answer as it usually is where that is the "
        f"label (confident learning, cleanlab, each class by itself), among the {total:,} pictures of "
        f"{names_of([part_name(part) for part in looked_at])}. The {not_looked_at:,} training pictures cannot be judged so: train again "
        "with another --train.seed, and others are held out."
    )
    if not main.beats_baseline:
        return NOT_TOLD, f"{_NOT_BETTER}: where it disagrees with a label, that says nothing of the label.", method
    if not found:
        return "No label looks wrong", f"None of {images(total)} that did not train the network.", method
    missing = sum(not each.missing for each in found)
    told = f"{missing:,} may be missing, {len(found) - missing:,} may be too many, the most doubtful first."
    if main.micro_f1 < SURE_OF_LABELS:
        belief = f"Its own micro F1 is {percent(main.micro_f1)}, so many of these will be its own mistakes: a person decides."
        return f"The model doubts {number_of(len(found), 'label')}", f"{told} {belief}", method
    told = f"{told} A person decides."
    looks = "label looks" if len(found) == 1 else "labels look"
    return f"{len(found):,} {looks} wrong", told, method
