"""What belongs together, so that a split never tears it apart: copies, and pictures that are said to show one thing."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of

SaidGroups = Mapping[str, Mapping[str, str]]
"""Who says it, as one types it ("data.group_column plant") → picture → its group; what it does not name stands alone."""


def named_groups(files: Sequence[str], pattern: str) -> dict[str, str]:
    r"""The group of each file: what its name says before, or in, the pattern.

    Args:
        files: names, relative to the folder, with forward slashes.
        pattern: regular expression that is searched in a name; its first group, where it has one, else all that matches, names the
            group: r"(plant\d+)_" for photos of one plant.

    Returns:
        File → group, of those in which it is found.

    Raises:
        UserError: it is none, or is found in no file.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group_pattern '{pattern}' is no regular expression: {error}.") from None
    found = {name: match for name in files if (match := expression.search(name))}
    if files and not found:
        raise UserError(
            f"data.group_pattern '{pattern}' is found in none of the names, such as '{files[0]}': it is a regular expression whose first "
            r"group names what belongs together, such as '(plant\d+)_'."
        )
    groups = {name: match[1] if expression.groups else match[0] for name, match in found.items()}
    return {name: group for name, group in groups.items() if group is not None}


def tied_groups(groups: Sequence[Hashable], files: Sequence[str], said: SaidGroups) -> list[int]:
    """Groups, and what is said to belong together, as one: see `join_groups`.

    Args:
        groups: of each file, such as its copies.
        files: names.
        said: what belongs together beside that.
    """
    return join_groups(groups, *([each.get(name) for name in files] for each in said.values()))


def describe_groups(files: Sequence[str], said: SaidGroups) -> list[str]:
    """How many groups pictures make by each that says it, a line each."""
    lines = []
    for by, groups in said.items():
        named = [groups[name] for name in files if name in groups]
        alone = len(files) - len(named)
        rest = f"; {number_of(alone, 'picture')} of which it says nothing, on its own each" if alone else ""
        lines.append(f"{by}: {number_of(len(set(named)), 'group')}{rest}")
    return lines


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
