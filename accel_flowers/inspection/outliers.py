"""Which images are unlike all others: a screenshot among flowers, a blank page, a wrong photo with other colours.

A hint where to look and no judgement: it compares where which colours and details are, and knows nothing of flowers. What the
limit finds and what it leaves alone was measured on photos, drawn flowers and planted pictures: RESULTS.md, "Far from every
other". The other numbers were chosen for the reasons beside them and were not tuned.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accel_flowers.data.sampler import permutation, random_key
from accel_flowers.inspection.analysis import NUM_COLOURS

MAX_FAR = 24
"""Images named at most, the farthest first."""
_NEIGHBOURS = 3
"""The distance is the mean of that to so many nearest ones, so that two of a kind do not hide each other."""
_REFERENCES = 1024
"""Images, drawn by lot, whose distances say what is usual; and with which all others are compared first. So the work
grows with the number of images and not with its square."""
_SHORT_LIST = 512
"""Images that are then compared with all others."""
_SPREADS = 4.0
"""How far is far: a distance whose logarithm lies so many robust standard deviations above the median. Measured: of 1,425
photos three lie beyond, of 1,000 drawn flowers none (at most 2.8); noise lies at 4.5 and more, pages of text at 5.6 and more
(RESULTS.md, "Far from every other")."""
_TINY = 1e-3
"""Added to distances before their logarithm is taken: copies have none."""
_LEAST_SPREAD = 0.2
"""Of the logarithms; where images are more alike than that, chance looks far."""
_COLOUR_WEIGHT = 0.5
"""Of each colour against each detail: unusual colours are common, unusual detail (blank, noise, text) is not."""


def far_from_all(features: npt.NDArray[np.float16]) -> list[tuple[int, float]]:
    """The images that stand apart.

    Args:
        features: [N, NUM_FEATURES], as `features_of` makes them.

    Returns:
        At most `MAX_FAR` (index, distance in units of the usual distance), the farthest first; none where there are too
        few images to say what is usual.
    """
    total = len(features)
    if total < 10 * _NEIGHBOURS:
        return []
    points, everyone = _standardised(features), np.arange(total)
    references = np.sort(permutation(random_key("far", total), total)[:_REFERENCES])
    usual = np.log(_to_nearest(points, references, everyone) + _TINY)
    middle = float(np.median(usual))
    spread = max(1.4826 * float(np.median(np.abs(usual - middle))), _LEAST_SPREAD)
    limit = float(np.exp(middle + _SPREADS * spread))
    # Among fewer images the nearest are further away, never nearer: who is not far there is not far at all.
    at_most = _to_nearest(points, everyone, references)
    suspects = np.flatnonzero(at_most > limit)
    suspects = suspects[np.argsort(-at_most[suspects], kind="stable")][:_SHORT_LIST]
    distances = _to_nearest(points, suspects, everyone)
    far = [
        (int(place), float(distance / np.exp(middle)))
        for place, distance in zip(suspects, distances, strict=True)
        if distance > limit
    ]
    return sorted(far, key=lambda item: (-item[1], item[0]))[:MAX_FAR]


def _standardised(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Each feature as robust standard deviations from its median, so that no unit outweighs another."""
    values = features.astype(np.float32)
    values -= np.median(values, axis=0)
    values /= np.maximum(1.4826 * np.median(np.abs(values), axis=0), 1e-3)
    np.clip(values, -12, 12, out=values)
    values[:, :NUM_COLOURS] *= _COLOUR_WEIGHT
    return values


def _to_nearest(
    features: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], others: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Mean distance of each row to its nearest others, itself left out."""
    targets = features[others]
    squares = (targets**2).sum(axis=1)
    found = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), 256):
        chunk = rows[first : first + 256]
        points = features[chunk]
        apart = (points**2).sum(axis=1)[:, None] + squares - 2 * points @ targets.T
        apart[chunk[:, None] == others] = np.inf
        nearest = np.partition(apart, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        found[first : first + 256] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    return found
