"""Labels of images in either form: one class of each, int64 [N], or any number of classes of each, bool [N, C].

Whoever only asks which classes there are, or which images belong together, asks here and need not know the form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from accel_flowers.core.plural import number_of

Labels = npt.NDArray[np.int64] | npt.NDArray[np.bool_]
"""int64 [N], the class of each image; or bool [N, C], for each class whether it is one of the image's labels."""


def are_several(labels: Labels) -> bool:
    """Whether an image may have several labels, or none."""
    return labels.ndim == 2


def encode(sets: Sequence[Sequence[str]], class_names: Sequence[str], *, several: bool) -> Labels:
    """Class names of each image → labels.

    Args:
        sets: of each image; exactly one name each unless `several`.
        class_names: C of them; a label is the index into them.
        several: the form.
    """
    number = {name: label for label, name in enumerate(class_names)}
    if not several:
        return np.array([number[name] for (name,) in sets], dtype=np.int64)
    labels = np.zeros((len(sets), len(class_names)), dtype=np.bool_)
    for row, names in enumerate(sets):
        labels[row, [number[name] for name in names]] = True
    return labels


def as_several(labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
    """The same as bool [N, C]: of images with one class each that alone is true."""
    if are_several(labels):
        return np.asarray(labels, dtype=np.bool_)
    return np.asarray(labels[:, None] == np.arange(num_classes))


def renumbered(labels: Labels, numbers: Sequence[int], num_classes: int, *, several: bool) -> Labels:
    """The same labels among other classes.

    Args:
        labels: of either form.
        numbers: of each class its number among the others.
        num_classes: how many those are.
        several: the form of what is returned; where images may have several labels, it must be true.
    """
    if not several:
        return np.asarray(np.asarray(numbers, dtype=np.int64)[labels])
    found = np.zeros((len(labels), num_classes), dtype=np.bool_)
    found[:, list(numbers)] = as_several(labels, len(numbers))
    return found


def label_sets(labels: Labels) -> list[tuple[int, ...]]:
    """The classes of each image, rising."""
    if not are_several(labels):
        return [(label,) for label in labels.tolist()]
    sets: list[list[int]] = [[] for _ in labels]
    for row, label in zip(*(places.tolist() for places in np.nonzero(labels)), strict=True):
        sets[row].append(label)
    return [tuple(each) for each in sets]


def classes_in(labels: Labels) -> set[int]:
    """The classes that some image has."""
    return set(np.flatnonzero(labels.any(axis=0)).tolist()) if are_several(labels) else set(np.unique(labels).tolist())


def strata(labels: Labels) -> npt.NDArray[np.int64]:
    """One class for each image, by which a selection keeps its proportions: of several the rarest; C where there is none."""
    if not are_several(labels):
        return np.asarray(labels, dtype=np.int64)
    counts = labels.sum(axis=0)
    rarest_first = np.argsort(counts, kind="stable")
    place = labels[:, rarest_first].argmax(axis=1)
    return np.where(labels.any(axis=1), rarest_first[place], labels.shape[1]).astype(np.int64)


def counts_in_words(labels: npt.NDArray[np.bool_]) -> str:
    """How many labels the images have, for a person."""
    each = labels.sum(axis=1)
    without = int((each == 0).sum())
    told = f"labels a picture: {each.mean():.2f} on average, {each.min()} to {each.max()}"
    return told + (f"; {number_of(without, 'picture')} without any" if without else "")
