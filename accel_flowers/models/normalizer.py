"""uint8 images → what a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalizer:
    """uint8 images → what the network takes, on the device where they are.

    Args:
        mean, std: of each channel, pixels scaled to 0..1.
        channels_last: memory layout of the result.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels_last: bool) -> None:
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale = torch.tensor([1 / (255 * s) for s in std])
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
        self._channels_last = channels_last

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32 [B, 3, H, W]."""
        self._scale, self._shift = self._scale.to(pixels.device), self._shift.to(pixels.device)
        batch, channels, height, width = pixels.shape
        if not self._channels_last:
            scale, shift = self._scale.view(1, -1, 1, 1), self._shift.view(1, -1, 1, 1)
            return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)
        # As rows of pixels the operands lie alike, which is ten times as fast on a CPU as three numbers for each pixel; there
        # the three operations also go image by image, so that the second finds in the cache what the first wrote.
        source = pixels.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        rows = torch.empty_like(source, dtype=torch.float32)
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        at_once = height if pixels.device.type == "cpu" else batch * height
        for made, given in zip(rows.split(at_once), source.split(at_once), strict=True):
            made.copy_(given).mul_(scale).add_(shift)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
