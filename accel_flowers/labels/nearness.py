"""Features → which pictures are nearly the same, and which are like no other. Pure: no files.

The distance is that of directions: features around their mean, of length one. Of 1,425 photos (tf_efficientnet_lite0) a picture's
nearest one lies at 0.92 in the middle, and what stands farthest from all are a book, a cat, a church's ceiling and a teacup; by plain
distances it were bright or empty pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from accel_flowers.data.sampler import permutation, random_key

Floats = npt.NDArray[np.float32]

NEAR = 0.55
"""Of the usual distance to the nearest picture: what is nearer is nearly the same. Of the 1,425 photos four pairs are: two of the same
bytes, and two of one scene at 0.44 and 0.51; the next, at 0.56, are two beds of roses."""
MAX_FAR = 24
"""Pictures that are named as far, the farthest first; there is no limit of the distance, for a network's features differ too little in
it: of those 24 of the photos a person decides."""
_NEIGHBOURS = 3
"""Far is the mean distance to so many nearest ones; as many can be near, of which larger groups are linked."""
_FEWEST = 10 * _NEIGHBOURS
"""Of fewer pictures nobody can say what is usual."""
MOST = 20_000
"""Pictures that are compared, each with each, some twenty seconds on two cores; of more they are drawn by lot."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Nearness:
    """What was found among N pictures.

    Attributes:
        groups: pictures that are nearly the same, two or more in each; the nearest first.
        far: (picture, distance in units of the usual one), the farthest first.
    """

    groups: tuple[tuple[int, ...], ...]
    far: tuple[tuple[int, float], ...]


def directions(features: Floats) -> Floats:
    """Features around their mean, of length one; [N, D]."""
    centred = features - features.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def compare(features: Sequence[Floats], contents: Sequence[str]) -> Nearness:
    """Find near-duplicates and far pictures.

    Args:
        features: of each network, float32 [N, D].
        contents: what says which pictures have the same bytes, N of them: they are one picture here, and a group at once.
    """
    copies: dict[str, list[int]] = defaultdict(list)
    for picture, content in enumerate(contents):
        copies[content].append(picture)
    members = list(copies.values())
    distance_of: dict[int, float] = {place: 0.0 for place, each in enumerate(members) if len(each) > 1}
    group_of = np.arange(len(members))
    far: list[tuple[int, float]] = []
    if len(members) >= _FEWEST:
        first = [each[0] for each in members]
        points = np.concatenate([directions(each[first]) for each in features], axis=1) / np.sqrt(len(features))
        places, distances = _nearest(points.astype(np.float32))
        usual = float(np.median(distances[:, 0]))
        near = distances <= NEAR * usual
        ones = np.repeat(np.arange(len(members)), near.sum(axis=1))
        links = coo_array((np.ones(len(ones), bool), (ones, places[near])), shape=(len(members), len(members)))
        group_of = connected_components(links, directed=False)[1]
        for place, distance in zip(ones.tolist(), distances[near].tolist(), strict=True):
            distance_of[place] = min(distance, distance_of.get(place, np.inf))
        apart = distances.mean(axis=1)
        usual_apart = float(np.median(apart))
        order = np.argsort(-apart, kind="stable")[:MAX_FAR]
        far = [(first[place], float(apart[place] / max(usual_apart, 1e-12))) for place in order.tolist()]
    groups: dict[int, list[int]] = defaultdict(list)
    nearest: dict[int, float] = {}
    for place, distance in distance_of.items():
        group = int(group_of[place])
        nearest[group] = min(distance, nearest.get(group, np.inf))
    for place, pictures in enumerate(members):
        if (group := int(group_of[place])) in nearest:
            groups[group] += pictures
    in_order = sorted(groups, key=lambda group: (nearest[group], groups[group]))
    return Nearness(tuple(tuple(sorted(groups[group])) for group in in_order), tuple(far))


def chosen_of(total: int, first: Sequence[int]) -> npt.NDArray[np.int64]:
    """The pictures that are compared: all, or of many some that must be and others drawn by lot; int64, sorted."""
    if total <= MOST:
        return np.arange(total)
    kept = list(first[:MOST])
    taken = set(kept)
    drawn = [
        picture for picture in permutation(random_key("compared labels", total), total).tolist() if picture not in taken
    ]
    return np.sort(np.array(kept + drawn[: MOST - len(kept)], dtype=np.int64))


def _nearest(points: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Of each point its nearest ones and their distances, nearest first; both [N, _NEIGHBOURS]."""
    squares = (points**2).sum(axis=1)
    places = np.empty((len(points), _NEIGHBOURS), np.int64)
    distances = np.empty((len(points), _NEIGHBOURS), np.float32)
    for begin in range(0, len(points), _AT_ONCE):
        some = np.arange(begin, min(begin + _AT_ONCE, len(points)))
        apart = squares[some, None] + squares - 2 * points[some] @ points.T
        apart[np.arange(len(some)), some] = np.inf
        near = np.argpartition(apart, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        values = np.take_along_axis(apart, near, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        places[some] = np.take_along_axis(near, order, axis=1)
        distances[some] = np.sqrt(np.maximum(np.take_along_axis(values, order, axis=1), 0))
    return places, distances
