"""Pictures that are nearly the same, and pictures that are like no other: the other two places where wrong labels hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import map_in_order
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.inspection.analysis import Seen, analyze_image
from accel_flowers.inspection.findings import ImageFacts, find
from accel_flowers.labels.judged import Judged


@dataclass(frozen=True)
class Group:
    """Pictures that are nearly the same.

    Attributes:
        files: two or more.
        classes: of each of them.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def torn(self) -> bool:
        """Under two classes: at least one of the labels is wrong, unless both are on the picture."""
        return len(set(self.classes)) > 1


@dataclass(frozen=True)
class Far:
    """A picture that is like no other.

    Attributes:
        distance: to its nearest ones, in units of the usual distance.
    """

    file: str
    class_name: str
    distance: float


@dataclass(frozen=True)
class Neighbours:
    """What was found around the pictures.

    Attributes:
        space: by what they were compared, a sentence.
        groups: those under two classes first, then the nearest.
        far: the farthest first.
    """

    space: str
    groups: tuple[Group, ...]
    far: tuple[Far, ...]


def in_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Those under two classes first; else as they come."""
    return tuple(sorted(groups, key=lambda group: not group.torn))


def find_by_looks(judged: Judged) -> Neighbours:
    """Compare the pictures by perceptual hashes, and by where which colours and details are, as `inspect` does."""
    files = sorted(judged.classes)

    def look(file: str) -> Seen:
        try:
            return analyze_image(judged.photos.read(file), file)
        except (OSError, BadImageError) as error:
            return Seen(cause=str(error))

    seen = list(map_in_order(look, files, threads=available_cores()))
    facts = [ImageFacts(file, judged.classes[file], None, each) for file, each in zip(files, seen, strict=True)]
    found = find(judged.photos.source, sorted(set(judged.classes.values())), facts)
    groups = [
        Group(tuple(each.file for each in copies.images), tuple(each.class_name for each in copies.images))
        for copies in found.copies
    ]
    gone = sum(each.cause is not None for each in seen)
    return Neighbours(
        "Compared by perceptual hashes, and by where which colours and details are (as inspect does)."
        + (f" {gone:,} of {len(files):,} pictures could not be read." if gone else ""),
        in_order(groups),
        tuple(Far(each.file, each.class_name, distance) for each, distance in found.far),
    )


def find_neighbours(judged: Judged) -> Neighbours:
    """Near-duplicates and far pictures."""
    return find_by_looks(judged)
