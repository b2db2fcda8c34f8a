"""What was seen in each image → what a person should know before training. Pure: no files, no clock, no chance.

Some findings harm: an image that cannot be read, and copies under two classes (the same image has two different labels) or
in two parts (the model is evaluated on what it was trained on). The others are warnings, and decide nothing.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from accel_flowers.inspection.analysis import Seen
from accel_flowers.inspection.near_duplicates import MAX_BITS, group_alike
from accel_flowers.inspection.outliers import far_from_all

_T = TypeVar("_T")

SMALL_SIDE = 64
"""Pixels; an image whose shorter side has fewer is enlarged to several times its size for most networks, which see 224. By
reasoning, not measured, as the two below."""
LONG_RATIO = 3.0
"""An image whose one side is more than so many times the other loses most of itself in a square crop."""
UNBALANCED = 3.0
"""The largest class has more than so many times the images of the smallest."""
MANY_CLASSES = 6
"""From so many on rare and frequent classes are told as groups; of fewer the table of each says it all."""
PLAIN_MODES = ("RGB", "L")
"""Colours and grey of 8 bits; everything else is converted when it is read."""


@dataclass(frozen=True)
class ImageFacts:
    """One image with its place in the data set."""

    file: str
    class_name: str
    """Its class; of several labels all of them, in words."""
    part: str | None
    """Of a data set that comes in parts, or by the split that was given."""
    seen: Seen
    labels: tuple[str, ...] | None = None
    """Where an image may have several, all of them; None where it has one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in which it counts."""
        return (self.class_name,) if self.labels is None else self.labels


@dataclass(frozen=True)
class Copies:
    """Images of which one would do."""

    images: tuple[ImageFacts, ...]
    """In the order of their names."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in which they stand, sorted."""
        return tuple(sorted({image.class_name for image in self.images}))

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts in which they stand, sorted."""
        return tuple(sorted({image.part for image in self.images if image.part is not None}))

    @property
    def harmful(self) -> bool:
        """Under two classes or in two parts."""
        return len(self.class_names) > 1 or len(self.parts) > 1


@dataclass(frozen=True)
class Findings:
    """All that an inspection found; lists of images are in the order of their names, but for `far`.

    Attributes:
        source: what was looked at.
        num_images: those looked at, readable or not.
        class_counts: class → part (or "") → readable images; every class is there.
        unreadable: file → cause.
        identical: groups of files with the same bytes.
        alike: groups with small differences (at least two different files), linked by likeness.
        small: shorter side below `SMALL_SIDE`.
        long: one side more than `LONG_RATIO` times the other.
        converted: stored in other colours than plain RGB or grey.
        turned: EXIF asks for a turn or a mirror image.
        few: class → different images of its own, where they are too few for one in each part that has to be drawn.
        parts_to_draw: these parts.
        far: unlike all others, with the distance in units of the usual one; the farthest first.
        modes: how files store colours → number.
        formats: kind of file → number.
        sizes: (width, height), upright → number.
        ignored: files that are no images by their names.
        left_out: reason → how many files and folders were passed over.
        notes: how the data set was understood where that is not plain.
        label_counts: where an image may have several labels, number of labels → readable images; None where it has one.
    """

    source: str
    num_images: int
    class_counts: Mapping[str, Mapping[str, int]]
    unreadable: Mapping[str, str]
    identical: tuple[Copies, ...]
    alike: tuple[Copies, ...]
    small: tuple[ImageFacts, ...]
    long: tuple[ImageFacts, ...]
    converted: tuple[ImageFacts, ...]
    turned: tuple[ImageFacts, ...]
    few: Mapping[str, int]
    parts_to_draw: tuple[str, ...]
    far: tuple[tuple[ImageFacts, float], ...]
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    ignored: tuple[str, ...]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    label_counts: Mapping[int, int] | None = None

    @property
    def without_label(self) -> int:
        """Readable images without any label."""
        return (self.label_counts or {}).get(0, 0)

    @property
    def copies(self) -> tuple[Copies, ...]:
        """All groups, the harmful ones first."""
        return tuple(sorted([*self.identical, *self.alike], key=lambda group: not group.harmful))

    @property
    def harmful(self) -> bool:
        """There is an error to fix before training."""
        return bool(self.unreadable) or self.cannot_be_split or any(group.harmful for group in self.copies)

    @property
    def cannot_be_split(self) -> bool:
        """A class has too few images even for training and validation."""
        return any(number < 2 for number in self.few.values())

    @property
    def class_sizes(self) -> dict[str, int]:
        """Class → readable images, over all parts."""
        return {name: sum(counts.values()) for name, counts in self.class_counts.items()}

    @property
    def unbalanced(self) -> bool:
        """The largest class is more than `UNBALANCED` times the smallest."""
        sizes = self.class_sizes.values()
        return max(sizes) > UNBALANCED * min(sizes)

    @property
    def tail(self) -> tuple[str, ...]:
        """The smallest classes: all but those that are needed, the largest first, for half of the images; the smallest first."""
        order = sorted(self.class_sizes, key=lambda name: -self.class_sizes[name])
        counted = np.cumsum([self.class_sizes[name] for name in order])
        head = int(np.searchsorted(counted, counted[-1] / 2)) + 1
        return tuple(reversed(order[head:]))

    @property
    def median_size(self) -> tuple[int, int] | None:
        """Median width and median height, in pixels."""
        if not self.sizes:
            return None
        widths, heights = zip(*(size for size, number in self.sizes.items() for _ in range(number)), strict=True)
        return int(statistics.median_low(widths)), int(statistics.median_low(heights))


def find(
    source: str,
    class_names: Sequence[str],
    images: Sequence[ImageFacts],
    *,
    unreadable: Mapping[str, str] | None = None,
    ignored: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    parts_to_draw: Sequence[str] = (),
    max_bits: int = MAX_BITS,
) -> Findings:
    """Put together what was seen.

    Args:
        source: what was looked at, for the reader.
        class_names: all classes, in their order.
        images: one for each file that was looked at.
        unreadable: file → cause, of files that could not even be opened.
        ignored: files that are no images by their names.
        left_out: reason → how many files and folders were passed over.
        notes: how the data set was understood where that is not plain.
        parts_to_draw: of a split that a training would draw; none where the data set or a file gives it.
        max_bits: images whose perceptual hashes differ in more bits are different images.
    """
    images = sorted(images, key=lambda image: image.file)
    good = [image for image in images if image.seen.cause is None]
    bad = dict(unreadable or {}) | {image.file: image.seen.cause for image in images if image.seen.cause}
    counts: dict[str, Counter[str]] = {name: Counter() for name in class_names}
    for image in good:
        for name in image.classes:
            counts[name][image.part or ""] += 1
    several = any(image.labels is not None for image in images)
    sides = [(min(seen.width, seen.height), max(seen.width, seen.height)) for seen in (p.seen for p in good)]
    return Findings(
        source=source,
        num_images=len(images) + len(unreadable or {}),
        class_counts=counts,
        unreadable=dict(sorted(bad.items())),
        identical=_identical(good),
        alike=_alike(good, max_bits),
        small=tuple(p for p, (short, _) in zip(good, sides, strict=True) if short < SMALL_SIDE),
        long=tuple(p for p, (short, long) in zip(good, sides, strict=True) if long > LONG_RATIO * short),
        converted=tuple(p for p in good if p.seen.mode not in PLAIN_MODES),
        turned=tuple(p for p in good if p.seen.orientation != 1),
        few=_few(good, class_names, parts_to_draw),
        parts_to_draw=tuple(parts_to_draw),
        far=_far(good),
        modes=_counted(p.seen.mode for p in good),
        formats=_counted(p.seen.format for p in good),
        sizes=_counted((p.seen.width, p.seen.height) for p in good),
        ignored=tuple(ignored),
        left_out=dict(sorted((left_out or {}).items())),
        notes=tuple(notes),
        label_counts=dict(sorted(Counter(len(image.classes) for image in good).items())) if several else None,
    )


def _few(images: Sequence[ImageFacts], class_names: Sequence[str], parts: Sequence[str]) -> dict[str, int]:
    """Classes too small to be split, counted as the split counts: an image under two classes belongs to the first."""
    drawn = [image for image in images if image.part in (None, "train")]
    if any(image.labels is not None for image in drawn):  # an image belongs to all of its classes
        different = Counter(
            name for name, _ in {(name, image.seen.digest) for image in drawn for name in image.classes}
        )
        return {name: different[name] for name in class_names if different[name] < len(parts)}
    order = {name: label for label, name in enumerate(class_names)}
    owner: dict[str, str] = {}
    for image in sorted(drawn, key=lambda image: order[image.class_name]):
        owner.setdefault(image.seen.digest, image.class_name)
    numbers = Counter(owner.values())
    return {name: numbers[name] for name in class_names if numbers[name] < len(parts)}


def _counted(values: Iterable[_T]) -> dict[_T, int]:
    """Value → number, the most frequent first."""
    return dict(Counter(values).most_common())


def _identical(images: Sequence[ImageFacts]) -> tuple[Copies, ...]:
    groups: dict[str, list[ImageFacts]] = defaultdict(list)
    for image in images:
        groups[image.seen.digest].append(image)
    return tuple(Copies(tuple(group)) for group in groups.values() if len(group) > 1)


def _alike(images: Sequence[ImageFacts], max_bits: int) -> tuple[Copies, ...]:
    if not images:
        return ()
    hashes = np.array([image.seen.phash for image in images], np.uint64)
    sketches = np.stack([image.seen.sketch for image in images if image.seen.sketch is not None])
    groups = ([images[place] for place in group] for group in group_alike(hashes, sketches, max_bits=max_bits))
    return tuple(Copies(tuple(group)) for group in groups if len({image.seen.digest for image in group}) > 1)


def _far(images: Sequence[ImageFacts]) -> tuple[tuple[ImageFacts, float], ...]:
    # Copies of one file are one image here: else a far one with a few copies would have near neighbours.
    different = list({image.seen.digest: image for image in reversed(images)}.values())[::-1]
    if not different:
        return ()
    features = np.stack([image.seen.features for image in different if image.seen.features is not None])
    return tuple((different[place], distance) for place, distance in far_from_all(features))
