"""Which pictures are copies of each other with small changes: neighbours among perceptual hashes, found exactly.

Two pictures are alike where both their hashes differ in few bits. Comparing each with each would take hours for a
large folder; here pictures meet only where a part of their hashes almost agrees, which finds every pair all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes = npt.NDArray[np.uint64]

BITS = 64
MAX_PHASH_BITS = 8
"""Copies that were resized, compressed again, brightened or blurred differ in at most so many bits of 64."""
MAX_DHASH_BITS = 16
"""The second opinion: chance pairs that the first hash brings together are further apart."""
_AT_ONCE = 1 << 20
"""Candidate pairs that are compared at a time; bounds the memory."""


def near_pairs(hashes: Hashes, max_bits: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """All pairs of different hashes within a Hamming distance; each pair comes at least once.

    With `max_bits // 2 + 1` bands, two hashes within `max_bits` have a band in which they differ by at most one bit (if
    all bands differed by two, that would be more). So each hash looks up, band by band, its own bits and those with one
    bit turned, in a sorted list.

    Args:
        hashes: uint64 [N], each value once.
        max_bits: at most this many of 64 bits differ.

    Yields:
        First and second members, two int64 arrays of equal length.
    """
    num_bands = max_bits // 2 + 1
    edges = np.linspace(0, BITS, num_bands + 1).round().astype(int)
    for low, high in itertools.pairwise(edges):
        width = int(high - low)
        bands = (hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)
        order = np.argsort(bands, kind="stable")
        in_order = bands[order]
        for turned in [0, *(1 << bit for bit in range(width))] if max_bits else [0]:
            wanted = bands ^ np.uint64(turned)
            begins = np.searchsorted(in_order, wanted, side="left")
            counts = np.searchsorted(in_order, wanted, side="right") - begins
            for first, second in _expand(begins, counts):
                other = order[second]
                close = (first < other) & (np.bitwise_count(hashes[first] ^ hashes[other]) <= max_bits)
                if close.any():
                    yield first[close], other[close]


def _expand(
    begins: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Each i with all of begins[i] … begins[i] + counts[i] - 1, about `_AT_ONCE` at a time."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        some = counts[first:last]
        owners = np.repeat(np.arange(first, last), some)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(some) - some, some)
        yield owners, begins[owners] + within
        first = last


def group_alike(
    phashes: Hashes, dhashes: Hashes, *, max_phash_bits: int = MAX_PHASH_BITS, max_dhash_bits: int = MAX_DHASH_BITS
) -> list[list[int]]:
    """Pictures that are linked by likeness, directly or over others.

    Args:
        phashes, dhashes: uint64 [N], the two hashes of each picture.
        max_phash_bits, max_dhash_bits: two pictures are alike where both hashes differ in at most so many bits.

    Returns:
        Groups of two or more, each sorted, sorted by their first member.
    """
    # Equal hashes are one point of the search: a folder of a thousand blank pages has no half a million pairs.
    both = np.stack([phashes, dhashes], axis=1)
    points, point_of = np.unique(both, axis=0, return_inverse=True)
    point_of = point_of.reshape(-1)
    group_of = np.arange(len(points))
    links: list[npt.NDArray[np.int64]] = []

    def settle() -> None:
        """Join the groups that are linked."""
        nonlocal group_of
        if links:
            linked = group_of[np.concatenate(links, axis=1)]
            size = int(group_of.max()) + 1
            graph = coo_array((np.ones(linked.shape[1], np.bool_), (linked[0], linked[1])), shape=(size, size))
            group_of = connected_components(graph, directed=False)[1][group_of]
            links.clear()

    for first, second in near_pairs(points[:, 0], max_phash_bits):
        close = group_of[first] != group_of[second]
        close &= np.bitwise_count(points[first, 1] ^ points[second, 1]) <= max_dhash_bits
        links.append(np.stack([first[close], second[close]]))
        if sum(link.shape[1] for link in links) > _AT_ONCE:
            settle()
    settle()
    members: dict[int, list[int]] = {}
    for picture, point in enumerate(point_of.tolist()):
        members.setdefault(int(group_of[point]), []).append(picture)
    return sorted(group for group in members.values() if len(group) > 1)
