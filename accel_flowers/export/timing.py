"""How quick a file is beside the model: milliseconds of one image, images a second of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from accel_flowers.export.parity import Bytes

_WARM_UPS, _REPEATS = 3, 20
_SECONDS = 3.0
"""That one measurement may take; a large network has fewer repeats."""
BATCH = 32


@dataclass(frozen=True)
class Speed:
    """Of one network.

    Attributes:
        latency_ms: median of one image.
        images_per_second: in batches of `BATCH`.
    """

    latency_ms: float
    images_per_second: float


def measure(run: Callable[[Bytes], object], size: tuple[int, int], *, batches: bool = True) -> Speed:
    """Time a network on noise: its arithmetic takes as long for any image.

    Args:
        run: uint8 [B, 3, H, W] → whatever.
        size: height and width.
        batches: whether it takes more than one image at once; if not, one by one are told.
    """
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 3, *size), dtype=np.uint8)
    latency = _seconds(lambda: run(noise[:1]))
    rate = BATCH / _seconds(lambda: run(noise)) if batches else 1 / latency
    return Speed(1000 * latency, rate)


def _seconds(act: Callable[[], object]) -> float:
    for _ in range(_WARM_UPS):
        act()
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < _REPEATS and (not taken or time.perf_counter() - begun < _SECONDS):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return median(taken)
