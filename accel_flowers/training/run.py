"""Everything that the training loop works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accel_flowers.config.schema import Config
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.placement.resident import ToPixels
from accel_flowers.data.sampler import BatchPlan, StreamBatchSampler
from accel_flowers.data.split import Split
from accel_flowers.models.ema import Ema
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.saved import ModelSpec
from accel_flowers.training.checkpoint import Checkpoints, TrainState
from accel_flowers.training.optim import LearningRate
from accel_flowers.training.tasks import Objective


@dataclass
class Run:
    """Everything that the loop works with."""

    config: Config
    run_dir: Path
    accelerator: Accelerator
    split: Split
    network: nn.Module
    """The plain network: its state has plain names, its forward runs in the run's precision."""
    model: nn.Module
    """The same network as Accelerate wrapped it for the processes."""
    optimizer: Any
    """As Accelerate wrapped it."""
    loaders: dict[str, DataLoader[Batch]]
    """Part → loader; the one of "train" goes through the whole run, from the step where it stands."""
    parts: dict[str, ImageDataset]
    """Part → its images."""
    to_pixels: dict[str, ToPixels]
    """Part → what makes a batch's pixels on the device."""
    plan: BatchPlan
    objective: Objective
    lr_at: LearningRate
    normalizer: Normalizer
    spec: ModelSpec
    """What the saved model will say of itself."""
    checkpoints: Checkpoints
    state: TrainState
    ema: Ema | None
    stream: StreamBatchSampler
    """The order of the training images; says which are in a micro-batch."""

    @property
    def kept_network(self) -> nn.Module:
        """The network that is worth keeping: the averaged one where there is an average."""
        return self.ema.network if self.ema else self.network

    @property
    def averaged_network(self) -> nn.Module | None:
        """The network that holds the moving average."""
        return self.ema.network if self.ema else None

    def files_of(self, micro_batch: int) -> list[str]:
        """Names of the images of a micro-batch of the run."""
        return [self.parts["train"].files[key.sample] for key in self.stream.micro_batch_at(micro_batch)]

    def input_of(self, part: str) -> Callable[[Batch], Tensor]:
        """What makes the network's input, float32 [B, 3, H, W], of a batch of a part."""
        to_pixels = self.to_pixels[part]
        return lambda batch: self.normalizer(to_pixels(batch))

    def restore(self, state: TrainState) -> None:
        """Put everything back to where a checkpoint stands; collective."""
        self.checkpoints.load(self.network, self.optimizer, state.step, self.averaged_network)
        self.state = state
