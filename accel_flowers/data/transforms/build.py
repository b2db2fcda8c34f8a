"""A recipe's list of transform names → a function from upright RGB images to uint8 tensors; and the normalisation.

The names and arguments are torchvision's own (transforms v2), checked when the recipe is loaded: unknown names, wrong
arguments, images of different sizes and chance in the evaluation end in a message, not in the middle of a run.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from accel_flowers.config.field_types import TransformSpec, transform_parts
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.data.decoding.jpeg import decode_pixels
from accel_flowers.data.decoding.pillow import MAX_ASPECT, MAX_PIXELS, BadImageError, decode_image
from accel_flowers.data.transforms.cpu.transform import make_fast
from accel_flowers.data.transforms.gpu.transform import DeviceTransform, make_device_transform


class ImageTransform:
    """Upright RGB image → uint8 tensor [3, H, W].

    Args:
        steps: transforms of torchvision (v2), in the order they act.
        own: names of those that are the user's own parts.
    """

    def __init__(self, steps: Sequence[v2.Transform], *, own: Sequence[str] = ()) -> None:
        self._steps = steps
        self._own = tuple(own)
        self._compose = v2.Compose([*map(_Bounded, steps), _ToUint8()])
        self._fast = make_fast(steps, _ToUint8())

    def __call__(self, image: Image.Image) -> Tensor:
        """The plain way, which defines what comes out."""
        pixels: Tensor = self._compose(image)
        return pixels

    def plainly(self) -> ImageTransform:
        """The same transform, which takes the plain way always."""
        plain = copy(self)
        plain._fast = None
        return plain

    def check_can_be_sent(self) -> None:
        """See that other processes can make it, too.

        Raises:
            UserError: a part of the user's own was defined where no other process can import it from.
        """
        for name in self._own:
            part = registry.find("transform", name)
            if part is not None and not _can_be_imported(part.make):
                raise UserError(
                    f"The transform '{name}' is defined in a notebook, in an interpreter or inside of a function, from where "
                    "loader workers cannot import it. Put it into a module (my_parts.py) and import that, or load without "
                    "workers: --data.num-workers 0."
                )

    def on_device(self) -> DeviceTransform | None:
        """The same for images that lie on the device, within a level; None where it cannot be done there."""
        return make_device_transform(self._steps)

    def of_file(self, data: bytes, name: str, key: int = 0) -> Tensor:
        """An encoded image, on the fast way where there is one: within one level of `self(decode_image(data, name))`.

        Args:
            data: the file.
            name: for messages.
            key: what its chance follows from.

        Raises:
            BadImageError: it cannot be decoded, or has no size that the transforms take.
        """
        if self._fast:
            torch.default_generator.manual_seed(key)
            # What cannot be transformed fails on the plain way, too, which then tells why.
            with suppress(ValueError, RuntimeError, MemoryError):
                pixels = self._fast.of_jpeg(data)
                if pixels is not None:
                    return pixels
            return self.of_pixels(decode_pixels(data, name), name, key)
        return self._plain(decode_image(data, name), name, key)

    def of_pixels(self, pixels: Tensor, name: str, key: int = 0) -> Tensor:
        """The same from an image that was decoded before, upright RGB, uint8 [height, width, 3]."""
        if self._fast:
            torch.default_generator.manual_seed(key)
            with suppress(ValueError, RuntimeError, MemoryError):
                return self._fast.of_pixels(pixels)
        return self._plain(Image.fromarray(pixels.numpy()), name, key)

    def _plain(self, image: Image.Image, name: str, key: int) -> Tensor:
        torch.default_generator.manual_seed(key)
        try:
            return self(image)
        except (ValueError, RuntimeError, MemoryError) as error:  # an image smaller than a crop, for example
            cause = f"its {image.width} x {image.height} pixels cannot be transformed: {error}"
            raise BadImageError(name, cause) from None


def _can_be_imported(make: Any) -> bool:
    module = sys.modules.get(make.__module__)
    if module is None or not getattr(module, "__file__", None):
        return False
    found: Any = module
    for name in make.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is make


_NOT_IN_LISTS = {
    "Normalize": "it follows by itself; its numbers are data.mean and data.std",
    "ToTensor": "tensors are made by themselves at the end",
    "ToDtype": "pictures stay uint8 until they are normalised",
    "ConvertImageDtype": "pictures stay uint8 until they are normalised",
    "CutMix": "it mixes a batch, this list is for one picture",
    "MixUp": "it mixes a batch, this list is for one picture",
    "Lambda": "code does not belong in a recipe",
    "RandomZoomOut": "it makes pictures of any size; it is for detection",
    "ScaleJitter": "it makes pictures of any size; it is for detection",
}
_LARGEST_NUMBER = 2048
_LARGEST = {"kernel_size": 127, "sigma": 32, "num_ops": 16, "mixture_width": 16, "chain_depth": 16}
"""Bounds of the numbers in arguments: of pixels in general, and of what time grows with. A list may come from a stranger's
model, and what is larger could fill the memory or never end."""
_LONGEST_LIST = 20_000
"""Characters of a list, written as JSON: a thousand transforms."""


def transform_names() -> list[str]:
    """The transforms that a recipe may name."""
    return sorted(
        name
        for name, kind in vars(v2).items()
        if inspect.isclass(kind)
        and issubclass(kind, v2.Transform)
        and kind is not v2.Transform
        and name not in _NOT_IN_LISTS
    )


class _ToUint8(v2.Transform):
    """Image → uint8 tensor; tensors pass."""

    def forward(self, image: Any) -> Tensor:
        return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


class _Bounded(v2.Transform):
    """A transform that stops a chain of transforms before its images fill the memory."""

    def __init__(self, step: v2.Transform) -> None:
        super().__init__()
        self._step = step

    def forward(self, image: Any) -> Any:
        made = self._step(image)
        if isinstance(made, (Image.Image, Tensor)):
            height, width = v2.functional.get_size(made)
            if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
                raise ValueError(f"{type(self._step).__name__} makes a picture of {width} x {height} pixels of it")
        return made


def build_transform(specs: Sequence[TransformSpec], *, field: str) -> tuple[ImageTransform, tuple[int, int]]:
    """Make the transform that a recipe's list describes.

    Args:
        specs: names, or single-key mappings of a name to its arguments, in the order they act.
        field: where the list stands, for messages ("data.train_transforms").

    Returns:
        The transform and the size (height, width) of the images it makes.

    Raises:
        UserError: an unknown name, arguments that do not fit, or images of different sizes come out.
    """
    if len(json.dumps(list(specs))) > _LONGEST_LIST:
        raise UserError(f"{field} has more than {_LONGEST_LIST:,} characters: that is no list of transforms.")
    steps = [build_step(spec, field) for spec in specs]
    own = transform_parts(*specs)
    transform = ImageTransform(steps, own=own)
    size = _output_size(transform, field)
    if own:
        _check_seeded(transform, field, own)
    return transform, size


def _check_seeded(transform: ImageTransform, field: str, own: Sequence[str]) -> None:
    """Parts of the user's own must draw from torch's generator, which is seeded for each image and epoch.

    Raises:
        UserError: two passes with one seed differ.
    """
    image = _noise_image(320, 240)

    def make() -> Tensor:
        torch.manual_seed(0)
        return transform(image)

    if not _same_each_time(make):
        raise UserError(
            f"{field}: with one seed {' or '.join(sorted(set(own)))} makes another picture each time, so no run could be "
            "repeated: take all chance from torch (torch.rand, torch.randint), not from random or numpy.random."
        )


def _same_each_time(make: Callable[[], Tensor]) -> bool:
    """Whether pictures made one after the other are the same: what acts on every other one goes unseen once in a million."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = make()
        return all(torch.equal(first, make()) for _ in range(20))


def check_repeatable(transform: ImageTransform, *, field: str) -> None:
    """Evaluation must give the same image each time.

    Raises:
        UserError: when two passes over one image differ.
    """
    image = _noise_image(320, 240)
    if not _same_each_time(lambda: transform(image)):
        raise UserError(
            f"{field} holds a random transform, so validation would not measure the same thing twice: "
            "keep chance in data.train_transforms, and Resize and CenterCrop here."
        )


def build_step(spec: TransformSpec, field: str) -> Any:
    name: str
    arguments: Any
    if isinstance(spec, str):
        name, arguments = spec, {}
    elif isinstance(spec, dict) and len(spec) == 1:
        name, arguments = next(iter(spec.items()))
        arguments = {} if arguments is None else arguments
    else:
        raise UserError(f"{field}: write 'Name' or 'Name: {{argument: value}}' for a transform, not {spec!r}.")
    if name in _NOT_IN_LISTS:
        raise UserError(f"{field}: {name} does not belong in the list: {_NOT_IN_LISTS[name]}.")
    if registry.is_own_name(name):
        return _own_step(name, arguments, field)
    names = transform_names()
    if name not in names:
        raise UserError(
            f"{field}: torchvision has no transform '{name}'.{did_you_mean(str(name), names)} "
            "Names are those of torchvision.transforms.v2, such as Resize, CenterCrop, RandomResizedCrop, ColorJitter."
        )
    kind = getattr(v2, name)
    signature = inspect.signature(kind)
    if not isinstance(arguments, dict):
        raise UserError(f"{field}: {name} takes arguments by name: {{{_shown(signature)}}}, not {arguments!r}.")
    unknown = [argument for argument in arguments if argument not in signature.parameters]
    lacking = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and parameter.name not in arguments
    ]
    if unknown or lacking:
        told = [f"has no argument {', '.join(map(repr, unknown))}"] if unknown else []
        told += [f"needs {', '.join(lacking)}"] if lacking else []
        raise UserError(f"{field}: {name} {' and '.join(told)}; it takes {_shown(signature)}.")
    for key, value in arguments.items():
        _check_numbers(value, _LARGEST.get(key, _LARGEST_NUMBER), f"{field}: {name}: {key}")
    values = {key: _argument(key, value, signature.parameters[key].default, field) for key, value in arguments.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:  # the last: a tensor of nothing
        raise UserError(f"{field}: {name} does not take {arguments!r}: {error}") from None


def _own_step(name: str, arguments: Any, field: str) -> v2.Transform:
    """A registered transform, called as torchvision's are.

    Raises:
        UserError: nothing of this name is registered, or it cannot be made with these arguments.
    """
    part = registry.find("transform", name)
    if part is None:
        raise UserError(f"{field}: {registry.unknown('transform', name)}.")
    if not isinstance(arguments, dict):
        raise UserError(f"{field}: {name} takes arguments by name, not {arguments!r}.")
    try:
        made = _Own(name, part.make, arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: {name} does not take {arguments!r}: {error}") from error
    if not callable(made.call):
        raise UserError(
            f"{field}: {name} made a {type(made.call).__name__}; a transform is called with a Pillow image or a uint8 "
            "tensor [3, H, W] and returns one."
        )
    return made


class _Own(v2.Transform):
    """A callable of the user's among torchvision's transforms.

    It is never taken for one of these, even where it inherits from one: what it does is known to it alone, so it has no
    counterpart on the fast way or on a device. To a loader worker goes how it was made, so that it may hold anything.
    """

    def __init__(self, name: str, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
        super().__init__()
        self.name, self._make, self._arguments = name, make, arguments
        self.call = make(**arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Own, (self.name, self._make, self._arguments)

    def forward(self, image: Any) -> Image.Image | Tensor:
        """What it makes of an image.

        Raises:
            TypeError: it makes something else.
        """
        made = self.call(image)
        if isinstance(made, Image.Image) or (
            isinstance(made, Tensor) and made.dtype == torch.uint8 and made.ndim == 3 and made.shape[0] == 3
        ):
            return made
        told = f"a tensor {made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise TypeError(f"{self.name} returned {told}; a Pillow image or a uint8 tensor [3, H, W] is needed")


def _check_numbers(value: Any, largest: int, what: str) -> None:
    if isinstance(value, (int, float)) and abs(value) > largest:
        raise UserError(f"{what} {str(value)[:20]} is not allowed; numbers up to {largest:,} are.")
    for inner in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _check_numbers(inner, largest, what)


def _argument(key: str, value: Any, default: Any, field: str) -> Any:
    """YAML's values as torchvision wants them: names of enumerations, and transforms inside transforms."""
    # Which of torchvision's defaults are enumerations changed between its versions.
    kind = v2.InterpolationMode if key == "interpolation" else type(default)
    if issubclass(kind, Enum):
        members = {member.value: member for member in kind}
        if not isinstance(value, str) or value not in members:
            raise UserError(f"{field}: {key} {value!r} is not allowed; take one of {', '.join(map(str, members))}.")
        return members[value]
    if key == "transforms":
        if not isinstance(value, list):
            raise UserError(f"{field}: transforms inside a transform must be a list of such, not {value!r}.")
        return [_Bounded(build_step(inner, field)) for inner in value]
    return value


def _shown(signature: inspect.Signature) -> str:
    return ", ".join(name for name in signature.parameters if name != "kwargs") or "no arguments"


def _noise_image(width: int, height: int) -> Image.Image:
    pixels = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _output_size(transform: ImageTransform, field: str) -> tuple[int, int]:
    sizes = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for width, height in ((320, 240), (200, 450), (97, 61)):
            try:
                pixels = transform(_noise_image(width, height))
            except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, MemoryError) as error:
                raise UserError(
                    f"{field} cannot be applied to a picture of {width} x {height} pixels: {error}"
                ) from None
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
                raise UserError(
                    f"{field} makes {pixels.dtype} of shape {list(pixels.shape)}; what is needed is uint8 [3, H, W]."
                )
            sizes.add((pixels.shape[1], pixels.shape[2]))
    if len(sizes) > 1:
        raise UserError(
            f"{field} makes pictures of different sizes ({', '.join(f'{w} x {h}' for h, w in sorted(sizes))}), which fit "
            "into no batch: end the list with RandomResizedCrop, CenterCrop or 'Resize: {size: [224, 224]}'."
        )
    return sizes.pop()
