"""One transform of a list each, in two halves: its chance, drawn on the host for one sample, and what that says on the device.

`draw` asks torch's generator exactly as torchvision's own transform does, so that a sample meets the same box, flip, colour and
angle on every way; its numbers become columns of a table with a row for each image of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.data.transforms.random import Bernoulli, uniform, whole_number

Size: TypeAlias = tuple[int, int]
"""Height and width."""
ImageAnalysis: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Rows and columns, int64 that broadcast to [B, h, w], → pixels uint8 [B, h, w, 3]; 0 outside of the image."""


class Step(ABC):
    """A transform."""

    num_columns: int

    @abstractmethod
    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        """The chance of one sample, for an image of this size.

        Returns:
            `num_columns` numbers, and the size of what comes out.

        Raises:
            ValueError: the image has no size that the transform takes.
        """

    def size_after(self, size: Size | None) -> Size | None:
        """Size of the images behind this step; None = each has its own."""
        return size


class Moving(Step):
    """A step that takes each pixel from one place of its image."""

    @abstractmethod
    def look(self, before: ImageAnalysis, numbers: Tensor) -> ImageAnalysis:
        """How to look at the images behind this step, given how to look at those before it.

        Args:
            numbers: float64 [B, num_columns].
        """


class Flip(Moving):
    """RandomHorizontalFlip (axis 1), RandomVerticalFlip (axis 0). Columns: 0 or 1, last place of the axis."""

    num_columns = 2

    def __init__(self, probability: float, axis: int) -> None:
        self.axis, self._happens = axis, Bernoulli(probability)

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        return [self._happens(), (height, width)[self.axis] - 1], height, width

    def look(self, before: ImageAnalysis, numbers: Tensor) -> ImageAnalysis:
        flipped, last = (column.view(-1, 1, 1) for column in numbers.long().unbind(1))

        def turned(place: Tensor) -> Tensor:
            return place + flipped * (last - 2 * place)

        if self.axis:
            return lambda rows, columns: before(rows, turned(columns))
        return lambda rows, columns: before(turned(rows), columns)


class Crop(Moving):
    """CenterCrop, RandomCrop; black where the image is smaller. Columns: top, left, and the image's height and width."""

    num_columns = 4

    def __init__(self, size: Size, corner: Callable[[int, int], tuple[int, int]]) -> None:
        self.size, self._corner = size, corner

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        return [*self._corner(height, width), height, width], *self.size

    def size_after(self, size: Size | None) -> Size | None:
        del size
        return self.size

    def look(self, before: ImageAnalysis, numbers: Tensor) -> ImageAnalysis:
        top, left, height, width = (column.view(-1, 1, 1) for column in numbers.long().unbind(1))

        def look(rows: Tensor, columns: Tensor) -> Tensor:
            rows, columns = rows + top, columns + left
            return before(rows, columns) * _inside(rows, columns, height, width)

        return look


def _inside(rows: Tensor, columns: Tensor, height: Tensor, width: Tensor) -> Tensor:
    return ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))[..., None]


def centre_corner(size: Size, height: int, width: int) -> tuple[int, int]:
    # torchvision pads a smaller image first; the larger half of an odd rest goes to the right and the bottom.
    top, left = (
        round((side - want) / 2) if side >= want else -((want - side) // 2)
        for side, want in zip((height, width), size, strict=True)
    )
    return top, left


def random_corner(step: v2.RandomCrop, height: int, width: int) -> tuple[int, int]:
    left_pad, right_pad, top_pad, bottom_pad = step.padding or (0, 0, 0, 0)
    padded_height, padded_width = height + top_pad + bottom_pad, width + left_pad + right_pad
    if step.pad_if_needed:
        for_height, for_width = max(0, step.size[0] - padded_height), max(0, step.size[1] - padded_width)
        top_pad, left_pad = top_pad + for_height, left_pad + for_width
        padded_height, padded_width = padded_height + 2 * for_height, padded_width + 2 * for_width
    if padded_height < step.size[0] or padded_width < step.size[1]:
        raise ValueError(
            f"Required crop size {tuple(step.size)} is larger than input image size {(padded_height, padded_width)}."
        )
    top = whole_number(padded_height - step.size[0] + 1) if padded_height > step.size[0] else 0
    left = whole_number(padded_width - step.size[1] + 1) if padded_width > step.size[1] else 0
    return top - top_pad, left - left_pad


class Warp(Moving):
    """RandomRotation, RandomAffine. Columns: Pillow's six coefficients, and the image's height and width.

    Args:
        matrix: (height, width) → where a pixel comes from: x = a·x + b·y + c, y = d·x + e·y + f, at the pixels' corners.
    """

    num_columns = 8

    def __init__(self, matrix: Callable[[int, int], list[float]], *, bilinear: bool) -> None:
        self._matrix, self._bilinear = matrix, bilinear

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        a, b, c, d, e, f = self._matrix(height, width)
        numbers = [a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5]  # at their centres
        if not self._bilinear:  # Pillow computes in 1/65536 of a pixel
            numbers = [math.floor(number * 65536 + 0.5) for number in numbers]
        return [*numbers, height, width], height, width

    def look(self, before: ImageAnalysis, numbers: Tensor) -> ImageAnalysis:
        whole = numbers.long()
        height, width = (column.view(-1, 1, 1) for column in whole[:, 6:].unbind(1))
        a, b, c, d, e, f = (numbers if self._bilinear else whole)[:, :6].reshape(-1, 6, 1, 1).unbind(1)
        if self._bilinear:
            return lambda rows, columns: _look_between(before, [a, b, c, d, e, f], height, width, rows, columns)

        def look(rows: Tensor, columns: Tensor) -> Tensor:
            from_columns = torch.addcmul(torch.addcmul(c, rows, b), columns, a).bitwise_right_shift_(16)
            from_rows = torch.addcmul(torch.addcmul(f, rows, e), columns, d).bitwise_right_shift_(16)
            return before(from_rows, from_columns) * _inside(from_rows, from_columns, height, width)

        return look


def _look_between(
    before: ImageAnalysis, matrix: list[Tensor], height: Tensor, width: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    a, b, c, d, e, f = matrix
    x, y = columns * a + (rows * b + c), columns * d + (rows * e + f)
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = (x - left)[..., None], (y - top)[..., None]

    def tap(down: int, right: int) -> Tensor:
        from_rows = (top.long() + down).clamp(min=0).minimum(height - 1)
        return before(from_rows, (left.long() + right).clamp(min=0).minimum(width - 1)).double()

    upper, lower = (torch.lerp(tap(down, 0), tap(down, 1), right_share) for down in (0, 1))
    return (torch.lerp(upper, lower, bottom_share).floor_() * inside).to(torch.uint8)


def rotation_matrix(step: v2.RandomRotation, height: int, width: int) -> list[float]:
    """As Pillow's `Image.rotate` does it."""
    angle = -math.radians(uniform(*step.degrees) % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = step.center or (width / 2, height / 2)
    return [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]


def affine_matrix(step: v2.RandomAffine, height: int, width: int) -> list[float]:
    """As torchvision does it: the inverse of turning, scaling, shearing about the centre, then moving."""
    angle = math.radians(uniform(*step.degrees))
    x_move = y_move = 0
    if step.translate is not None:
        x_most, y_most = float(step.translate[0] * width), float(step.translate[1] * height)
        x_move, y_move = round(uniform(-x_most, x_most)), round(uniform(-y_most, y_most))
    scale = uniform(*step.scale) if step.scale is not None else 1.0
    x_shear = y_shear = 0.0
    if step.shear is not None:
        x_shear = math.radians(uniform(step.shear[0], step.shear[1]))
        if len(step.shear) == 4:
            y_shear = math.radians(uniform(step.shear[2], step.shear[3]))
    a = math.cos(angle - y_shear) / math.cos(y_shear)
    b = -(a * math.tan(x_shear) + math.sin(angle))
    c = math.sin(angle - y_shear) / math.cos(y_shear)
    d = math.cos(angle) - c * math.tan(x_shear)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale
    x, y = step.center or (width * 0.5, height * 0.5)
    return [a, b, x - a * (x + x_move) - b * (y + y_move), c, d, y - c * (x + x_move) - d * (y + y_move)]
