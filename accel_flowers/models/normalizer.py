"""uint8 images → what a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """uint8 images → what the network takes, on the device where they are; `torch.export` takes it, too.

    Args:
        mean, std: of each channel, pixels scaled to 0..1.
        channels_last: memory layout of the result.
    """

    scale: Tensor
    """float32 [3]"""
    shift: Tensor
    """float32 [3]"""

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels_last: bool) -> None:
        super().__init__()
        # (x / 255 - mean) / std as one multiplication and one addition. They are no weights, so no state holds them.
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]), persistent=False)
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), persistent=False)
        self.channels_last = channels_last

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32 [B, 3, H, W]."""
        if self.scale.device != pixels.device:
            self.to(pixels.device)
        if pixels.is_cuda and not torch.compiler.is_exporting():
            return self.in_one_kernel(pixels)
        if self.channels_last and not torch.compiler.is_exporting():
            return self._in_rows(pixels)
        scale, shift = self.scale.view(1, -1, 1, 1), self.shift.view(1, -1, 1, 1)
        return pixels.to(torch.float32, memory_format=self._layout).mul_(scale).add_(shift)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def in_one_kernel(self, pixels: Tensor) -> Tensor:
        """The same to the last digit or the one beside it, and on a GPU started once: conversion, layout and arithmetic
        together."""
        made = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device, memory_format=self._layout)
        scale, shift = self.scale.view(1, -1, 1, 1), self.shift.view(1, -1, 1, 1)
        return torch.addcmul(shift, pixels, scale, out=made)

    def _in_rows(self, pixels: Tensor) -> Tensor:
        """The same numbers, channels last: as rows of pixels the operands lie alike, which is ten times as fast on a CPU as
        three numbers for each pixel; there the three operations also go image by image, so that the second finds in the
        cache what the first wrote."""
        batch, channels, height, width = pixels.shape
        source = pixels.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        rows = torch.empty_like(source, dtype=torch.float32)
        scale, shift = self.scale.repeat(width), self.shift.repeat(width)
        at_once = height if pixels.device.type == "cpu" else batch * height
        for made, given in zip(rows.split(at_once), source.split(at_once), strict=True):
            made.copy_(given).mul_(scale).add_(shift)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
