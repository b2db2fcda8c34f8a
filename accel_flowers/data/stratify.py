"""A split of images with several labels each: iterative stratification, as a pure function of labels, groups and seed.

Source: Sechidis, Tsoumakas, Vlahavas 2011, "On the Stratification of Multi-Label Data", section 3. The rarest label comes first,
because it can be spread over the parts only while there is room everywhere; each of its images goes to the part that wants
this label most. What is added here: images that stay together count as one, ties are broken by the seed, and images without
a label are spread as those of a class are. (scikit-multilearn, which has it, is no longer kept, and knows no groups.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from accel_flowers.data.sampler import permutation, random_key
from accel_flowers.data.split import TooFewGroups


def make_split_of_sets(
    labels: npt.NDArray[np.bool_], groups: Sequence[int], fractions: Mapping[str, float], *, seed: int
) -> list[str]:
    """Assign each sample a part; each class has its share in each, as far as the images that have several allow.

    Args:
        labels: bool [N, C].
        groups: samples of equal number stay together.
        fractions: share of each part. Each part gets at least one group of every class, unless all that were left
            of a class had to go elsewhere for a rarer one.
        seed: what the choice follows from.

    Returns:
        The part of each sample.

    Raises:
        TooFewGroups: classes that have fewer groups than there are parts.
    """
    numbers = np.asarray(groups, dtype=np.int64)
    kinds, group_of = np.unique(numbers, return_inverse=True)
    num_groups, num_classes = len(kinds), labels.shape[1]
    # The last column: no label at all.
    counts = np.zeros((num_groups, num_classes + 1), dtype=np.int64)
    np.add.at(counts, group_of, np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1))
    sizes = np.bincount(group_of, minlength=num_groups)
    there = counts > 0
    few = {label: int(number) for label, number in enumerate(there[:, :num_classes].sum(axis=0))}
    few = {label: number for label, number in few.items() if number < len(fractions)}
    if few:
        raise TooFewGroups(few)

    shares = np.array(list(fractions.values()))
    shares = shares / shares.sum()
    wanted = np.outer(shares, counts.sum(axis=0))  # [parts, classes]: images of each class that a part still wants
    room = shares * sizes.sum()
    has = np.zeros(wanted.shape, dtype=np.bool_)
    part_of = np.full(num_groups, -1)
    turn = permutation(random_key(seed, "split of sets"), num_groups)

    def give(group: int, part: int) -> None:
        part_of[group] = part
        wanted[part] -= counts[group]
        room[part] -= sizes[group]
        has[part] |= there[group]

    left = there.sum(axis=0)
    while True:
        waiting = np.flatnonzero(left > 0)
        if not len(waiting):
            break
        # Of a class with few groups left the next one; images without a label come when all others are placed.
        label = int(min(waiting, key=lambda each: (each == num_classes, left[each], each)))
        own = np.flatnonzero(there[:, label] & (part_of < 0))
        for group in sorted(own.tolist(), key=lambda each: turn[each]):
            lacking = np.flatnonzero(~has[:, label])
            candidates = lacking if len(lacking) else np.arange(len(shares))
            # Most wanted for the class; of equal ones the part with the most room; of equal ones the first.
            part = max(candidates.tolist(), key=lambda each: (wanted[each, label], room[each], -each))
            give(group, part)
            left -= there[group]
    names = list(fractions)
    return [names[part_of[group]] for group in group_of.tolist()]
