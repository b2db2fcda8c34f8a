"""uint8 images → probabilities, as one module: what predicts, is scored, explained, exported or taught from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.models.answers import probabilities_of
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.views import MeanOfViews


class Classifier(nn.Module):
    """Normaliser, network and temperature. `torch.export` takes it with a batch of any size.

    The network is brought into the memory layout that suits it; `.to(device)` moves all of it.

    Args:
        network: normalised float images [B, 3, H, W] → scores [B, C].
        mean, std: of each channel, pixels scaled to 0..1.
        temperature: what calibrated probabilities divide the scores by; None = 1.
        tta: the views of an image whose scores are averaged.
        several: whether an image may have several labels, so that each class has a probability of its own.
    """

    temperature: Tensor
    """float32 []"""

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        temperature: float | None = None,
        tta: Tta = "none",
        several: bool = False,
    ) -> None:
        super().__init__()
        channels_last = wants_channels_last(network)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        self.network, self.tta, self.several = network, tta, several
        self.normalizer = Normalizer(mean, std, channels_last=channels_last)
        self.register_buffer("temperature", torch.tensor(temperature or 1.0), persistent=False)

    @property
    def views(self) -> MeanOfViews:
        """Normalised images → the mean of the network's scores over their views."""
        return MeanOfViews(self.network, self.tta)

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → the mean of the network's scores over the views, not calibrated, float32 [B, C]."""
        scores: Tensor = self.views(self.normalizer(pixels))
        return scores

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → probabilities, float32 [B, C]."""
        # softmax(log p / T) is softmax(logits / T): the two differ by a constant that softmax takes away.
        return probabilities_of(self.logits(pixels) / self.temperature, several=self.several)
