"""What belongs together, so that a split never tears it apart: copies, and pictures whose names say that they show one thing."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from accel_flowers.core.errors import UserError


def named_groups(files: Sequence[str], pattern: str) -> list[str | None]:
    r"""The group of each file: what its name says before, or in, the pattern.

    Args:
        files: names, relative to the folder, with forward slashes.
        pattern: regular expression that is searched in a name; its first group, where it has one, else all that matches, names the
            group: r"(plant\d+)_" for photos of one plant.

    Returns:
        None for a file in which it is not found: it stands alone.

    Raises:
        UserError: it is found in no file.
    """
    expression = re.compile(pattern)
    found = [expression.search(name) for name in files]
    if files and not any(found):
        raise UserError(
            f"data.group_pattern '{pattern}' is found in none of the names, such as '{files[0]}': it is a regular expression whose first "
            r"group names what belongs together, such as '(plant\d+)_'."
        )
    return [None if match is None else match[1] if expression.groups else match[0] for match in found]


def join_groups(*groupings: Sequence[Hashable | None]) -> list[int]:
    """Groups that are tied by any of several groupings: two samples are together where a chain of equal groups leads from one to the
    other; None ties nothing.

    Args:
        groupings: group of each sample, N of them each.

    Returns:
        The number of each sample's group, in the order in which they first come.
    """
    parents = list(range(len(groupings[0])))

    def root(sample: int) -> int:
        while parents[sample] != sample:
            parents[sample] = parents[parents[sample]]
            sample = parents[sample]
        return sample

    for grouping in groupings:
        first: dict[Hashable, int] = {}
        for sample, group in enumerate(grouping):
            if group is not None:
                one, other = root(first.setdefault(group, sample)), root(sample)
                parents[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(sample), len(numbers)) for sample in range(len(parents))]
