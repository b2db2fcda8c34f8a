"""Resizing on a device: boxes of images, each of another size, to images of one size, antialiased as Pillow does it.

A resize is two products of matrices, across and down, with weights of each image's own. Few pixels have a share in one of the
result, and which ones follows from the draws alone, so a loader's workers say so, and the device puts it into matrices of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.data.transforms.gpu.steps import Size, Step
from accel_flowers.data.transforms.random import RandomBox, resized_size


class Resizing(Step):
    """A box of each image, resized. Its columns: top, left, height, width of the box, height and width it gets."""

    num_columns = 6
    least: Size
    """Height and width that a box gets at least."""


class RandomResizedCrop(Resizing):
    """torchvision's, box for box."""

    def __init__(self, step: v2.RandomResizedCrop) -> None:
        self.least: Size = (step.size[0], step.size[1])
        self._box = RandomBox(step)

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        return [*self._box(height, width), *self.least], *self.least

    def size_after(self, size: Size | None) -> Size | None:
        del size
        return self.least


class Resize(Resizing):
    """torchvision's: to a size, or the shorter side to one."""

    def __init__(self, size: list[int]) -> None:
        self.short = size[0] if len(size) == 1 else None
        self.least: Size = (size[0], size[-1])

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        new_height, new_width = self.size_of(height, width)
        return [0, 0, height, width, new_height, new_width], new_height, new_width

    def size_of(self, height: int, width: int) -> Size:
        """What becomes of an image of this size."""
        return self.least if self.short is None else resized_size([self.short], height, width)

    def size_after(self, size: Size | None) -> Size | None:
        return self.least if self.short is None else size and self.size_of(*size)


class ResizeWeights(NamedTuple):
    """How a resize mixes the pixels of each axis: down (0) and across (1), both to the larger of their lengths."""

    first: Tensor
    """int64 [B, 2, N], the first pixel that has a share in each of the result."""
    shares: Tensor
    """[B, 2, N, T], of this pixel and those behind it; they may lie beyond the last one, with 0."""


def resize_weights(
    box: Tensor,
    first: Tensor,
    shift: Tensor | None,
    flips: Sequence[Sequence[Tensor]],
    *,
    num_out: Size,
    num_taps: int,
    dtype: torch.dtype,
) -> ResizeWeights:
    """How an antialiased bilinear resize mixes pixels. It needs no pixels, so a loader's worker does it where the device shall not.

    Args:
        box: float64 [B, 4], height and width of what is resized, and those it would get as a whole.
        first: float64 [B, 2], where the box begins among the pixels at hand.
        shift: float64 [B, 2], which of the whole's pixels is the first one wanted; those outside become 0. None = the first,
            and none are outside.
        flips: float64 [B], any number for each axis, 1 where the wanted pixels are to come in reverse; twice is not at all.
        num_out: pixels wanted of each axis.
        num_taps: as many as a pixel of the result may need.
        dtype: of the shares.
    """
    length, virtual = box[:, :2], box[:, 2:]
    places = torch.arange(max(*num_out, num_taps), device=box.device)
    end = first + length
    scale = length / virtual
    reach = scale.clamp(min=1)[..., None, None]
    # The middle of wanted pixel k lies at begin + k * step, in pixels from their edges.
    begin = torch.add(first, scale, alpha=0.5)
    if shift is not None:
        begin.addcmul_(shift, scale)
    step = scale
    for axis, columns in enumerate(flips):
        for flipped in columns:
            begin[:, axis].addcmul_(flipped, step[:, axis], value=num_out[axis] - 1)
            step[:, axis].addcmul_(flipped, step[:, axis], value=-2)
    middle = torch.addcmul(begin[..., None], step[..., None], places[: max(num_out)])[..., None]
    first, end = first[..., None, None], end[..., None, None]
    first_tap = (middle - reach).clamp_(first, end).long()
    taps = first_tap + places[:num_taps]
    weights = (reach - (taps - (middle - 0.5)).abs_()).clamp_(min=0).mul_(taps < end)
    total = weights.sum(-1, keepdim=True)
    if shift is not None:
        weights.mul_((middle > first) & (middle < end))
        total.clamp_(min=1e-6)
    return ResizeWeights(first_tap[..., 0], torch.div(weights, total, out=torch.empty_like(weights, dtype=dtype)))


def as_matrices(weights: ResizeWeights, num_in: Size) -> Tensor:
    """The weights of all pixels at hand, [B, 2, N, >= max(num_in)]; what lies beyond an axis' own shape means nothing."""
    first, shares = weights
    taps = first[..., None] + _places(shares.shape[-1], first.device)
    # Taps may lie beyond the last pixel, with weight 0: there is room for them, too.
    matrix = shares.new_zeros(*shares.shape[:3], max(num_in) + -(-shares.shape[-1] // 8) * 8)
    return matrix.scatter_(3, taps, shares)


@cache
def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


def resample(region: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Resize the images of a batch, each by its own weights: first across, rounded, then down, as Pillow does.

    Args:
        region: uint8 [B, H, W, 3], in any layout.
        down, across: weights [B, h, H] and [B, w, W], in the type that the products are
            computed in; their sums are float32.

    Returns:
        uint8 [B, 3, h, w]
    """
    batch, height, width, channels = region.shape
    lines = _with_half(region.transpose(2, 3), down.dtype).view(batch, -1, width)
    narrow = _with_half(_product(lines, across.mT).to(torch.uint8), down.dtype).view(batch, height, -1)
    small = _product(down, narrow).view(batch, down.shape[1], channels, -1)
    return small.transpose(1, 2).to(torch.uint8, memory_format=torch.contiguous_format)


def _with_half(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 → contiguous, plus 0.5: as weights add up to 1, their sums need only be cut off to be rounded, halves upwards."""
    if levels.is_cuda:  # one kernel; for a CPU two passes are less work
        return torch.add(levels, 0.5, out=torch.empty(levels.shape, dtype=dtype, device=levels.device))
    return levels.to(dtype, memory_format=torch.contiguous_format).add_(0.5)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
