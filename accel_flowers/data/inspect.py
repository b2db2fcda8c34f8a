"""Look at every picture once before training: which cannot be read, which are the same, who goes into which part.

Runs on the main process alone; its result is a `Split` that all processes obey.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median

from accel_flowers.data.decode import BadImageError, verify_image
from accel_flowers.data.folder import ImageTable, content_digest, read_bytes
from accel_flowers.data.split import PARTS, Split, group_by_content, load_split, make_split, parse_fractions
from accel_flowers.errors import UserError, printable

_CHUNK = 64
"""Pictures that a thread examines at a time: to hand over each by itself would take longer than to look at a small one."""
_SECONDS_EACH = 1e-4
"""Another thread for so much time that a picture takes. Where a picture takes less, threads wait for Python's lock and get
in each other's way: two took a third to a half longer than one for pictures of 96 x 96."""
_SHOWN = 100
"""Names that an error lists before it says how many more there are."""
_PRECEDENCE = ("test", "val", "train")
"""Of equal pictures in several given parts the first of these keeps its copy: what is measured stays as it was given."""


def examine(image: dict[str, object], name: str) -> tuple[str, str | None]:
    """Digest of the encoded picture, and the cause where it cannot be read."""
    try:
        data = read_bytes(image)
        digest = content_digest(data)
        verify_image(data, name)
    except BadImageError as error:
        return "", error.cause
    except OSError as error:
        return "", error.strerror or str(error)
    return digest, None


def examine_all(table: ImageTable, rows: Sequence[int]) -> list[tuple[str, str | None]]:
    """`examine` of these rows, in as many threads as help: reading and decoding leave Python's lock."""
    images = table.dataset.with_format("arrow")

    def examine_from(first: int) -> Iterator[tuple[str, str | None]]:
        chunk = rows[first : first + _CHUNK]
        for row, image in zip(chunk, images[chunk]["image"].to_pylist(), strict=True):
            yield examine(image, table.files[row])

    if not rows:
        return []
    found, times = [], [time.perf_counter()]
    for one in examine_from(0):
        found.append(one)
        times.append(time.perf_counter())
    num_threads = int(median(after - before for before, after in pairwise(times)) / _SECONDS_EACH)
    with ThreadPoolExecutor(max(1, min(num_threads, len(os.sched_getaffinity(0))))) as pool:
        for chunk in pool.map(lambda first: list(examine_from(first)), range(_CHUNK, len(rows), _CHUNK)):
            found += chunk
    return found


def check_readable(table: ImageTable, files: Sequence[str]) -> None:
    """See that these pictures can be read before a model is asked about them.

    Raises:
        UserError: naming those that cannot.
    """
    row_of = {name: row for row, name in enumerate(table.files)}
    found = examine_all(table, [row_of[name] for name in files])
    _stop_or_skip(table.source, {name: cause for name, (_, cause) in zip(files, found, strict=True) if cause}, "stop")


def decide_split(
    table: ImageTable,
    split: str,
    *,
    seed: int,
    on_bad_image: str,
    examined: Callable[[], Sequence[tuple[str, str | None]]] | None = None,
) -> Split:
    """Read every picture and give each its part.

    Args:
        table: the pictures.
        split: percentages such as "80/20", or the path of a split.json to obey.
        seed: what a drawn split follows from.
        on_bad_image: "stop" or "skip" for pictures that cannot be read.
        examined: gives what `examine` says of each row, where it is known already or wanted otherwise, too.

    Raises:
        UserError: unreadable pictures (where they stop the run), classes too small to split, a split file that
            does not fit the folder, a part that lacks what training needs of it.
    """
    given = load_split(Path(split)) if split.endswith(".json") or os.path.isfile(split) else None
    fractions = parse_fractions(split) if given is None else {}
    found = examined() if examined else examine_all(table, range(len(table.files)))
    bad = table.unreadable | {name: cause for name, (_, cause) in zip(table.files, found, strict=True) if cause}
    left_out_before = given.left_out if given else {}
    new = {name: cause for name, cause in bad.items() if name not in left_out_before}
    _stop_or_skip(table.source, new, on_bad_image)

    rows = [row for row, (_, cause) in enumerate(found) if cause is None and table.files[row] not in left_out_before]
    files = [table.files[row] for row in rows]
    labels = [int(table.labels[row]) for row in rows]
    groups = group_by_content([found[row][0] for row in rows])
    _check_classes_left(table, labels)

    if given is not None:
        parts = _obey(given, Path(split), table, files, bad)
    elif table.given_parts is not None:
        parts = [table.given_parts[row] for row in rows]
    else:
        parts = _draw(table, labels, groups, fractions, seed)
    doubles = _doubles_across_parts(files, groups, parts)
    if given is None and "val" not in parts:
        # Split folders are taken as they stand; where there is no val, it is drawn from train.
        share = {"train": 1 - fractions["val"], "val": fractions["val"]}
        places = [place for place, part in enumerate(parts) if part == "train" and files[place] not in doubles]
        drawn = _draw(table, [labels[place] for place in places], [groups[place] for place in places], share, seed)
        for place, part in zip(places, drawn, strict=True):
            parts[place] = part
    parts_of = {name: part for name, part in zip(files, parts, strict=True) if name not in doubles}
    learned = {label for name, label in zip(files, labels, strict=True) if parts_of.get(name) == "train"}
    _check_parts(table, parts_of, learned, doubles)
    return Split(
        class_names=table.class_names,
        parts=parts_of,
        left_out=dict(sorted({**left_out_before, **bad, **doubles}.items())),
        duplicates=_duplicates(files, groups),
    )


def _stop_or_skip(source: str, bad: dict[str, str], on_bad_image: str) -> None:
    if not bad or on_bad_image == "skip":
        return
    lines = [f"  {printable(name)}: {cause}" for name, cause in sorted(bad.items())[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more")
    raise UserError(
        f"{len(bad)} pictures of '{source}' cannot be read:\n"
        + "\n".join(lines)
        + "\nMend or remove them. A training run can leave them out: --data.on-bad-image skip lists them in its split.json."
    )


def _check_classes_left(table: ImageTable, labels: Sequence[int]) -> None:
    lost = _lacking(table, labels)
    if lost:
        raise UserError(f"'{table.source}' holds no picture of {lost} that can be read. Mend or remove the class.")


def _check_parts(
    table: ImageTable, parts_of: Mapping[str, str], learned: Iterable[int], doubles: Mapping[str, str]
) -> None:
    """Training needs each class in train, and something to choose the best epoch by."""
    why = ""
    if doubles:
        first, cause = next(iter(doubles.items()))
        why = f" {len(doubles)} files are left out because they would stand on two sides; {first} has {cause}."
    lost = _lacking(table, learned)
    if lost:
        raise UserError(f"No picture of {lost} is left in train of '{table.source}'.{why}")
    if "val" not in parts_of.values():
        raise UserError(f"No picture is left in val of '{table.source}': the best epoch is chosen by it.{why}")


def _lacking(table: ImageTable, labels: Iterable[int]) -> str:
    there = set(labels)
    return ", ".join(repr(name) for label, name in enumerate(table.class_names) if label not in there)


def _obey(given: Split, path: Path, table: ImageTable, files: Sequence[str], bad: Mapping[str, str]) -> list[str]:
    if given.class_names != table.class_names:
        raise UserError(
            f"{path} is a split of the classes {', '.join(given.class_names)}; "
            f"'{table.source}' has {', '.join(table.class_names)}."
        )
    absent = set(given.parts) - set(files) - set(given.left_out)
    broken, missing = sorted(absent & set(bad)), sorted(absent - set(bad))
    extra = sorted(set(files) - set(given.parts))
    if absent or extra:
        told = [f"{len(missing)} of its files are not there, for example '{missing[0]}'"] if missing else []
        told += [f"{len(broken)} cannot be read, for example '{broken[0]}': {bad[broken[0]]}"] if broken else []
        told += [f"it does not name {len(extra)} of the pictures, for example '{extra[0]}'"] if extra else []
        raise UserError(
            f"{path} does not fit '{table.source}': {'; '.join(told)}. Give the folder it was made from, edit it, "
            "or draw a new split with --data.split 80/10/10."
        )
    return [given.parts[name] for name in files]


def _draw(
    table: ImageTable, labels: Sequence[int], groups: Sequence[int], fractions: dict[str, float], seed: int
) -> list[str]:
    try:
        return make_split(labels, groups, fractions, seed=seed)
    except ValueError as error:
        label, number = error.args
        fewer = ", or ask for two parts with --data.split 80/20" if len(fractions) > 2 else ""
        raise UserError(
            f"The class '{table.class_names[label]}' has {number} different pictures of its own, too few for one each in "
            f"{', '.join(fractions)}: add pictures or remove the class{fewer}."
        ) from None


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
        f"{len(split.parts)} pictures of {len(split.class_names)} classes: "
        + ", ".join(f"{number} {part}" for part, number in counts.items() if number)
    ]
    if table.given_parts is not None:
        lines.append(f"'{table.source}' has parts of its own: they are taken as they stand, data.split is not asked")
    if split.duplicates:
        classes = {name: table.class_names[label] for name, label in zip(table.files, table.labels, strict=True)}
        torn = [group for group in split.duplicates if len({classes[name] for name in group}) > 1]
        across = f", {len(torn)} of them under two classes (first: {printable(' = '.join(torn[0]))})" if torn else ""
        lines.append(f"{len(split.duplicates)} groups of identical files, each on one side of the split{across}")
    if split.left_out:
        first, cause = next(iter(split.left_out.items()))
        lines.append(
            f"{len(split.left_out)} pictures left out, listed in split.json; first: {printable(first)}: {cause}"
        )
    if table.ignored:
        lines.append(
            f"{len(table.ignored)} files that are no pictures by name, for example {printable(table.ignored[0])}"
        )
    return lines
