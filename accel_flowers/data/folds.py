"""Which image is held out in which fold: pure, seeded, stratified; what belongs together is never torn apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from accel_flowers.data.sampler import permutation, random_key
from accel_flowers.data.split import groups_by_class


def make_folds(labels: Sequence[int], groups: Sequence[int], num_folds: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Deal images out to folds, each class by itself, so that every fold has its share of every class.

    Args:
        labels: class of each image, N of them.
        groups: images of equal number stay together; a group that spans classes counts for its lowest label.
        num_folds: at least 2.
        seed: what the choice follows from.

    Returns:
        Fold of each image, int64 [N]. Of a class whose groups are single images the folds' shares differ by one at most.

    Raises:
        TooFewGroups: classes that have fewer groups than there are folds.
    """
    of_class = groups_by_class(labels, groups, fewest=num_folds)
    folds = np.full(len(labels), -1, dtype=np.int64)
    filled = np.zeros(num_folds, dtype=np.int64)
    for label in sorted(of_class):
        shuffled = [
            of_class[label][place] for place in permutation(random_key(seed, "folds", label), len(of_class[label]))
        ]
        # Large groups first: what comes later fills up what they leave uneven.
        shuffled.sort(key=len, reverse=True)
        own = np.zeros(num_folds, dtype=np.int64)
        for samples in shuffled:
            fold = min(range(num_folds), key=lambda each: (own[each], filled[each], each))
            folds[samples] = fold
            own[fold] += len(samples)
            filled[fold] += len(samples)
    return folds


def subsample(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], fraction: float, *, seed: int
) -> npt.NDArray[np.bool_]:
    """Draw a share of images, classes in proportion, whole groups; a smaller share of the same seed lies in a larger one.

    Args:
        labels, groups: as of `make_folds`, int64 [N].
        fraction: 0 to 1; of each class at least one group is drawn.
        seed: what the choice follows from.

    Returns:
        Whether each image is drawn, bool [N].
    """
    lowest: dict[int, int] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        lowest[group] = min(label, lowest.get(group, label))
    of_class: dict[int, list[int]] = defaultdict(list)
    for group, label in lowest.items():
        of_class[label].append(group)
    drawn: list[int] = []
    for label, its_groups in of_class.items():
        order = permutation(random_key(seed, "subsample", label), len(its_groups))
        number = max(1, round(fraction * len(its_groups)))
        drawn += [its_groups[place] for place in order[:number]]
    return np.isin(groups, drawn)
