"""A list of torchvision's transforms for images that lie on the device: chance for each sample here, pixels for a batch there.

`draw` gives what torchvision's transforms would draw, as numbers; `apply` does what the numbers say. Between the two lies a table
with one row an image, so workers draw, and the device never waits: no shape follows from a value that is there.

A list becomes a few stages. Steps that only move pixels are not done one after the other: the place that each pixel comes from is
followed back through all of them, and the pixels are taken once. Images keep their own sizes until a step makes them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.data.transforms.gpu.colour import Blur, ColorJitter, Grey, Painting
from accel_flowers.data.transforms.gpu.resize import RandomResizedCrop, Resize, ResizeWeights, Resizing
from accel_flowers.data.transforms.gpu.stages import (
    MoveStage,
    OutputExtent,
    PaintStage,
    Placed,
    ResizeStage,
    Stage,
    Work,
)
from accel_flowers.data.transforms.gpu.steps import (
    Crop,
    Flip,
    Size,
    Step,
    Warp,
    affine_matrix,
    centre_corner,
    random_corner,
    rotation_matrix,
)
from accel_flowers.data.transforms.gpu.store import CHANNELS, DeviceImages, region_side


class DeviceTransform:
    """What a list of transforms does to images on a device. It can be sent to a loader's workers.

    Args:
        steps: in the order they act.
        stages: the same, as they are computed.

    Attributes:
        size: (height, width) of the images it makes.
        num_columns: numbers that one sample's chance is (K).
        dtype: what resizes are computed in; None = float16 on a GPU (weights rounded to 11 bits, sums in float32), else
            float32.
        max_bytes: memory for what lies between images and result; a batch that needs more is computed in parts.
        compiled: fuse the changes of colour into a few kernels, by torch.compile.
    """

    def __init__(self, steps: Sequence[Step], stages: Sequence[Stage], size: Size) -> None:
        self._steps, self._stages = list(steps), list(stages)
        resizes = [number for number, stage in enumerate(stages) if isinstance(stage, ResizeStage)]
        first = max(resizes, default=0) + 1
        self._begin, self._finish = self._stages[:first], self._stages[first:]
        self.size = size
        self.num_columns = sum(step.num_columns for step in steps)
        self.dtype: torch.dtype | None = None
        self.max_bytes = 2**32
        self.compiled = False

    def draw(self, height: int, width: int) -> list[float]:
        """The chance of one sample, `num_columns` numbers, from torch's default generator.

        They need float64, and the generator must have been seeded for the sample.

        Args:
            height, width: of the sample's image.

        Raises:
            ValueError: the image has no size that the steps take.
        """
        numbers: list[float] = []
        for step in self._steps:
            drawn, height, width = step.draw(height, width)
            numbers += drawn
        return numbers

    def output_extent(self, random_params: Tensor) -> OutputExtent:
        """What shapes a batch needs, from its draws (float64 [B, K]) while they are on the host."""
        largest = random_params.amax(0).tolist()
        boxes = [largest[stage.resizing[1]] for stage in self._stages if isinstance(stage, ResizeStage)]
        return tuple(
            (region_side(int(box[2])), region_side(int(box[3])), region_side(int(box[4])), region_side(int(box[5])))
            for box in boxes
        )

    def resizes(self, random_params: Tensor, output_extent: OutputExtent) -> tuple[ResizeWeights, ...]:
        """What of a batch's resizes needs no pixels, from its draws while they are on the host: on the device it would be two
        dozen kernels."""
        stages = [stage for stage in self._stages if isinstance(stage, ResizeStage)]
        return tuple(
            stage.weights(random_params, extent, self.dtype)
            for stage, extent in zip(stages, output_extent, strict=True)
        )

    @torch.no_grad()
    def apply(
        self,
        images: DeviceImages,
        samples: Tensor,
        random_params: Tensor,
        *,
        output_extent: OutputExtent | None = None,
        resizes: Sequence[ResizeWeights] = (),
    ) -> Tensor:
        """The images of a batch.

        Args:
            images: all of them.
            samples: int64 [B] on their device, which ones are wanted.
            random_params: float64 [B, K] there, a row of `draw` for each.
            output_extent: of these; None = what the largest image of all could need. It changes speed and memory alone.
            resizes: of these and this extent, on the device; none = they are made there.

        Returns:
            uint8 [B, 3, H, W]
        """
        begun = self.begin(images, samples, random_params, output_extent=output_extent, resizes=resizes)
        return self.finish(begun, random_params)

    @torch.no_grad()
    def begin(
        self,
        images: DeviceImages,
        samples: Tensor,
        random_params: Tensor,
        *,
        output_extent: OutputExtent | None = None,
        resizes: Sequence[ResizeWeights] = (),
    ) -> Tensor:
        """All up to the last resize, whose shapes differ from batch to batch; see `apply`.

        Returns:
            uint8 [B, 3, h, w] of one size for all batches.
        """
        if random_params.dtype != torch.float64 or random_params.shape != (len(samples), self.num_columns):
            raise ValueError(
                f"draws must be float64 {[len(samples), self.num_columns]}, not {random_params.dtype} {[*random_params.shape]}"
            )
        extent = output_extent or self._largest_extent(images)

        def work(part: Tensor, rows: Tensor, *weights: Tensor) -> Tensor:
            given = [ResizeWeights(*pair) for pair in zip(weights[::2], weights[1::2], strict=True)]
            return self._done(self._begin, Work(images, part, rows, self.dtype, list(extent), given, self.compiled))

        flat = [tensor for pair in resizes for tensor in pair]
        return self._in_parts(work, self._bytes_each(extent), samples, random_params, *flat)

    @torch.no_grad()
    def finish(self, pixels: Tensor, random_params: Tensor) -> Tensor:
        """All behind that, of `begin`'s pixels and the same draws.

        Returns:
            uint8 [B, 3, H, W]
        """
        if not self._finish:
            return pixels

        def work(part: Tensor, rows: Tensor) -> Tensor:
            nowhere = torch.empty(0, dtype=torch.int64, device=rows.device)
            return self._done(self._finish, Work(None, nowhere, rows, None, [], [], self.compiled, part))

        return self._in_parts(work, self._bytes_to_finish(), pixels, random_params)

    def _in_parts(self, work: Callable[..., Tensor], bytes_each: int, *of_images: Tensor) -> Tensor:
        """`work` on as many images at once as there is memory for."""
        num_images = len(of_images[0])
        num_parts = -(-num_images * bytes_each // self.max_bytes)
        at_once = -(-num_images // num_parts)
        parts = [work(*each) for each in zip(*(tensor.split(at_once) for tensor in of_images), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def _done(stages: Sequence[Stage], work: Work) -> Tensor:
        for stage in stages:
            work.pixels = stage.done(work)
        assert work.pixels is not None
        return work.pixels

    def _largest_extent(self, images: DeviceImages) -> OutputExtent:
        height, width = images.max_height, images.max_width
        output_extent = []
        for stage in self._stages:
            if isinstance(stage, ResizeStage):
                for move, _ in stage.moves:
                    height, width = move.size_after(None) or (height, width)
                step = stage.resizing[0]
                if isinstance(step, Resize) and step.short:
                    made = (int(step.short * images.max_aspect) + 1,) * 2
                else:
                    made = step.size_after(None)
                sides = (region_side(height), region_side(width), region_side(made[0]), region_side(made[1]))
                output_extent.append(sides)
                height, width = made
            if stage.size:
                height, width = stage.size
        return tuple(output_extent)

    def _bytes_each(self, output_extent: OutputExtent) -> int:
        """Memory that one image needs in the largest stage, roughly."""
        needs = [self._bytes_to_finish()]
        for (box_height, box_width, all_height, all_width), stage in zip(
            output_extent, (stage for stage in self._stages if isinstance(stage, ResizeStage)), strict=True
        ):
            made_height, made_width = stage.size or (all_height, all_width)
            lines = box_height * CHANNELS * (box_width * 5 + made_width * 10)
            weights = 2 * 8 * max(made_height, made_width) * max(box_height, box_width)
            needs.append(lines + weights + made_height * made_width * CHANNELS * 6)
        return max(needs)

    def _bytes_to_finish(self) -> int:
        """The same of a stage behind the resizes."""
        sizes = [self.size, *(stage.size for stage in self._stages if stage.size)]
        return max(4 * 40 * height * width for height, width in sizes)


def make_device_transform(steps: Sequence[Any]) -> DeviceTransform | None:
    """What a list of torchvision's transforms (v2), as built for the plain way, does on a device.

    Returns:
        None where a transform has no counterpart here, or changes colours before all images have one size.
    """
    made: list[Step] = []
    for step in steps:
        counterpart = _counterpart(step)
        if counterpart is None:
            return None
        made.append(counterpart)
    plan = _Plan()
    first = 0
    for step in made:
        columns = slice(first, first + step.num_columns)
        first = columns.stop
        if not plan.add(step, columns):
            return None
    size = plan.finish()
    return DeviceTransform(made, plan.stages, size) if size and plan.stages else None


def _counterpart(step: Any) -> Step | None:
    """One transform; None where there is none, or not with these arguments."""
    kind = type(step)
    mode = getattr(step, "interpolation", None)
    mode = getattr(mode, "value", mode)  # a plain word in newer versions of torchvision
    bilinear = mode == "bilinear"
    resizes = bilinear and getattr(step, "antialias", None) is True
    on_black = getattr(step, "fill", 0) in (0, None)
    warps = mode in ("nearest", "bilinear") and on_black and not getattr(step, "expand", False)
    made: Step | None = None
    if kind is v2.RandomResizedCrop and resizes:
        made = RandomResizedCrop(step)
    elif kind is v2.Resize and resizes and step.size is not None and step.max_size is None:
        made = Resize([step.size] if isinstance(step.size, int) else list(step.size))
    elif kind is v2.CenterCrop:
        made = Crop(tuple(step.size), partial(centre_corner, tuple(step.size)))
    elif kind is v2.RandomCrop and on_black and step.padding_mode == "constant":
        made = Crop(tuple(step.size), partial(random_corner, step))
    elif kind in (v2.RandomHorizontalFlip, v2.RandomVerticalFlip):
        made = Flip(step.p, 1 if kind is v2.RandomHorizontalFlip else 0)
    elif kind is v2.RandomRotation and warps:
        made = Warp(partial(rotation_matrix, step), bilinear=bilinear)
    elif kind is v2.RandomAffine and warps:
        made = Warp(partial(affine_matrix, step), bilinear=bilinear)
    elif kind is v2.ColorJitter:
        made = ColorJitter(step)
    elif kind is v2.RandomGrayscale or (kind is v2.Grayscale and step.num_output_channels == CHANNELS):
        made = Grey(step.p if kind is v2.RandomGrayscale else None)
    elif kind is v2.GaussianBlur:
        made = Blur(step)
    return made


class _Plan:
    """Steps → stages."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._size: Size | None = None
        self._moves: list[Placed] = []

    def add(self, step: Step, columns: slice) -> bool:
        """Whether it can be done at this place."""
        last = self.stages[-1] if self.stages and not self._moves else None
        if isinstance(step, Painting):
            if self._size is None or not step.takes(self._size):
                return False
            self.finish()
            self.stages.append(PaintStage((step, columns), self._size))
        elif isinstance(step, Resizing):
            self._size = step.size_after(self._size)
            self.stages.append(ResizeStage((step, columns), self._moves, self._size, stored=not self.stages))
            self._moves = []
        elif isinstance(step, Crop) and isinstance(last, ResizeStage) and last.size is None:
            # Of a resize to a shorter side, the part is computed that is kept.
            last.crop, last.size, self._size = columns, step.size, step.size
        elif isinstance(step, Flip) and isinstance(last, ResizeStage) and last.size is not None:
            last.flips[step.axis].append(columns.start)  # its weights in reverse: a flip for nothing
        else:
            self._size = step.size_after(self._size)
            self._moves.append((step, columns))
        return True

    def finish(self) -> Size | None:
        """Do what is still to be moved.

        Returns:
            The size of the images then; None = they differ.
        """
        if self._size and self._moves:
            self.stages.append(MoveStage(self._moves, self._size))
            self._moves = []
        return self._size
