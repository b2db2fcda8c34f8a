"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): each image is mixed with its neighbour in the stream.

Places 0 and 1, 2 and 3, ... of the stream are pairs, whose chance follows from the first one's place: so a pair is mixed alike on
any number of processes, for any even micro-batch, and after a resume. Both images of a pair are given, and the shares are
those of the labels, so that targets sum to one. The paper's partner is drawn from the batch; the stream's order is drawn, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import random_key
from accel_flowers.data.transforms.batch import BatchContext, BatchTransform


class Mix(NamedTuple):
    """What is done to a pair: each image keeps `share` of itself, everywhere or (CutMix) outside of a box."""

    share: float
    box: tuple[int, int, int, int] | None = None
    """Top, left, bottom, right, in pixels; None = the images are averaged."""


@dataclass(frozen=True)
class PairMixing:
    """Mixes pairs of a micro-batch; see the module.

    Args:
        context: the run.
        mixup: alpha of mixup's Beta(alpha, alpha); 0 = no mixup.
        cutmix: alpha of CutMix's; 0 = no CutMix. With both a coin decides for each pair.
        chance: share of the pairs that are mixed at all.
        off_epochs: the last epochs of the run, in which nothing is mixed.

    Raises:
        UserError: numbers that are not allowed, or an odd micro-batch.
    """

    context: BatchContext
    mixup: float = 0.0
    cutmix: float = 0.0
    chance: float = 1.0
    off_epochs: float = 0.0

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or max(self.mixup, self.cutmix) == 0:
            raise UserError("data.batch_transform: alpha is above 0, for example '{mixup: {alpha: 0.2}}'.")
        if not 0 <= self.chance <= 1:
            raise UserError(f"data.batch_transform: chance is from 0 to 1, not {self.chance}.")
        if self.off_epochs < 0:
            raise UserError(f"data.batch_transform: off_epochs is 0 or more, not {self.off_epochs}.")
        if self.context.micro_batch % 2:
            raise UserError(
                f"data.batch_transform mixes pairs of pictures, and a forward pass holds {self.context.micro_batch}: take an "
                "even --train.micro-batch-size (or train.global_batch_size for each process)."
            )

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`; targets become float32 [B, C]."""
        height, width = inputs.shape[2:]
        mixes = [self.draw(place, height, width) for place in range(first, first + len(targets), 2)]
        several = targets.ndim == 2  # of images with several labels: 0 and 1 for each class
        hot = targets if several else functional.one_hot(targets, self.context.num_classes).float()
        shares = torch.tensor([mix.share for mix in mixes], dtype=torch.float32).repeat_interleave(2)
        # One copy to the device for all that is drawn.
        shares = shares.to(inputs.device, non_blocking=True)[:, None]
        mixed = shares * hot + (1 - shares) * partners(hot)
        keep = shares[:, :, None, None]
        if any(mix.box for mix in mixes):
            boxes = [box for mix in mixes for box in [_mask(mix, height, width)] * 2]
            keep = torch.stack(boxes)[:, None].to(inputs.device, non_blocking=True)
        return torch.lerp(partners(inputs), inputs, keep), mixed

    def draw(self, place: int, height: int, width: int) -> Mix:
        """What chance gives to a pair.

        Args:
            place: of its first image in the run's stream.
            height, width: of the images, in pixels.
        """
        context = self.context
        off_from = context.num_images * (context.epochs - self.off_epochs) if context.num_images else place + 1
        rng = np.random.default_rng(random_key(context.seed, "mix", place))
        coin, way = rng.random(2)
        if place >= off_from or coin >= self.chance:
            return Mix(1.0)
        cuts = self.cutmix > 0 and (self.mixup == 0 or way < _EVEN)
        alpha = self.cutmix if cuts else self.mixup
        share = rng.beta(alpha, alpha)
        if not cuts:
            return Mix(share)
        # The box has the shape of the image and lies around a point of it; what is outside of the image is cut off.
        side = (1 - share) ** 0.5
        y, x = int(rng.integers(height)), int(rng.integers(width))
        half_height, half_width = int(height * side) // 2, int(width * side) // 2
        top, bottom = max(0, y - half_height), min(height, y + half_height)
        left, right = max(0, x - half_width), min(width, x + half_width)
        return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


_EVEN = 0.5


def partners(values: Tensor) -> Tensor:
    """Of each row the other of its pair: a view turned over, and one copy."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _mask(mix: Mix, height: int, width: int) -> Tensor:
    """Share of the image itself at each pixel, float32 [H, W]."""
    if mix.box is None:
        return torch.full((height, width), mix.share)
    top, left, bottom, right = mix.box
    mask = torch.ones(height, width)
    mask[top:bottom, left:right] = 0
    return mask


def mixup(context: BatchContext, alpha: float = 0.2, chance: float = 1.0, off_epochs: float = 0.0) -> PairMixing:
    """Averages of two images; see `PairMixing`."""
    return PairMixing(context, mixup=alpha, chance=chance, off_epochs=off_epochs)


def cutmix(context: BatchContext, alpha: float = 1.0, chance: float = 1.0, off_epochs: float = 0.0) -> PairMixing:
    """A box of each image in the other; see `PairMixing`."""
    return PairMixing(context, cutmix=alpha, chance=chance, off_epochs=off_epochs)


BUILT_IN: dict[str, Callable[..., BatchTransform]] = {"mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": PairMixing}
