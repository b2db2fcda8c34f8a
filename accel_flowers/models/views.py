"""Test-time augmentation: scores that are the mean over views of an image, such as its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from accel_flowers.config.schema import Tta

_ZOOM = 0.875
"""Share of the height and width that the enlarged middle shows: the usual 224 of 256 pixels."""


def _zoom(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    middle = functional.center_crop(images, [round(_ZOOM * height), round(_ZOOM * width)])
    return functional.resize(middle, [height, width], antialias=True)


_VIEWS: Mapping[Tta, tuple[Callable[[Tensor], Tensor], ...]] = {
    "none": (lambda images: images,),
    "mirror": (lambda images: images, lambda images: images.flip(-1)),
    "mirror_zoom": (
        lambda images: images,
        lambda images: images.flip(-1),
        _zoom,
        lambda images: _zoom(images).flip(-1),
    ),
}


class MeanOfViews(nn.Module):
    """A network whose scores are the mean over the views of an image, one forward pass for each.

    Scores are averaged and not probabilities, so a temperature acts on the mean as it acts on the scores of one view.

    Args:
        network: normalised images [B, 3, H, W] → scores [B, C].
        tta: which views.
    """

    def __init__(self, network: nn.Module, tta: Tta) -> None:
        super().__init__()
        self.network, self.tta = network, tta

    def forward(self, inputs: Tensor) -> Tensor:
        """float32 [B, 3, H, W] → float32 [B, C]."""
        scores = [self.network(view(inputs)).float() for view in _VIEWS[self.tta]]
        return torch.stack(scores).mean(dim=0)
