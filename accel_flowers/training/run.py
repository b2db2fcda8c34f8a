"""Everything that the training loop works with: a `Run`, and the `Session` that puts it into a directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accel_flowers.config.schema import Config
from accel_flowers.core.console import Progress
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.placement.resident import ToPixels
from accel_flowers.data.sampler import BatchPlan, StreamBatchSampler
from accel_flowers.data.split import Split
from accel_flowers.distributed.preemption import PreemptionHandler
from accel_flowers.models.ema import Ema
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.seen import Digests
from accel_flowers.models.spec import ModelSpec
from accel_flowers.training.checkpoint import Checkpoints
from accel_flowers.training.optim import LearningRate, schedule_of
from accel_flowers.training.phases import Phases, head_is_trained_at
from accel_flowers.training.profiler import StepProfiler
from accel_flowers.training.state import TrainState
from accel_flowers.training.step import TrainStep

Watch = Callable[[int, float], bool]
"""Epoch (from 1) and the validation value of `train.best_metric` → whether to end the run with it."""


@dataclass
class Run:
    """Data, model and step, prepared by Accelerate; it knows no directory, so a finder or a benchmark can have one, too."""

    config: Config
    accelerator: Accelerator
    split: Split
    network: nn.Module
    """The plain network: its state has plain names, its forward runs in the run's precision."""
    optimizer: Any
    """As Accelerate wrapped it."""
    train_step: TrainStep
    """What is done with a micro-batch; its `model` is the network as Accelerate wrapped it for the processes."""
    loaders: dict[str, DataLoader[Batch]]
    """Part → loader; the one of "train" goes through the whole run, from the step where it stands."""
    parts: dict[str, ImageDataset]
    """Part → its images."""
    to_pixels: dict[str, ToPixels]
    """Part → what makes a batch's pixels on the device."""
    plan: BatchPlan
    lr_at: LearningRate
    normalizer: Normalizer
    spec: ModelSpec
    """What the saved model will say of itself."""
    state: TrainState
    ema: Ema | None
    stream: StreamBatchSampler
    """The order of the training images; says which are in a micro-batch."""
    seen: Mapping[str, Digests]
    """"train" and "val" → digests of their images, on the main process alone; `model/` records them."""
    phases: Phases
    """What of the network trains when."""
    build_step: Callable[[nn.Module, BatchPlan], TrainStep]
    """Makes the step of the network, given as it is wrapped for the processes."""
    rewrap: Callable[[nn.Module], nn.Module]
    """Wraps it anew for the processes, as it trains now; collective."""

    @property
    def eval_network(self) -> nn.Module:
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

    def as_at_its_end(self, batch: Batch) -> Batch:
        """A batch that the step takes for one of the run's end, where pictures that grow are whole: for measurements."""
        last = self.plan.num_steps * self.plan.micro_batches_per_step - 1
        return {**batch, "micro_batch": last}

    def enter_phase(self, step: int) -> None:
        """Let that train which trains in the step after `step`; collective where it is something else than before."""
        if self.phases.enter(self._schedule_epoch(step)):
            set_training_mode(self.network)
            self.train_step = self.build_step(self.rewrap(self.train_step.model), self.plan)

    def note_start(self) -> bool:
        """Where the end of the run asks for the weights from before fine-tuning: note that they are those of this step, and say so.

        Returns:
            Whether they are, so that a checkpoint is due; once in a run.
        """
        state = self.state
        wanted = self.config.soup.start is not None and state.start_step is None
        if not wanted or not head_is_trained_at(self._schedule_epoch(state.step), self.config.train):
            return False
        state.start_step = state.step
        return True

    def set_length(self, num_steps: int) -> None:
        """Let the run end after so many steps: what goes by its length is made anew."""
        self.plan = self.stream.plan = self.plan.ending_at(num_steps)
        self.lr_at = schedule_of(self.config, self.plan)
        self.train_step = self.build_step(self.train_step.model, self.plan)

    def lr_of_step(self, step: int) -> float:
        """The learning rate of the step after `step`: rollbacks halve it."""
        return self.lr_at(self._schedule_epoch(step)) * self.state.lr_factor

    def _schedule_epoch(self, step: int) -> float:
        """Where in the schedule the step after `step` stands: skipped steps do not move it."""
        return self.plan.epoch_at(step - self.state.skipped_steps)

    def is_scored(self) -> bool:
        """Whether every epoch that lies behind was evaluated."""
        return self.state.epochs_scored == self.plan.epochs_completed_at(self.state.step)

    def should_stop_early(self) -> bool:
        """Whether the recipe says to stop before all epochs are done."""
        patience = self.config.train.early_stopping_epochs
        return patience is not None and self.state.epochs_since_improvement >= patience


@dataclass
class Session:
    """A run in its directory, with what watches over it and what tells of it."""

    run: Run
    run_dir: Path
    checkpoints: Checkpoints
    preemption: PreemptionHandler
    progress: Progress
    profiler: StepProfiler
    watch: Watch | None = None
    """Sees each epoch, on the main process; a run that is watched ends without looking at the test part."""

    def restore(self, state: TrainState) -> None:
        """Put the run back to where a checkpoint stands; collective."""
        self.checkpoints.load(self.run.network, self.run.optimizer, state.step, self.run.averaged_network)
        self.run.state = state
