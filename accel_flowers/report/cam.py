"""Where in an image a network looked, as a coloured layer over it (captum).

Grad-CAM (Selvaraju et al. 2017) on the last feature map of any convolutional network. A network without one (ViT,
Swin) has its input gradients shown instead, which is coarser evidence; the report says which of the two it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.saved import SavedModel

_BATCH = 8
_PASS_THROUGH = (nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Explanations:
    """How it was made, in words, and one RGB image of what the network saw with the layer over it for each input."""

    method: str
    images: tuple[Image.Image, ...]


class Explainer:
    """Shows what spoke for a class, again and again; between two calls the network is as it was.

    Args:
        saved: the model, on the device that is used.

    Raises:
        UserError: the model is an exported file.
    """

    def __init__(self, saved: SavedModel) -> None:
        if saved.backbone is None:
            raise UserError("An exported file cannot be looked into: give the model folder that it was made from.")
        self._saved, self._network, self._head = saved, saved.network, saved.backbone.head(saved.network)
        self._layer: str | None = None
        self._looked = False

    @property
    def method(self) -> str:
        """How it is done, in words; known after the first image."""
        return (
            f"Grad-CAM on the last feature map ({self._layer})"
            if self._layer
            else "input gradients, because this network has no convolutional feature map for Grad-CAM"
        )

    def heat(self, pixels: Tensor, classes: Sequence[int]) -> Tensor:
        """Where the network looked, float32 [B, H, W] from 0 to 1, on the CPU.

        Args:
            pixels: uint8 [B, 3, H, W], as the transform makes them.
            classes: the class (a number) that is to be explained, for each image.
        """
        device = next(self._network.parameters()).device
        inputs = self._saved.normalizer(pixels.to(device))
        with _not_in_place(self._network):
            if not self._looked:
                self._layer = last_feature_map(self._network, inputs[:1], self._head)
                self._looked = True
            return _heat(self._network, self._layer, inputs, torch.tensor(classes, device=device))


def explain(saved: SavedModel, images: Sequence[Image.Image], targets: Sequence[int]) -> Explanations:
    """Show what spoke for a class.

    Args:
        saved: the model, on the device that is used.
        images: upright RGB.
        targets: the class (a number) that is to be explained, for each image.

    Raises:
        UserError: the model is an exported file.
    """
    inputs = [saved.transform(image) for image in images]
    if not inputs:
        return Explanations("", ())
    explainer = Explainer(saved)
    maps = [
        explainer.heat(torch.stack(inputs[first : first + _BATCH]), targets[first : first + _BATCH])
        for first in range(0, len(inputs), _BATCH)
    ]
    heat = torch.cat(maps)
    return Explanations(explainer.method, tuple(overlay(pixels, one) for pixels, one in zip(inputs, heat, strict=True)))


@contextmanager
def _not_in_place(network: nn.Module) -> Iterator[None]:
    """Let no module write over what a hook remembers, while the block lasts."""
    changed: list[Any] = [module for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True


def last_feature_map(network: nn.Module, example: Tensor, head: str) -> str | None:
    """Name of the module that makes the last map of more than one place before the head; None where there is none.

    Args:
        network: in evaluation mode.
        example: normalised image, float [1, 3, H, W].
        head: path of its head.
    """
    if not wants_channels_last(network):
        return None
    seen: list[tuple[str, torch.Size]] = []
    names = {module: name for name, module in network.named_modules() if name}

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((names[module], output.shape))

    hooks = [module.register_forward_hook(note) for module in names if not isinstance(module, _PASS_THROUGH)]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    called = [name for name, _ in seen]
    before_head = seen[: called.index(head)] if head in called else seen
    maps = [name for name, shape in before_head if len(shape) == 4 and shape[2] * shape[3] > 1]
    return maps[-1] if maps else None


def _heat(network: nn.Module, layer: str | None, inputs: Tensor, targets: Tensor) -> Tensor:
    """float32 [B, H, W] from 0 to 1."""
    from captum.attr import LayerAttribution, LayerGradCam, Saliency  # seconds of import

    size = (inputs.shape[2], inputs.shape[3])
    if layer:
        coarse = LayerGradCam(network, network.get_submodule(layer)).attribute(inputs, target=targets)
        heat = LayerAttribution.interpolate(coarse.detach(), size, interpolate_mode="bilinear")[:, 0].relu()
    else:
        gradients = Saliency(network).attribute(inputs.requires_grad_(), target=targets)
        strongest = gradients.detach().amax(dim=1, keepdim=True)
        window = max(3, size[0] // 16 | 1)  # single pixels say little: a neighbourhood's mean
        heat = nn.functional.avg_pool2d(strongest, window, stride=1, padding=window // 2)[:, 0]
    highest = heat.flatten(1).amax(dim=1).clamp_min(1e-12)
    return (heat / highest[:, None, None]).float().cpu()


def overlay(pixels: Tensor, heat: Tensor) -> Image.Image:
    """A grey image, coloured (inferno: readable in any colour vision) where the heat is.

    Args:
        pixels: uint8 [3, H, W].
        heat: float [H, W] from 0 to 1.
    """
    from matplotlib import colormaps

    grey = pixels.float().mean(dim=0).numpy()[..., None] / 255
    values = heat.numpy()
    colours = colormaps["inferno"](0.25 + 0.7 * values)[..., :3]
    strength = (0.75 * np.clip((values - 0.2) * 2, 0, 1))[..., None]
    mixed = (1 - strength) * (0.1 + 0.85 * grey) + strength * colours
    return Image.fromarray((np.clip(mixed, 0, 1) * 255).astype(np.uint8))
