"""What a list of transforms does to an image, on arrays of bytes, with its crop before its resize.

Chance is asked as torchvision's own code asks it, in its order, so an image meets the same boxes, flips and
colours as on the plain way (`decode_image`, then the transform); its pixels differ by one level at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from accel_flowers.data.decoding.jpeg import decode_rows, read_header
from accel_flowers.data.transforms.cpu.hue import FastColorJitter
from accel_flowers.data.transforms.random import Bernoulli, RandomBox, resized_size

_Cut = tuple[int, Callable[[Tensor], Tensor]]
"""How many rows of an image are needed, and what makes uint8 [3, H, W] of it once [height, width, 3] is there."""
_Beginning = Callable[[int, int], _Cut]
"""Height and width of an image → its cut, with chance drawn."""
_Step = Callable[[Tensor], Tensor]
"""uint8 [3, H, W] → the same."""
_REACH = {"bilinear": 1, "bicubic": 2}
"""Filter of resizing → how many rows around its place make a row of the result: of the image, or where that is made smaller
of the result."""


class FastTransform:
    """A list of transforms whose first ones are done on arrays.

    Args:
        begin: the first step, or the first two.
        steps: those that follow on tensors, in torchvision's order of chance.
        rest: what then follows on Pillow images; None = nothing.
    """

    def __init__(self, begin: _Beginning, steps: list[_Step], rest: Callable[[Image.Image], Tensor] | None) -> None:
        self._begin, self._steps, self._rest = begin, steps, rest

    def of_jpeg(self, data: bytes) -> Tensor | None:
        """Encoded image → uint8 [3, H, W], a view with the channels last; None = it must go the plain way.

        Raises:
            ValueError, RuntimeError: the image has no size that the steps take.
        """
        header = read_header(data)
        if header is None:
            return None
        rows, cut = self._begin(header.height, header.width)
        pixels = decode_rows(data, header, rows, passing=True)
        if pixels is None:
            return None
        made = self._finish(cut(pixels))
        return made.clone() if made.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr() else made

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """The same from a decoded image, uint8 [height, width, 3]."""
        _, cut = self._begin(pixels.shape[0], pixels.shape[1])
        return self._finish(cut(pixels))

    def _finish(self, pixels: Tensor) -> Tensor:
        for step in self._steps:
            pixels = step(pixels)
        if self._rest is None:
            return pixels
        return self._rest(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def make_fast(steps: Sequence[Any], tail: Any) -> FastTransform | None:
    """The fast way of a list of torchvision's transforms (v2).

    Args:
        steps: as built for the plain way.
        tail: the last step of that way: image or tensor → uint8 tensor.

    Returns:
        None where the first step is none that is done here, so that nothing would be won.
    """
    begin, taken = _beginning(steps)
    if begin is None:
        return None
    following: list[_Step] = []
    for step in steps[taken:]:
        fast = _as_tensor_step(step)
        if fast is None:
            break
        following.append(fast)
    rest = [FastColorJitter(step) if type(step) is v2.ColorJitter else step for step in steps[taken + len(following) :]]
    return FastTransform(begin, following, v2.Compose([*rest, tail]) if rest else None)


def _beginning(steps: Sequence[Any]) -> tuple[_Beginning | None, int]:
    """What begins on a decoded array, and how many of the steps that is."""
    # Partial functions and not lambdas, which could not be sent to a loader's workers.
    first, second = [*steps, None, None][:2]
    if isinstance(first, v2.RandomResizedCrop) and _is_plain(first):
        return partial(_crop_and_resize, _filter(first), RandomBox(first), (first.size[0], first.size[1])), 1
    if isinstance(first, v2.Resize) and _takes_resize(first):
        if isinstance(second, v2.CenterCrop):
            return partial(_resize_and_center, _filter(first), first.size, second), 2
        return partial(_whole, partial(_resize, _filter(first), first.size)), 1
    if isinstance(first, (v2.CenterCrop, v2.RandomCrop)):
        return partial(_whole, first), 1
    return None, 0


def _as_tensor_step(step: Any) -> _Step | None:
    """A later step of the list on tensors; None where that would change more than a level."""
    if isinstance(step, v2.Resize) and _takes_resize(step):
        return partial(_resize, _filter(step), step.size)
    if isinstance(step, v2.RandomResizedCrop) and _is_plain(step):
        return partial(_crop_again, _filter(step), RandomBox(step), (step.size[0], step.size[1]))
    if isinstance(step, (v2.CenterCrop, v2.RandomCrop)):
        return step
    if isinstance(step, v2.RandomHorizontalFlip):
        return partial(_flip, Bernoulli(step.p), -1)
    if isinstance(step, v2.RandomVerticalFlip):
        return partial(_flip, Bernoulli(step.p), -2)
    return None


def _takes_resize(step: v2.Resize) -> bool:
    return _is_plain(step) and step.max_size is None and step.size is not None


def _is_plain(step: Any) -> bool:
    return _filter(step) in _REACH and step.antialias is True


def _filter(step: Any) -> str:
    return str(
        getattr(step.interpolation, "value", step.interpolation)
    )  # a plain word in newer versions of torchvision


def _whole(step: _Step, height: int, width: int) -> _Cut:
    del width
    return height, lambda pixels: step(pixels.permute(2, 0, 1))


def _crop_and_resize(mode: str, box: RandomBox, size: tuple[int, int], height: int, width: int) -> _Cut:
    top, left, box_height, box_width = box(height, width)
    bottom, right = top + box_height, left + box_width
    return bottom, lambda pixels: _interpolate(pixels[top:bottom, left:right].permute(2, 0, 1), size, mode)


def _resize_and_center(mode: str, size: list[int], crop: v2.CenterCrop, height: int, width: int) -> _Cut:
    resized = resized_size(size, height, width)
    bottom = round((resized[0] - crop.size[0]) / 2) + crop.size[0]
    scale = height / resized[0]
    rows = min(height, int(bottom * scale + _REACH[mode] * max(scale, 1)) + 2)
    return rows, lambda pixels: crop(_interpolate(pixels.permute(2, 0, 1), resized, mode))


def _crop_again(mode: str, box: RandomBox, size: tuple[int, int], pixels: Tensor) -> Tensor:
    _, cut = _crop_and_resize(mode, box, size, pixels.shape[1], pixels.shape[2])
    return cut(pixels.permute(1, 2, 0))


def _resize(mode: str, size: list[int], pixels: Tensor) -> Tensor:
    return _interpolate(pixels, resized_size(size, pixels.shape[1], pixels.shape[2]), mode)


def _flip(happens: Bernoulli, dimension: int, pixels: Tensor) -> Tensor:
    return pixels.flip(dimension) if happens() else pixels


def _interpolate(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(pixels.shape[1:]) == size:
        return pixels
    # Rows of pixels that lie together are resized, and later copied, twice as fast; torch sees that they do in a batch made
    # of them like this, and not in `pixels[None]`.
    batch = pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return functional.interpolate(batch, size, mode=mode, antialias=True)[0]
