"""Which image is trained on, which validates, which tests: a pure, seeded, stratified split, and its file.

Byte-identical images form a group that is never torn apart; everything follows from labels, groups, fractions and
seed. Reading the images is not done here.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_text_durably, writing
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.data.sampler import permutation, random_key

PARTS = ("train", "val", "test")
_FORMAT = 1
_MAX_BYTES = 2**30
"""Size of a split.json; that of the ten million images of a large public data set has half of it."""


class PartOfFile(Mapping[str, str]):
    """File → its part, for a million files: sorted names and a byte for each.

    Args:
        parts: file → "train", "val" or "test".
    """

    def __init__(self, parts: Mapping[str, str]) -> None:
        self._names = tuple(sorted(parts))
        codes = {part: code for code, part in enumerate(PARTS)}
        self._codes = np.fromiter((codes[parts[name]] for name in self._names), dtype=np.uint8, count=len(self._names))
        self._files: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, file: str) -> str:
        place = bisect_left(self._names, file) if isinstance(file, str) else len(self._names)
        if place == len(self._names) or self._names[place] != file:
            raise KeyError(file)
        return PARTS[self._codes[place]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"PartOfFile({dict(self)!r})"

    def items(self) -> ItemsView[str, str]:
        """In the files' order, without looking each of them up."""
        return dict(zip(self._names, map(PARTS.__getitem__, self._codes.tolist()), strict=True)).items()

    def values(self) -> ValuesView[str]:
        """The same of the parts alone."""
        return dict(self.items()).values()

    def files_of(self, part: str) -> tuple[str, ...]:
        """The files of one part, sorted; found once."""
        if part not in self._files:
            places = np.flatnonzero(self._codes == PARTS.index(part)) if part in PARTS else ()
            self._files[part] = tuple(self._names[place] for place in places)
        return self._files[part]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


@dataclass(frozen=True)
class Split:
    """Every image of a folder with its part, or with the reason why it is left out.

    Attributes:
        class_names: a label is the index into them.
        parts: file (relative to the folder, with forward slashes) → "train", "val" or "test"; any mapping may be given.
        left_out: file → cause, for images that cannot be read or would stand on both sides.
        duplicates: groups of files with the same bytes.
        relabelled: file → its class, for images whose class is another one than the data set says.
    """

    class_names: tuple[str, ...]
    parts: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    duplicates: tuple[tuple[str, ...], ...] = ()
    relabelled: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.parts, PartOfFile):
            object.__setattr__(self, "parts", PartOfFile(self.parts))

    def files_of(self, part: str) -> list[str]:
        """The files of one part, sorted."""
        assert isinstance(self.parts, PartOfFile)
        return list(self.parts.files_of(part))


def subsample_split(
    split: Split, labels: Mapping[str, int], sizes: Mapping[str, int], *, seed: int, cause: str, each_class: bool = True
) -> Split:
    """The same split with fewer images, classes in proportion, drawn from `seed`.

    Args:
        split: whole.
        labels: class of each file.
        sizes: part → number of images to keep, of fewer all; other parts stay whole. At least one of each class is
            kept, also where that makes more, but 0 keeps none.
        seed: what the choice follows from.
        cause: stands in `left_out` for the others.
        each_class: False = no more than `sizes` are kept where there are more classes than that; some then have none.
    """
    parts, left_out = dict(split.parts), dict(split.left_out)
    for part, size in sizes.items():
        files = split.files_of(part)
        kept = _in_proportion(Counter(labels[name] for name in files), size)
        chosen: list[tuple[int, str]] = []  # each with how many of its class come before it
        for label in sorted(kept):
            its_files = [name for name in files if labels[name] == label]
            order = permutation(random_key(seed, "thin out", part, label), len(its_files))
            chosen += [(before, its_files[place]) for before, place in enumerate(order[: kept[label]])]
        if not each_class and len(chosen) > size:
            mixed = [chosen[place] for place in permutation(random_key(seed, "thin out", part), len(chosen))]
            chosen = sorted(mixed, key=lambda pair: pair[0])[:size]  # one of each class before a second of any
        for name in set(files) - {name for _, name in chosen}:
            del parts[name]
            left_out[name] = cause
    return replace(split, parts=parts, left_out=left_out)


def _in_proportion(totals: Mapping[int, int], size: int) -> dict[int, int]:
    """How many of each class: shares rounded down, one at least, and what that leaves by the largest remainder."""
    if not size:
        return dict.fromkeys(totals, 0)
    size, whole = min(size, sum(totals.values())), sum(totals.values())
    kept = {label: max(1, size * total // whole) for label, total in totals.items()}
    by_remainder = sorted(totals, key=lambda label: (-(size * totals[label] % whole), label))
    for label in by_remainder[: max(0, size - sum(kept.values()))]:
        kept[label] += kept[label] < totals[label]
    return kept


def parse_fractions(text: str) -> dict[str, float]:
    """`"80/20"` or `"80/10/10"` → the share of each part.

    Raises:
        UserError: for anything else.
    """
    numbers = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?)\s*)?", text)
    shares = [float(number) for number in numbers.groups() if number is not None] if numbers else []
    if not shares or abs(sum(shares) - 100) > 1e-6 or min(shares[:2]) <= 0:
        raise UserError(
            f"data.split '{text}' is neither percentages nor a file: type train/val or train/val/test that add up to 100, "
            "such as 80/20 or 80/10/10, or the path of a split.json."
        )
    return {part: share / 100 for part, share in zip(PARTS, shares, strict=False) if share > 0}


class TooFewGroups(ValueError):
    """Classes that cannot have something of their own in each part.

    Attributes:
        groups_of: label → the number of its groups.
    """

    def __init__(self, groups_of: Mapping[int, int]) -> None:
        super().__init__(dict(groups_of))
        self.groups_of = groups_of


def groups_by_class(labels: Sequence[int], groups: Sequence[int], *, fewest: int) -> dict[int, list[list[int]]]:
    """Label → its groups, each as its samples; both in the order of the samples. A group that spans classes counts for its lowest label.

    Args:
        labels: class of each sample.
        groups: samples of equal number belong together.
        fewest: groups that each class must have.

    Raises:
        TooFewGroups: classes that have fewer.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for sample, group in enumerate(groups):
        members[group].append(sample)
    of_class: dict[int, list[list[int]]] = {label: [] for label in sorted(set(labels))}
    for samples in members.values():
        of_class[min(labels[sample] for sample in samples)].append(samples)
    few = {label: len(its_groups) for label, its_groups in of_class.items() if len(its_groups) < fewest}
    if few:
        raise TooFewGroups(few)
    return of_class


def make_split(labels: Sequence[int], groups: Sequence[int], fractions: Mapping[str, float], *, seed: int) -> list[str]:
    """Assign each sample a part.

    Args:
        labels: class of each sample.
        groups: samples of equal number stay together; a group that spans classes counts for its lowest label.
        fractions: share of each part; each part gets at least one group of every class.
        seed: what the choice follows from.

    Returns:
        The part of each sample.

    Raises:
        TooFewGroups: classes that have fewer groups than there are parts.
    """
    groups_of_class = groups_by_class(labels, groups, fewest=len(fractions))
    part_of: dict[int, str] = {}
    for label in sorted(set(labels)):
        its_groups = groups_of_class[label]
        size = sum(len(samples) for samples in its_groups)
        shuffled = [its_groups[place] for place in permutation(random_key(seed, "split", label), len(its_groups))]
        parts = {part: list(shuffled[place]) for place, part in enumerate(fractions)}  # nobody goes empty-handed
        rest = shuffled[len(fractions) :]
        for part, share in fractions.items():
            while rest and part != "train" and len(parts[part]) < round(share * size):
                parts[part] += rest.pop(0)
        for left in rest:
            parts["train"] += left
        part_of |= {sample: part for part, samples in parts.items() for sample in samples}
    return [part_of[sample] for sample in range(len(labels))]


def group_by_content(digests: Sequence[str]) -> list[int]:
    """Number samples so that equal digests get equal numbers."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(digest, len(numbers)) for digest in digests]


def save_split(split: Split, path: Path) -> None:
    """Write `split.json`: sorted, one file a line, so that two splits can be compared by eye and by diff.

    Raises:
        UserError: the disk refuses.
    """
    document: dict[str, Any] = {
        "format": _FORMAT,
        "class_names": split.class_names,
        "parts": dict(split.parts.items()),
        "left_out": dict(split.left_out),
        "duplicates": split.duplicates,
        **({"relabelled": dict(split.relabelled)} if split.relabelled else {}),
    }
    with writing(f"'{path}'", "Make room, or give another run directory with --run-dir DIR."):
        write_text_durably(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def load_split(path: Path) -> Split:
    """Read a `split.json`.

    Raises:
        UserError: the file is missing, no JSON, or not of the form that `save_split` writes.
    """
    try:
        document = parse_json(read_text(path, max_bytes=_MAX_BYTES))
    except OSError as error:
        raise UserError(f"The split file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"The split file {path} is not valid JSON: {error}.") from None
    mistake = _mistake_in(document)
    if mistake:
        raise UserError(f"The split file {path} is not a split.json of a run: {mistake}.")
    return Split(
        class_names=tuple(document["class_names"]),
        parts=document["parts"],
        left_out=document.get("left_out", {}),
        duplicates=tuple(tuple(group) for group in document.get("duplicates", [])),
        relabelled=document.get("relabelled", {}),
    )


def _mistake_in(document: Any) -> str | None:
    if not isinstance(document, dict) or not isinstance(document.get("parts"), dict):
        return "it needs an object 'parts' that gives each file its part"
    if document.get("format") != _FORMAT:
        return f"its format is {document.get('format')!r}, this version reads {_FORMAT}"
    if not _is_list_of_names(document.get("class_names")):
        return "it needs a list 'class_names'"
    wrong = next((name for name, part in document["parts"].items() if part not in PARTS), None)
    if wrong is not None:
        return f"'{wrong}' has the part {document['parts'][wrong]!r}; allowed are {', '.join(PARTS)}"
    left_out = document.get("left_out", {})
    if not isinstance(left_out, dict) or not all(isinstance(cause, str) for cause in left_out.values()):
        return "'left_out' must be an object that gives each file its cause"
    duplicates = document.get("duplicates", [])
    if not isinstance(duplicates, list) or not all(_is_list_of_names(group) for group in duplicates):
        return "'duplicates' must be a list of lists of files"
    relabelled = document.get("relabelled", {})
    if not isinstance(relabelled, dict) or not all(name in document["class_names"] for name in relabelled.values()):
        return "'relabelled' must be an object that gives files one of its classes"
    return None


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
