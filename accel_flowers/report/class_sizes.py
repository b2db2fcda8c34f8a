"""Whether rare classes fare worse: accuracy by the number of training images of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from accel_flowers.inspection.findings import MANY_CLASSES, UNBALANCED
from accel_flowers.metrics.intervals import Interval, accuracy_interval
from accel_flowers.report.findings import PartFindings

_GROUPS = ("rarest", "middle", "most frequent")


@dataclass(frozen=True)
class SizeGroup:
    """About a third of the classes.

    Attributes:
        name: of the group, for people.
        classes: their names, the rarest first.
        fewest, most: training images of its smallest and its largest class.
        num_images, hits: held-out images, and how many of them were right.
        accuracy: of the images of the group, with its interval; None where it has none.
        mean_recall: of its classes that have held-out images, each weighing the same.
    """

    name: str
    classes: tuple[str, ...]
    fewest: int
    most: int
    num_images: int
    hits: int
    accuracy: Interval | None
    mean_recall: float


def find_size_groups(trained: Mapping[str, int], found: PartFindings) -> tuple[SizeGroup, ...]:
    """Thirds of the classes by training images, the rarest first; empty where classes are about equally large, or few.

    Classes of equally many images stand together, so that groups may be no exact thirds, or two.

    Args:
        trained: class → training images; empty = not known.
        found: the scores.
    """
    if len(trained) < MANY_CLASSES or max(trained.values()) <= UNBALANCED * min(trained.values()):
        return ()
    order = sorted(trained, key=lambda name: trained[name])
    steps = [place for place in range(1, len(order)) if trained[order[place]] != trained[order[place - 1]]]
    cuts = sorted({min(steps, key=lambda step: abs(step - len(order) * third / 3)) for third in (1, 2)})
    names = _GROUPS if len(cuts) == 2 else (_GROUPS[0], _GROUPS[-1])
    parts = zip(names, pairwise([0, *cuts, len(order)]), strict=True)
    return tuple(_group(name, order[first:end], trained, found) for name, (first, end) in parts)


def _group(name: str, classes: Sequence[str], trained: Mapping[str, int], found: PartFindings) -> SizeGroup:
    members = set(classes)
    there = [each for each in found.classes if each.name in members and each.num_images]
    hits, number = sum(each.hits for each in there), sum(each.num_images for each in there)
    return SizeGroup(
        name=name,
        classes=tuple(classes),
        fewest=trained[classes[0]],
        most=trained[classes[-1]],
        num_images=number,
        hits=hits,
        accuracy=accuracy_interval(hits, number) if number else None,
        mean_recall=sum(each.recall.value for each in there) / len(there) if there else 0.0,
    )
