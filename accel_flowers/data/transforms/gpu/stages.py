"""The stages that a list of transforms becomes on a device: what is computed in one go for a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from accel_flowers.data.transforms.gpu.resize import resample, resize_weights
from accel_flowers.data.transforms.gpu.steps import ImageAnalysis, Moving, Size
from accel_flowers.data.transforms.gpu.store import DeviceImages

OutputExtent: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""What shapes are chosen by, for each resize: height and width of the largest box, and of the largest image made."""
Placed: TypeAlias = tuple[Any, slice]
"""A step and its columns."""


@dataclass
class Work:
    """A batch on its way through the stages."""

    images: DeviceImages | None
    """None = they do not lie in the store any more."""
    samples: Tensor
    random_params: Tensor
    dtype: torch.dtype
    output_extent: list[tuple[int, int, int, int]]
    """Of the resizes that are still to come."""
    compiled: bool
    pixels: Tensor | None = None
    """uint8 [B, 3, H, W]; smaller images lie in its upper left corner. None = they still lie in the store."""

    def look(self, moves: list[Placed]) -> ImageAnalysis:
        """How to look at the images, moved."""
        if self.pixels is None:
            assert self.images is not None
            look: ImageAnalysis = partial(self.images.pixels_at, self.samples)
        else:
            look = partial(_pixels_at, self.pixels)
        for step, columns in moves:
            move: Moving = step
            look = move.look(look, self.random_params[:, columns])
        return look


def _pixels_at(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels of uint8 [B, 3, H, W] at rows and columns that broadcast to [B, h, w] → uint8 [B, h, w, 3]."""
    batch, channels, height, width = pixels.shape
    index = torch.add(columns.clamp(0, width - 1), rows.clamp(0, height - 1), alpha=width).expand(batch, -1, -1)
    taken = pixels.view(batch, channels, -1).gather(2, index.reshape(batch, 1, -1).expand(-1, channels, -1))
    return taken.view(batch, channels, *index.shape[1:]).permute(0, 2, 3, 1)


class Stage:
    """What is computed in one go."""

    size: Size | None
    """Of the images that come out; None = each has its own."""

    def done(self, work: Work) -> Tensor:
        """uint8 [B, 3, H, W]"""
        raise NotImplementedError


@dataclass
class MoveStage(Stage):
    """Pixels taken from their places."""

    moves: list[Placed]
    size: Size | None

    def done(self, work: Work) -> Tensor:
        assert self.size is not None
        rows, columns = _grid(self.size, work.random_params.device)
        return work.look(self.moves)(rows, columns).permute(0, 3, 1, 2).contiguous()


def _grid(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(size[0], device=device).view(1, -1, 1), torch.arange(size[1], device=device).view(1, 1, -1)


@dataclass
class PaintStage(Stage):
    """Other colours."""

    painting: Placed
    size: Size | None

    def done(self, work: Work) -> Tensor:
        step, columns = self.painting
        assert work.pixels is not None
        return step.paint(work.pixels, work.random_params[:, columns], compiled=work.compiled)


@dataclass
class ResizeStage(Stage):
    """Boxes of images, after some moves, resized; then perhaps a part of that, and flips."""

    resizing: Placed
    moves: list[Placed]
    size: Size | None
    crop: slice | None = None
    """Columns of the crop behind it."""
    flips: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Columns that say whether the image is flipped: vertically, horizontally."""

    def done(self, work: Work) -> Tensor:
        step, columns = self.resizing
        numbers = work.random_params[:, columns]
        region, first = self._region(work, numbers)
        *_, all_height, all_width = work.output_extent.pop(0)
        size, num_in = self.size or (all_height, all_width), (region.shape[1], region.shape[2])
        scale = max(1, *(sides[0] / sides[1] for sides in zip(num_in, step.least, strict=True)))
        weights = resize_weights(
            numbers[:, 2:],
            first,
            self._shift(work),
            [[work.random_params[:, column] for column in columns] for columns in self.flips],
            num_out=size,
            num_in=num_in,
            num_taps=math.ceil(2 * scale) + 1,
            dtype=work.dtype,
        )
        down, across = (weights[:, axis, : size[axis], : num_in[axis]] for axis in (0, 1))
        return resample(region, down, across)

    def _shift(self, work: Work) -> Tensor | None:
        """The first pixels that are wanted of the whole, float64 [B, 2]; None = all are."""
        if self.crop:
            return work.random_params[:, self.crop][:, :2]
        return (
            torch.zeros_like(work.random_params[:, :2]) if self.size is None else None
        )  # beyond smaller images is black

    def _region(self, work: Work, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [B, H, W, 3] in which the boxes lie, and where they begin there, float64 [B, 2]."""
        corner = numbers[:, :2]
        if work.pixels is not None and not self.moves:
            return work.pixels.permute(0, 2, 3, 1), corner
        height, width, *_ = work.output_extent[0]
        if not self.moves:
            assert work.images is not None
            return work.images.region_at(work.samples, corner, height, width)
        top, left = corner.long().unbind(1)
        rows, columns = _grid((height, width), numbers.device)
        look = work.look(self.moves)
        return look(rows + top.view(-1, 1, 1), columns + left.view(-1, 1, 1)), torch.zeros_like(corner)
