"""The pictures of a probe: which can be read, what their contents are, and which belong together.

Runs on the main process alone. What was seen of a picture is kept by its content, so a second probe reads bytes and decodes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import user_cache, writing
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import map_in_order
from accel_flowers.core.plural import number_of
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.folds import make_folds
from accel_flowers.data.groups import describe_groups, tied_groups
from accel_flowers.data.sources.source import read_image
from accel_flowers.data.split import TooFewGroups
from accel_flowers.data.table import SPLIT_FOLDERS, ImageTable, content_digest, one_label_each
from accel_flowers.data.validate import stop_or_skip
from accel_flowers.inspection.near_duplicates import group_alike
from accel_flowers.inspection.scan import look_at_table
from accel_flowers.probe.store import RowStore, keys_of

FEWEST_FOLDS = 3
"""One is held out to be scored, one to choose by, and something must be left to learn from."""
_LOOKS = "looks-1"
"""Of the store's folder; what is kept of a picture: its perceptual hash (8 bytes) and its sketch (256)."""
_WIDTH = 8 + 256
_AT_ONCE = 4096
"""Pictures whose looks are kept together."""


@dataclass(frozen=True)
class Pictures:
    """What is learned from.

    Attributes:
        files: names, sorted; N of them.
        labels: int64 [N].
        digests: of their contents, as the data set gives them.
        groups: int64 [N]: pictures of equal number are copies of each other, or nearly.
        folds: int64 [N].
        num_folds: fewer than asked for where a class is too small.
        left_out: file → why it is not among them.
    """

    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    groups: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    num_folds: int
    left_out: Mapping[str, str]


def find_pictures(table: ImageTable, *, num_folds: int, seed: int, on_bad_image: str) -> tuple[Pictures, list[str]]:
    """Look at all pictures, and deal them out to folds.

    Args:
        table: the images; those of a test part are left alone, and its groups stay in one fold each.
        num_folds: as many as there shall be.
        seed: what the folds follow from.
        on_bad_image: "stop" or "skip" for pictures that cannot be read.

    Returns:
        The pictures, and what is to be told of them.

    Raises:
        UserError: pictures that cannot be read; a class with too few pictures.
    """
    told = []
    rows = sorted(range(len(table.files)), key=lambda row: table.files[row])
    unreadable = dict(table.unreadable)
    if table.given_parts is not None:
        parts = table.given_parts
        rows = [row for row in rows if parts[row] != "test"]
        unreadable = {
            name: cause for name, cause in unreadable.items() if SPLIT_FOLDERS.get(name.split("/")[0].lower()) != "test"
        }
        if left := len(table.files) - len(rows):
            told.append(
                f"the test part ({left:,} of {len(table.files):,} pictures) is left alone: evaluate scores the model on it"
            )
    digests, looks, bad = _look(table, rows)
    stop_or_skip(table.source, {**unreadable, **bad}, on_bad_image)
    kept = [place for place, row in enumerate(rows) if table.files[row] not in bad]
    labels = one_label_each(table, "A probe")[[rows[place] for place in kept]]
    hashes = np.ascontiguousarray(looks[kept, :8]).view("<u8").reshape(-1)
    groups = np.arange(len(kept))
    alike = group_alike(hashes, looks[kept, 8:])
    for group in alike:
        groups[group] = group[0]
    if alike:
        told.append(
            f"{len(alike):,} group{'s' if len(alike) > 1 else ''} of pictures that are copies, or nearly: each stays in one fold"
        )
    if table.groups:
        files = [table.files[rows[place]] for place in kept]
        groups = np.array(tied_groups(groups.tolist(), files, table.groups), dtype=np.int64)
        told += describe_groups(files, table.groups)
    if table.taken_out:
        told.append(
            f"{number_of(len(table.taken_out), 'picture')} left out by the label fixes: where a model chose them, what follows is too good"
        )
    folds, number, few = _deal_out(table, labels, groups, num_folds, seed)
    return (
        Pictures(
            files=tuple(table.files[rows[place]] for place in kept),
            labels=labels,
            digests=tuple(digests[place] for place in kept),
            groups=groups,
            folds=folds,
            num_folds=number,
            left_out={**table.taken_out, **unreadable, **bad},
        ),
        [*told, *few],
    )


def _deal_out(
    table: ImageTable, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], num_folds: int, seed: int
) -> tuple[npt.NDArray[np.int64], int, list[str]]:
    """Folds, how many there are, and what is to be told where these are fewer than asked for."""
    lost = sorted(set(range(len(table.class_names))) - set(labels.tolist()))
    if lost:
        names = ", ".join(repr(table.class_names[label]) for label in lost)
        raise UserError(
            f"'{table.source}' holds no picture of {names} that can be learned from. Mend or remove the class."
        )
    try:
        return make_folds(labels.tolist(), groups.tolist(), num_folds, seed=seed), num_folds, []
    except TooFewGroups as error:
        fewest, label = min((number, label) for label, number in error.groups_of.items())
        name = table.class_names[label]
    if fewest < FEWEST_FOLDS:
        raise UserError(
            f"The class '{name}' has {fewest} different picture{'' if fewest == 1 else 's'} of its own; to learn, choose and "
            f"score a probe needs {FEWEST_FOLDS} of each class, none of them a copy of another. Add pictures or remove the class."
        )
    folds = make_folds(labels.tolist(), groups.tolist(), fewest, seed=seed)
    return (
        folds,
        fewest,
        [f"{fewest} folds instead of {num_folds}, because the class '{name}' has {fewest} different pictures"],
    )


def _look(table: ImageTable, rows: Sequence[int]) -> tuple[list[str], npt.NDArray[np.uint8], dict[str, str]]:
    """Digest and look (hash and sketch, uint8 [n, 264]) of each row, and the cause for each that cannot be read."""
    given = table.images.digests

    def read(row: int) -> tuple[str, str | None]:
        if given is not None:
            return given[row], None
        try:
            return content_digest(read_image(table.images, row)), None
        except BadImageError as error:
            return "", error.cause

    found = list(map_in_order(read, rows, threads=available_cores()))
    digests = [digest for digest, _ in found]
    bad = {table.files[row]: cause for row, (_, cause) in zip(rows, found, strict=True) if cause}
    keys = keys_of(digests)
    looks = np.zeros((len(rows), _WIDTH), dtype=np.uint8)
    folder = user_cache() / "features" / _LOOKS
    refusals = partial(
        writing,
        f"'{folder}', where is kept what was seen of pictures,",
        "Make room, or set XDG_CACHE_HOME to another folder.",
    )
    with refusals():
        opened = RowStore(folder, _WIDTH, np.uint8)
    with opened as store:
        there = store.find(keys)
        known = there[:, 0] >= 0
        looks[known] = store.read(there[known])
        missing = [place for place in np.flatnonzero(~known).tolist() if digests[place]]
        for first in range(0, len(missing), _AT_ONCE):
            places = missing[first : first + _AT_ONCE]
            new = []
            for place, seen in zip(places, look_at_table(table, rows=[rows[place] for place in places]), strict=True):
                if seen.cause is not None:
                    bad[table.files[rows[place]]] = seen.cause
                    continue
                assert seen.sketch is not None
                looks[place, :8] = np.frombuffer(seen.phash.to_bytes(8, "little"), np.uint8)
                looks[place, 8:] = seen.sketch
                new.append(place)
            with refusals():
                store.append(keys[new], looks[new])
    return digests, looks, bad
