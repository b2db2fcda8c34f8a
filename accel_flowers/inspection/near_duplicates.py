"""Which images are copies of each other with small changes: neighbours among perceptual hashes, found exactly.

Two images are alike where their hashes differ in few bits and their sketches, 16 x 16 greys, confirm it: a hash of 64
bits alone takes some bright blobs in the middle for each other. Comparing each with each would take hours for a large
folder; here images meet only where a part of their hashes almost agrees, which finds every pair all the same.
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
MAX_BITS = 8
"""Copies that were resized, compressed again, brightened or blurred differ in at most so many bits of 64 (RESULTS.md, "The
limits of near duplicates": which edits are found)."""
MIN_CORRELATION = 0.94
"""Of two sketches: such copies have more (but for hard crops; 0.959 was the least), different images with near hashes have
less (0.906 was the most). Same place in RESULTS.md."""
_NOISE = 3.0
"""Grey levels; what changes less is the same. Without it two blank images would be compared by their noise."""
_AT_ONCE = 1 << 20
"""Candidate pairs whose hashes are compared at a time; bounds the memory."""
_CONFIRMED_AT_ONCE = 1 << 15
"""Pairs whose sketches are compared at a time."""


def near_pairs(
    hashes: Hashes, max_bits: int, *, at_once: int = _AT_ONCE
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """All pairs of hashes within a Hamming distance; each pair comes at least once.

    With `max_bits // 2 + 1` bands, two hashes within `max_bits` have a band in which they differ by at most one bit (if
    all bands differed by two, that would be more). So each hash looks up, band by band, its own bits and those with one
    bit turned, in a sorted list.

    Args:
        hashes: uint64 [N].
        max_bits: at most this many of 64 bits differ.
        at_once: candidate pairs whose hashes are compared at a time.

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
            for first, second in _expand(begins, counts, at_once):
                other = order[second]
                close = (first < other) & (np.bitwise_count(hashes[first] ^ hashes[other]) <= max_bits)
                if close.any():
                    yield first[close], other[close]


def _expand(
    begins: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], at_once: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Each i with all of begins[i] … begins[i] + counts[i] - 1, about `at_once` at a time."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + at_once, side="right")))
        some = counts[first:last]
        owners = np.repeat(np.arange(first, last), some)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(some) - some, some)
        yield owners, begins[owners] + within
        first = last


def group_alike(hashes: Hashes, sketches: npt.NDArray[np.uint8], *, max_bits: int = MAX_BITS) -> list[list[int]]:
    """Images that are linked by likeness, directly or over others.

    Args:
        hashes: uint64 [N].
        sketches: uint8 [N, S], brightness of a coarse grid over each image.
        max_bits: two images are alike where their hashes differ in at most so many bits, and `agree` holds.

    Returns:
        Groups of two or more, each sorted, sorted by their first member.
    """
    # Equal images are one point of the search: a thousand copies of a file are no half a million pairs.
    raw = np.concatenate([hashes[:, None].view(np.uint8), sketches], axis=1)
    _, where, point_of = np.unique(raw, axis=0, return_index=True, return_inverse=True)
    points, drawn, point_of = hashes[where], sketches[where], point_of.reshape(-1)
    group_of = np.arange(len(points))
    for firsts, seconds in near_pairs(points, max_bits):
        for begin in range(0, len(firsts), _CONFIRMED_AT_ONCE):
            pairs = np.stack([firsts, seconds])[:, begin : begin + _CONFIRMED_AT_ONCE]
            pairs = pairs[:, group_of[pairs[0]] != group_of[pairs[1]]]
            pairs = pairs[:, agree(drawn[pairs[0]], drawn[pairs[1]])]
            if pairs.shape[1]:
                group_of = _joined(group_of, pairs)
    members: dict[int, list[int]] = {}
    for image, point in enumerate(point_of.tolist()):
        members.setdefault(int(group_of[point]), []).append(image)
    return sorted(group for group in members.values() if len(group) > 1)


def agree(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether sketches show the same, whatever their brightness and contrast; each [N, S] → [N]."""
    first, second = one.astype(np.float32), other.astype(np.float32)
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    noise = first.shape[1] * _NOISE**2
    both = np.einsum("ns,ns->n", first, second) + noise
    lengths = [np.einsum("ns,ns->n", sketch, sketch) + noise for sketch in (first, second)]
    return both >= MIN_CORRELATION * np.sqrt(lengths[0] * lengths[1])


def _joined(group_of: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The group of each point, after the groups of both members of each pair were joined."""
    one, other = group_of[pairs]
    size = int(group_of.max()) + 1
    graph = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(size, size))
    return connected_components(graph, directed=False)[1][group_of]
