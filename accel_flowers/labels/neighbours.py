"""Pictures that are nearly the same, and pictures that are like no other: the other two places where wrong labels hide."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from accel_flowers.core.files import user_cache
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import map_in_order
from accel_flowers.core.plural import number_of
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.table import content_digest
from accel_flowers.inspection.analysis import Seen, analyze_image
from accel_flowers.inspection.findings import ImageFacts, find
from accel_flowers.labels.judged import Judged
from accel_flowers.labels.nearness import chosen_of, compare
from accel_flowers.probe.store import RowStore, keys_of


@dataclass(frozen=True)
class Group:
    """Pictures that are nearly the same.

    Attributes:
        files: two or more.
        classes: of each of them.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def torn(self) -> bool:
        """Under two classes: at least one of the labels is wrong, unless both are on the picture."""
        return len(set(self.classes)) > 1


@dataclass(frozen=True)
class Far:
    """A picture that is like no other.

    Attributes:
        distance: to its nearest ones, in units of the usual distance.
    """

    file: str
    class_name: str
    distance: float


@dataclass(frozen=True)
class Neighbours:
    """What was found around the pictures.

    Attributes:
        space: by what they were compared, a sentence.
        groups: those under two classes first, then the nearest.
        far: the farthest first.
    """

    space: str
    groups: tuple[Group, ...]
    far: tuple[Far, ...]


def in_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Those under two classes first; else as they come."""
    return tuple(sorted(groups, key=lambda group: not group.torn))


def find_by_looks(judged: Judged) -> Neighbours:
    """Compare the pictures by perceptual hashes, and by where which colours and details are, as `inspect` does."""
    files = sorted(judged.classes)

    def look(file: str) -> Seen:
        try:
            return analyze_image(judged.photos.read(file), file)
        except (OSError, BadImageError) as error:
            return Seen(cause=str(error))

    seen = list(map_in_order(look, files, threads=available_cores()))
    facts = [ImageFacts(file, judged.classes[file], None, each) for file, each in zip(files, seen, strict=True)]
    found = find(judged.photos.source, sorted(set(judged.classes.values())), facts)
    groups = [
        Group(tuple(each.file for each in copies.images), tuple(each.class_name for each in copies.images))
        for copies in found.copies
    ]
    gone = sum(each.cause is not None for each in seen)
    return Neighbours(
        "Compared by perceptual hashes, and by where which colours and details are (as inspect does)."
        + (f" Of {number_of(len(files), 'picture')} {gone:,} could not be read." if gone else ""),
        in_order(groups),
        tuple(Far(each.file, each.class_name, distance) for each, distance in found.far),
    )


def find_neighbours(judged: Judged) -> Neighbours:
    """Near-duplicates and far pictures: by a probe's features where they are kept, else by what the pictures look like."""
    if not judged.stores:
        found = find_by_looks(judged)
        return replace(
            found,
            space=f"{found.space} By the features of a network, which see more, labels of a probe are looked at: probe PHOTOS --out DIR, "
            "then labels DIR.",
        )
    if (by_features := find_by_features(judged)) is not None:
        return by_features
    found = find_by_looks(judged)
    return replace(
        found,
        space=f"{found.space} The features of this probe are no longer kept, or not of this user: probe again for a comparison by them.",
    )


def find_by_features(judged: Judged) -> Neighbours | None:
    """Compare the pictures by the features that a probe has kept of them; None where they are gone."""
    root = user_cache() / "features"
    if not judged.photos.problem and all(os.path.isdir(root / name) for name, _ in judged.stores):
        files = sorted(judged.classes)
        place_of = {file: place for place, file in enumerate(files)}
        chosen = chosen_of(len(files), [place_of[each.file] for each in judged.candidates])
        files = [files[place] for place in chosen.tolist()]
        digests = list(map_in_order(lambda file: _digest(judged, file), files, threads=available_cores()))
        keys = keys_of(digests)
        stores = [RowStore(root / name, width, np.float32) for name, width in judged.stores]
        places = [store.find(keys) for store in stores]
        there = np.logical_and.reduce([each[:, 0] >= 0 for each in places])
        if there.any():
            features = [store.read(each[there]) for store, each in zip(stores, places, strict=True)]
            known = [file for file, here in zip(files, there.tolist(), strict=True) if here]
            found = compare(features, [digest for digest, here in zip(digests, there.tolist(), strict=True) if here])
            return Neighbours(
                _space(judged, len(known), len(files)),
                in_order(
                    [
                        Group(
                            tuple(known[place] for place in group),
                            tuple(judged.classes[known[place]] for place in group),
                        )
                        for group in found.groups
                    ]
                ),
                tuple(Far(known[place], judged.classes[known[place]], distance) for place, distance in found.far),
            )
    return None


def _digest(judged: Judged, file: str) -> str:
    try:
        return content_digest(judged.photos.read(file))
    except (OSError, BadImageError):
        return ""


def _space(judged: Judged, known: int, compared: int) -> str:
    total = len(judged.classes)
    told = "Compared by the features of this probe: what the frozen network sees of a picture."
    if compared < total:
        told += f" Of {total:,} pictures {compared:,} were compared: those whose labels are doubted, and others drawn by lot."
    if known < compared:
        told += f" Of {compared - known:,} no features are kept, or the picture is another one now."
    return told
