"""Resizing on a device: boxes of pictures, each of another size, to pictures of one size, antialiased as Pillow does it.

A resize is two products of matrices, across and down, with the weights of each picture made where it is resized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.data.chance import RandomBox, resized_size
from accel_flowers.data.device.steps import Size, Step


class Resizing(Step):
    """A box of each picture, resized. Its columns: top, left, height, width of the box, height and width it gets."""

    num_columns = 6


class RandomResizedCrop(Resizing):
    """torchvision's, box for box."""

    def __init__(self, step: v2.RandomResizedCrop) -> None:
        self._size: Size = (step.size[0], step.size[1])
        self._box = RandomBox(step)

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        return [*self._box(height, width), *self._size], *self._size

    def size_after(self, size: Size | None) -> Size | None:
        del size
        return self._size


class Resize(Resizing):
    """torchvision's: to a size, or the shorter side to one."""

    def __init__(self, size: list[int]) -> None:
        self.short = size[0] if len(size) == 1 else None
        self._size: Size = (size[0], size[-1])

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        new_height, new_width = self.size_of(height, width)
        return [0, 0, height, width, new_height, new_width], new_height, new_width

    def size_of(self, height: int, width: int) -> Size:
        """What becomes of a picture of this size."""
        return self._size if self.short is None else resized_size([self.short], height, width)

    def size_after(self, size: Size | None) -> Size | None:
        return self._size if self.short is None else size and self.size_of(*size)


def resize_weights(
    length: Tensor,
    virtual: Tensor,
    first: Tensor | None,
    shift: Tensor | None,
    mirrored: Tensor | None,
    *,
    num_out: Size,
    num_in: Size,
) -> Tensor:
    """How an antialiased bilinear resize mixes the pixels of each axis: down (0) and across (1).

    Both axes are computed together, to the larger of their shapes, because most of the time goes into starting kernels.

    Args:
        length: float64 [B, 2], pixels of the box that is resized.
        virtual: float64 [B, 2], pixels that the whole box would become.
        first: float64 [B, 2], where the box begins among the pixels at hand; None = at their first.
        shift: float64 [B, 2], which of the virtual ones is the first one wanted; those outside become 0. None = the first,
            and none are outside.
        mirrored: float64 [B, 2], 1 where the wanted pixels are to come in reverse; None = nowhere.
        num_out, num_in: pixels wanted and pixels at hand, of each axis.

    Returns:
        float32 [B, 2, max(num_out), max(num_in)]; what lies beyond an axis' own shape means nothing.
    """
    device = length.device
    out = torch.arange(max(num_out), device=device, dtype=torch.float64)
    if mirrored is not None:
        # The axes' last places, made on the device: a tensor of a list would be waited for.
        last = num_out[0] - 1 + torch.arange(2, device=device).view(2, 1) * (num_out[1] - num_out[0])
        out = out + mirrored[..., None] * (last - 2 * out)
    if shift is not None:
        out = out + shift[..., None]
    scale = (length / virtual)[..., None]
    centre = (out + 0.5) * scale
    # The whole part apart from the fraction: differences to pixels are then exact enough in float32.
    whole = centre.floor()
    rest = (centre - whole - 0.5).float()[..., None]
    begin = 0.0 if first is None else first[..., None]
    pixel = torch.arange(max(num_in), device=device, dtype=torch.float32)
    distance = (pixel - (whole + begin).float()[..., None]).sub_(rest)
    weights = distance.abs_().mul_(-1 / scale.clamp(min=1).float()[..., None]).add_(1).clamp_(min=0)
    inside = pixel < (length[..., None] + begin)
    if first is not None:
        inside &= pixel >= begin
    weights.mul_(inside[..., None, :])
    total = weights.sum(-1).clamp_(min=1e-6)
    share = total.reciprocal_() if shift is None else ((out >= 0) & (out < virtual[..., None])) / total
    return weights.mul_(share[..., None])


@cache
def compiled_weights() -> Callable[..., Tensor]:
    """`resize_weights` as few kernels, for all shapes."""
    return torch.compile(resize_weights, dynamic=True)


def resample(region: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Resize the pictures of a batch, each by its own weights: first across, rounded, then down, as Pillow does.

    Args:
        region: uint8 [B, H, W, 3], in any layout.
        down, across: weights [B, h, H] and [B, w, W], in the type that the products are
            computed in; their sums are float32.

    Returns:
        uint8 [B, 3, h, w]
    """
    batch, height, width, channels = region.shape
    dtype = down.dtype
    lines = region.permute(0, 1, 3, 2).to(dtype, memory_format=torch.contiguous_format).view(batch, -1, width)
    narrow = _whole(_product(lines, across.mT)).to(dtype).view(batch, height, -1)
    small = _whole(_product(down, narrow)).view(batch, down.shape[1], channels, -1)
    return small.permute(0, 2, 1, 3).contiguous()


def _whole(levels: Tensor) -> Tensor:
    """Rounded, halves upwards, as Pillow does; float32 → uint8."""
    return levels.add_(0.5).to(torch.uint8)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
