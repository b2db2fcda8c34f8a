"""The stages that a list of transforms becomes on a device: what is computed in one go for a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from accel_flowers.data.transforms.gpu.resize import ResizeWeights, as_matrices, resample, resize_weights
from accel_flowers.data.transforms.gpu.steps import ImageAnalysis, Moving, Size
from accel_flowers.data.transforms.gpu.store import ALIGNED, DeviceImages

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
    dtype: torch.dtype | None
    output_extent: list[tuple[int, int, int, int]]
    """Of the resizes that are still to come."""
    resizes: list[ResizeWeights]
    """Of the same, where they were made before; else empty."""
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


@cache
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

    stored: bool = False
    """Whether the boxes lie in the store: nothing was done before."""

    def weights(
        self, random_params: Tensor, extent: tuple[int, int, int, int], dtype: torch.dtype | None
    ) -> ResizeWeights:
        """What of the work needs no pixels.

        Args:
            random_params: float64 [B, K], on the host or the device.
            extent: of this resize.
            dtype: of the weights; None = float16 on a GPU, else float32.
        """
        step, columns = self.resizing
        numbers = random_params[:, columns]
        box_height, box_width, *whole = extent
        scale = max(1, box_height / step.least[0], box_width / step.least[1])
        return resize_weights(
            numbers[:, 2:],
            self._first(numbers[:, :2]),
            self._shift(random_params),
            [[random_params[:, column] for column in columns] for columns in self.flips],
            num_out=self.size or (whole[0], whole[1]),
            num_taps=math.ceil(2 * scale) + 1,
            dtype=dtype or (torch.float16 if numbers.is_cuda else torch.float32),
        )

    def done(self, work: Work) -> Tensor:
        extent = work.output_extent.pop(0)
        weights = work.resizes.pop(0) if work.resizes else self.weights(work.random_params, extent, work.dtype)
        region = self._region(work, work.random_params[:, self.resizing[1]][:, :2], (extent[0], extent[1]))
        size, num_in = self.size or (extent[2], extent[3]), (region.shape[1], region.shape[2])
        matrices = as_matrices(weights, num_in)
        down, across = (matrices[:, axis, : size[axis], : num_in[axis]] for axis in (0, 1))
        return resample(region, down, across)

    def _shift(self, random_params: Tensor) -> Tensor | None:
        """The first pixels that are wanted of the whole, float64 [B, 2]; None = all are."""
        if self.crop:
            return random_params[:, self.crop][:, :2]
        return torch.zeros_like(random_params[:, :2]) if self.size is None else None  # beyond smaller images is black

    def _first(self, corner: Tensor) -> Tensor:
        """Where the boxes begin in `_region`, float64 [B, 2]."""
        if self.moves:
            return torch.zeros_like(corner)
        return corner.remainder(ALIGNED) if self.stored else corner

    def _region(self, work: Work, corner: Tensor, size: Size) -> Tensor:
        """Pixels uint8 [B, H, W, 3] in which the boxes lie."""
        if self.moves:
            top, left = corner.long().unbind(1)
            rows, columns = _grid(size, corner.device)
            return work.look(self.moves)(rows + top.view(-1, 1, 1), columns + left.view(-1, 1, 1))
        if work.pixels is not None:
            return work.pixels.permute(0, 2, 3, 1)
        assert work.images is not None
        return work.images.region_at(work.samples, corner, *size)
