"""JPEGs without the detour over Pillow: decoded into arrays, cropped before they are resized.

Crop boxes come from torchvision's own code, and chance is asked in its order, so a picture meets the same boxes, flips and
colours as on the plain way (`decode_image`, then the transform); its pixels differ by one level at most. Whatever this way does
not take (another colour space, an EXIF turn, damage, other transforms in front) goes the plain way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from accel_flowers.data.decode import MAX_PIXELS, exif_orientation_of_jpeg

_Step = Callable[[Tensor], Tensor]


class FastTransform:
    """What a list of transforms does to a JPEG, with its leading crops, resizes and flips done on tensors.

    Args:
        leading: steps uint8 [3, H, W] → the same, in torchvision's order of chance.
        rest: what follows, on a Pillow picture; None = nothing.
    """

    def __init__(self, leading: list[_Step], rest: Callable[[Image.Image], Tensor] | None) -> None:
        self._leading, self._rest = leading, rest

    def __call__(self, data: bytes) -> Tensor | None:
        """Encoded picture → uint8 [3, H, W]; None = it must go the plain way, and no chance was used.

        Raises:
            ValueError, RuntimeError: the picture has no size that the steps take.
        """
        pixels = _decode(data)
        if pixels is None:
            return None
        for step in self._leading:
            pixels = step(pixels)
        if self._rest is None:
            return pixels.contiguous()
        return self._rest(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def make_fast(steps: list[Any], tail: Any) -> FastTransform | None:
    """The fast way of a list of torchvision's transforms (v2).

    Args:
        steps: as built for the plain way.
        tail: the last step of that way: picture or tensor → uint8 tensor.

    Returns:
        None where the first step is none that is done here, so that nothing would be won.
    """
    leading: list[_Step] = []
    for step in steps:
        fast = _as_tensor_step(step)
        if fast is None:
            break
        leading.append(fast)
    if not leading or isinstance(steps[0], (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)):
        return None
    rest = steps[len(leading) :]
    return FastTransform(leading, v2.Compose([*rest, tail]) if rest else None)


def _decode(data: bytes) -> Tensor | None:
    """A JPEG of the usual kind as uint8 [3, H, W] (a view: rows of pixels lie together); None for all others."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if colour != "YCbCr" or height * width > MAX_PIXELS or exif_orientation_of_jpeg(data) != 1:
            return None
        array: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None  # Pillow knows more kinds of damage that can be read over, and says what is wrong with the others
    return torch.from_numpy(array).permute(2, 0, 1)


def _as_tensor_step(step: Any) -> _Step | None:
    """A step of the list on tensors; None where that would change more than a level."""
    # Partial functions and not lambdas, which could not be sent to a loader's workers.
    if isinstance(step, v2.RandomResizedCrop) and _is_plain(step):
        return partial(_resized_crop, step)
    if isinstance(step, v2.Resize) and _is_plain(step) and step.max_size is None and step.size is not None:
        return partial(_resize, step.size)
    if isinstance(step, (v2.CenterCrop, v2.RandomCrop)):
        return step
    if isinstance(step, v2.RandomHorizontalFlip):
        return partial(_flip, step.p, -1)
    if isinstance(step, v2.RandomVerticalFlip):
        return partial(_flip, step.p, -2)
    return None


def _is_plain(step: Any) -> bool:
    kind = getattr(step.interpolation, "value", step.interpolation)  # a plain word in newer versions of torchvision
    return kind == "bilinear" and step.antialias is True


def _flip(probability: float, dimension: int, pixels: Tensor) -> Tensor:
    return pixels.flip(dimension) if torch.rand(1) < probability else pixels


def _resized_crop(step: v2.RandomResizedCrop, pixels: Tensor) -> Tensor:
    box = step.make_params([pixels])
    top, left = box["top"], box["left"]
    return _interpolate(pixels[:, top : top + box["height"], left : left + box["width"]], tuple(step.size))


def _resize(size: list[int], pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    if len(size) == 2:
        return _interpolate(pixels, (size[0], size[1]))
    # The shorter side gets the size; torchvision cuts the other one's fraction off.
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    return _interpolate(pixels, (short, long) if height <= width else (long, short))


def _interpolate(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
