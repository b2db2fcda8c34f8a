"""Look at every image once before training: which cannot be read, which are the same, who goes into which part.

Runs on the main process alone; its result is a `Split` that all processes obey.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accel_flowers.config.paths import names_split_file
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.plural import number_of
from accel_flowers.data.groups import describe_groups, tied_groups
from accel_flowers.data.label_sets import Labels, are_several, as_several, classes_in, counts_in_words, label_sets
from accel_flowers.data.sources.walk import describe_left_out
from accel_flowers.data.split import (
    PARTS,
    Split,
    TooFewGroups,
    group_by_content,
    load_split,
    make_split,
    parse_fractions,
)
from accel_flowers.data.stratify import make_split_of_sets
from accel_flowers.data.table import ImageTable
from accel_flowers.data.validate import stop_or_skip, validate_all

_PRECEDENCE = ("test", "val", "train")
"""Of equal images in several given parts the first of these keeps its copy: what is measured stays as it was given."""


_SHOWN = 100
"""Classes that an error lists before it says how many more there are."""


def decide_split(
    table: ImageTable,
    split: str,
    *,
    seed: int,
    on_bad_image: str,
    goes_on: str | None = None,
    examined: Callable[[], Sequence[tuple[str, str | None]]] | None = None,
    each_class: bool = True,
) -> Split:
    """Read every image and give each its part.

    Args:
        table: the images; a drawn part holds all of each of its groups, or nothing.
        split: percentages such as "80/20", or the path of a split.json to obey.
        seed: what a drawn split follows from.
        on_bad_image: "stop" or "skip" for images that cannot be read.
        goes_on: for a run that goes on with its own split, what to do where images of it are gone, a sentence; images
            that were added meanwhile are then left out.
        examined: gives what `validate_image` says of each row, where it is known already or wanted otherwise, too.
        each_class: whether training needs an image of each class.

    Raises:
        UserError: unreadable images (where they stop the run), classes too small to split, a split file that
            does not fit the folder, a part that lacks what training needs of it.
    """
    given = load_split(Path(split)) if names_split_file(split) else None
    if given is not None:
        _check_labels_are_those_of(given, Path(split), table)
    fractions = parse_fractions(split) if given is None else {}
    found = examined() if examined else validate_all(table, range(len(table.files)))
    bad = dict(table.unreadable) | {name: cause for name, (_, cause) in zip(table.files, found, strict=True) if cause}
    left_out_before = {**(given.left_out if given else {}), **table.taken_out}
    if given is not None and goes_on:
        added = [name for name in table.files if name not in given.parts and name not in left_out_before]
        left_out_before |= dict.fromkeys(added, "added after the run began")
    # A given split says what is wanted: what it does not name stops nobody. (That of an earlier version does not name photos
    # of a kind that is not read, which were no images then.)
    new = {
        name: cause
        for name, cause in bad.items()
        if name not in left_out_before and (given is None or name in given.parts)
    }
    mistakes: list[str] = []  # all of them in one message: to find the next takes another look at every image
    with _noted(mistakes):
        stop_or_skip(table.source, new, on_bad_image)

    rows = [row for row, (_, cause) in enumerate(found) if cause is None and table.files[row] not in left_out_before]
    files = [table.files[row] for row in rows]
    labels: Labels = table.labels[rows]
    groups = group_by_content([found[row][0] for row in rows])
    tied = tied_groups(groups, files, table.groups)
    if each_class:
        with _noted(mistakes):
            _check_classes_left(table, labels)

    parts: list[str] = []
    if given is not None and not mistakes:
        parts = _obey(given, Path(split), table, files, bad, goes_on)
    elif given is None and table.given_parts is not None:
        parts = [table.given_parts[row] for row in rows]
    elif given is None:
        with _noted(mistakes):
            parts = _draw(table, labels, tied, fractions, seed)
    if mistakes:
        raise UserError("\n".join(mistakes))
    doubles = _doubles_across_parts(files, groups, parts)
    if given is None and "val" not in parts:
        # Split folders are taken as they stand; where there is no val, it is drawn from train.
        share = {"train": 1 - fractions["val"], "val": fractions["val"]}
        places = [place for place, part in enumerate(parts) if part == "train" and files[place] not in doubles]
        drawn = _draw(table, labels[places], [tied[place] for place in places], share, seed)
        for place, part in zip(places, drawn, strict=True):
            parts[place] = part
    parts_of = {name: part for name, part in zip(files, parts, strict=True) if name not in doubles}
    learned = classes_in(labels[[place for place, name in enumerate(files) if parts_of.get(name) == "train"]])
    if not each_class:
        learned = set(range(len(table.class_names)))
    _check_parts(table, parts_of, learned, doubles)
    return Split(
        class_names=table.class_names,
        parts=parts_of,
        left_out=dict(sorted({**left_out_before, **bad, **doubles}.items())),
        duplicates=_duplicates(files, groups),
        relabelled=table.relabelled,
    )


def _check_labels_are_those_of(given: Split, path: Path, table: ImageTable) -> None:
    """A split that was made with label fixes goes with these, or with others that say the same of its pictures and more."""
    there = [name for name in given.relabelled if table.has(name)]
    classes = {
        name: ", ".join(table.class_names[label] for label in its_labels)
        for name, its_labels in zip(there, label_sets(table.labels[table.rows_of(there)]), strict=True)
    }
    if differ := [name for name, its_class in classes.items() if its_class != given.relabelled[name]]:
        first = differ[0]
        raise UserError(
            f"{path} was made with label fixes, and {number_of(len(differ), 'picture has', many='pictures have')} another class here: "
            f"'{first}' is '{given.relabelled[first]}' there and '{classes[first]}' here. Give the same file with "
            "--data.label-fixes FILE, or draw a new split with --data.split 80/10/10."
        )


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Go on behind a mistake, to see whether there are more."""
    try:
        yield
    except UserError as error:
        mistakes.append(str(error))


def _check_classes_left(table: ImageTable, labels: Labels) -> None:
    lost = _lacking(table, classes_in(labels))
    if lost:
        raise UserError(f"'{table.source}' holds no picture of {lost} that can be read. Mend or remove the class.")


def _check_parts(
    table: ImageTable, parts_of: Mapping[str, str], learned: Collection[int], doubles: Mapping[str, str]
) -> None:
    """Training needs each class in train, and something to choose the best epoch by."""
    why = ""
    if doubles:
        first, cause = next(iter(doubles.items()))
        why = f" {number_of(len(doubles), 'file is', many='files are')} left out because copies would stand on two sides; {first} has {cause}."
    lost = _lacking(table, learned)
    if lost:
        raise UserError(f"No picture of {lost} is left in train of '{table.source}'.{why}")
    if "val" not in parts_of.values():
        raise UserError(f"No picture is left in val of '{table.source}': the best epoch is chosen by it.{why}")


def _lacking(table: ImageTable, there: Collection[int]) -> str:
    return ", ".join(repr(name) for label, name in enumerate(table.class_names) if label not in there)


def _obey(
    given: Split, path: Path, table: ImageTable, files: Sequence[str], bad: Mapping[str, str], goes_on: str | None
) -> list[str]:
    if given.class_names != table.class_names:
        raise UserError(
            f"{path} is a split of the classes {', '.join(given.class_names)}; "
            f"'{table.source}' has {', '.join(table.class_names)}." + (f" {goes_on}" if goes_on else "")
        )
    absent = set(given.parts) - set(files) - set(given.left_out) - set(table.taken_out)
    broken, missing = sorted(absent & set(bad)), sorted(absent - set(bad))
    extra = sorted(set(files) - set(given.parts))
    if absent or extra:
        told = [f"{len(missing)} of its files are not there, for example '{missing[0]}'"] if missing else []
        told += [f"{len(broken)} cannot be read, for example '{broken[0]}': {bad[broken[0]]}"] if broken else []
        told += [f"it does not name {len(extra)} of the pictures, for example '{extra[0]}'"] if extra else []
        raise UserError(
            f"{path} does not fit '{table.source}': {'; '.join(told)}. "
            + (goes_on or "Give the folder it was made from, edit it, or draw a new split with --data.split 80/10/10.")
        )
    return [given.parts[name] for name in files]


def _draw(
    table: ImageTable, labels: Labels, groups: Sequence[int], fractions: dict[str, float], seed: int
) -> list[str]:
    try:
        if are_several(labels):
            return make_split_of_sets(as_several(labels, labels.shape[1]), groups, fractions, seed=seed)
        return make_split(labels.tolist(), groups, fractions, seed=seed)
    except TooFewGroups as error:
        numbers = {table.class_names[label]: number for label, number in error.groups_of.items()}
        raise UserError(too_few_for_a_split(numbers, fractions)) from None


def too_few_for_a_split(numbers: Mapping[str, int], parts: Collection[str]) -> str:
    """What to do about classes that are too small to be split, all at once.

    Args:
        numbers: class → different images of its own, fewer than there are parts.
        parts: that are to be drawn.
    """
    fewer = ""
    if len(parts) > 2 and min(numbers.values()) > 1:
        fewer = ", or ask for two parts with --data.split 80/20"
    if len(numbers) == 1:
        ((name, number),) = numbers.items()
        told = f"The class '{name}' has {number} different picture{'' if number == 1 else 's'} of its own"
        return f"{told}, too few for one each in {', '.join(parts)}: add pictures or remove the class{fewer}."
    told = ", ".join(f"'{name}' ({number})" for name, number in sorted(numbers.items())[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return (
        f"{len(numbers)} classes have too few different pictures of their own for one each in {', '.join(parts)}: "
        f"{told}{more}. Add pictures or remove the classes{fewer}."
    )


def _doubles_across_parts(files: Sequence[str], groups: Sequence[int], parts: Sequence[str]) -> dict[str, str]:
    """Copies that would stand on two sides of a split that was given: all but those of the part that measures."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    doubles = {}
    for rows in members.values():
        keeper = min(rows, key=lambda row: _PRECEDENCE.index(parts[row]))
        for row in rows:
            if parts[row] != parts[keeper]:
                doubles[files[row]] = f"the same bytes as {files[keeper]} of {parts[keeper]}"
    return doubles


def _duplicates(files: Sequence[str], groups: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    members: dict[int, list[str]] = defaultdict(list)
    for name, group in zip(files, groups, strict=True):
        members[group].append(name)
    return tuple(sorted(tuple(sorted(names)) for names in members.values() if len(names) > 1))


def describe_split(table: ImageTable, split: Split) -> list[str]:
    """What a person should know before training, a line each."""
    counts = {part: len(split.files_of(part)) for part in PARTS}
    lines = [
        f"{number_of(len(split.parts), 'picture')} of {number_of(len(split.class_names), 'class', many='classes')}: "
        + ", ".join(f"{number} {part}" for part, number in counts.items() if number)
    ]
    if are_several(table.labels):
        kept = table.labels[table.rows_of(split.parts)]
        lines.append(counts_in_words(as_several(kept, len(split.class_names))))
    if table.given_parts is not None:
        lines.append(f"'{table.source}' has parts of its own: they are taken as they stand, data.split is not asked")
    if split.duplicates:
        classes = dict(zip(table.files, label_sets(table.labels), strict=True))
        torn = [group for group in split.duplicates if len({classes[name] for name in group}) > 1]
        where = "with different labels" if table.several_labels else "under two classes"
        across = f", {len(torn)} of them {where} (first: {printable(' = '.join(torn[0]))})" if torn else ""
        lines.append(
            f"{number_of(len(split.duplicates), 'group')} of identical files, each on one side of the split{across}"
        )
    if split.left_out:
        first, cause = next(iter(split.left_out.items()))
        lines.append(
            f"{number_of(len(split.left_out), 'picture')} left out, listed in split.json; first: {printable(first)}: {cause}"
        )
    return [*lines, *describe_groups(sorted(split.parts), table.groups), *describe_table(table)]


def describe_table(table: ImageTable) -> list[str]:
    """What a person should know of how a data set was understood, and what of it is passed over, a line each."""
    return [*map(printable, table.notes), *describe_left_out(table.ignored, table.left_out)]
