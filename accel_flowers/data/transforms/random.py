"""What torchvision's transforms draw, from the same generator with the same calls, at a third of the time.

All ways of pixels ask here, so a sample meets the same boxes and flips wherever its pixels come from. Sizes that follow
from an image's without chance are here, too.
"""

from __future__ import annotations

import math

import torch
from torchvision.transforms import v2

from accel_flowers.data.decoding.pillow import MAX_ASPECT, MAX_PIXELS


def uniform(low: float, high: float) -> float:
    """low … high."""
    return torch.empty(1).uniform_(low, high).item()


def whole_number(number: int) -> int:
    """0 … number - 1."""
    return int(torch.empty(1, dtype=torch.int64).random_(0, number).item())


class Bernoulli:
    """Whether something that happens with a probability happens."""

    def __init__(self, probability: float) -> None:
        self._limit = torch.tensor(probability, dtype=torch.float32).item()  # what torch compares with

    def __call__(self) -> bool:
        return uniform(0, 1) < self._limit


class RandomBox:
    """The box of RandomResizedCrop.

    Args:
        step: says how large and how wide boxes are.
    """

    def __init__(self, step: v2.RandomResizedCrop) -> None:
        self._scale, self._ratio = tuple(step.scale), tuple(step.ratio)
        self._log_ratio = tuple(torch.log(torch.tensor(step.ratio)).tolist())

    def __call__(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a box in an image of this size."""
        area, drawn = height * width, torch.empty(1)
        for _ in range(10):
            target = area * drawn.uniform_(*self._scale).item()
            aspect = drawn.uniform_(*self._log_ratio).exp_().item()
            box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = whole_number(height - box_height + 1)
                return top, whole_number(width - box_width + 1), box_height, box_width
        # The middle of the image, as much of it as the ratios allow.
        box_height, box_width = height, width
        if width / height < min(self._ratio):
            box_height = round(width / min(self._ratio))
        elif width / height > max(self._ratio):
            box_width = round(height * max(self._ratio))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_size(size: list[int], height: int, width: int) -> tuple[int, int]:
    """What Resize makes of an image's size: two numbers are that, one is for the shorter side.

    Raises:
        ValueError: it would be a line, or too large.
    """
    if len(size) == 2:
        return size[0], size[1]
    # torchvision cuts the longer side's fraction off.
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    if long * short > MAX_PIXELS or long > MAX_ASPECT * short:
        raise ValueError(f"Resize makes a picture of {long} x {short} pixels of it")
    return (short, long) if height <= width else (long, short)
