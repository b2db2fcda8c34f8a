"""What more processes are worth: the recipe's step on 1 … N of a launch's processes, and advice where they share too little.

Several processes deal the images of a step out among themselves. Where each then has few, a pass takes hardly less time than one
over all of them, and batch norm normalises over those few.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from accel_flowers.config.schema import Config, OptimConfig
from accel_flowers.core.plural import number_of
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.training.memory import LargestBatch
from accel_flowers.training.optim import build_optimizer
from accel_flowers.training.step import TrainStep, blank_batch

_FEW_FOR_BATCH_NORM = 16
"""Images under which batch norm's error rises: Wu and He, Group Normalization (2018), where 32 and 16 are nearly alike."""
_FEW_FOR_A_GPU = 32
"""The published recipes' whole step, which one GPU takes at once."""
_GROWTH = {"sgd": 1.0, "adam": 0.5, "adamw": 0.5, "rmsprop": 0.5}
"""Optimizer → power of the batch with which its rate grows: Goyal et al., Accurate, Large Minibatch SGD (2017), with a warm-up;
Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (2022)."""
_WARM_UP = 3
"""Steps before the clock starts."""
_ROUNDS = 2
"""All is measured so many times, in turn, and the best counts: other work on the machine only ever slows down."""


def normalises_batches(network: nn.Module) -> bool:
    """Whether some batch norm is trained on the images of each pass."""
    return any(
        isinstance(module, _BatchNorm) and any(parameter.requires_grad for parameter in module.parameters())
        for module in network.modules()
    )


def advice_on_batches(
    plan: BatchPlan, config: Config, num_images: int, *, on_cpu: bool, has_batch_norm: bool
) -> str | None:
    """What to tell where several processes share a step that is too small for them; None where there is nothing to tell.

    Args:
        plan: of the run; its micro-batch is what one process takes at once.
        config: of the run.
        num_images: to train on.
        on_cpu: cores are kept busy by few images, too.
        has_batch_norm: see `normalises_batches`.
    """
    processes, size = plan.num_processes, plan.global_batch_size
    share, reasons = size // processes, []
    # Whoever set the micro-batch has chosen what batch norm sees: the same on any number of processes.
    if has_batch_norm and config.train.micro_batch_size is None and share < _FEW_FOR_BATCH_NORM:
        reasons.append(f"batch norm normalises over {share} instead of {size}")
    if not on_cpu and share < _FEW_FOR_A_GPU:
        reasons.append("a step may take as long as on one, where that is bound by the start of its kernels")
    if processes == 1 or not reasons:
        return None
    lines = [f"{processes} processes share a step of {size} pictures, {share} for each: {'; '.join(reasons)}."]
    larger = size * processes
    if larger <= num_images:
        flags = f"--train.global-batch-size {larger}{_rate(config.optim, processes)}"
        if not config.schedule.warmup_epochs and config.schedule.name != "one_cycle":
            flags += " --schedule.warmup-epochs 1"
        before, after = max(1, num_images // size), num_images // larger
        lines.append(
            f"As many for each as one process has ({number_of(after, 'step')} an epoch instead of {before}): {flags}"
        )
    lines.append("Or train on one. What each is worth here: the command benchmark in the place of train.")
    return "\n".join(lines)


def _rate(optim: OptimConfig, times: int) -> str:
    growth = _GROWTH.get(optim.name)
    return "" if growth is None else f" --optim.lr {optim.lr * times**growth:.3g}"


@dataclass(frozen=True)
class Scaled:
    """What some of the processes reach together."""

    processes: int
    pictures_each: int
    """In a forward pass of each process."""
    images_per_second: float
    """Of all of them together, computing alone."""


@dataclass(frozen=True)
class Scaling:
    """What a benchmark of several processes found."""

    on: str
    global_batch_size: int
    """The recipe's."""
    rows: tuple[Scaled, ...]
    largest: LargestBatch | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        del plain["largest"]
        return {**plain, "largest_micro_batch": self.largest.images if self.largest else None}

    def in_words(self) -> str:
        """The table, and what the most pictures a second are to be had with."""
        one = self.rows[0].images_per_second
        best = max(self.rows, key=lambda row: row.images_per_second)
        size = best.processes * best.pictures_each
        lines = [self.on, "computing alone; loading is measured by one process", ""]
        lines += ["processes   pictures of each   of a step     images/s   x one process"]
        lines += [
            f"{row.processes:9}   {row.pictures_each:16}   {row.processes * row.pictures_each:9}   "
            f"{row.images_per_second:10.1f}   {row.images_per_second / one:13.2f}"
            for row in self.rows
        ]
        flag = "" if size == self.global_batch_size else f" with --train.global-batch-size {size} (and a rate to fit)"
        lines.append(f"Fastest here: {best.processes} of the processes{flag}.")
        if self.largest:
            lines.append(self.largest.in_words())
        return "\n".join(lines)


def settings(num_processes: int, global_batch_size: int, micro_batch_size: int | None) -> list[tuple[int, int]]:
    """What is tried: (processes, pictures of each), the step of the recipe shared out and one that grows with the processes.

    Args:
        num_processes: of the launch.
        global_batch_size, micro_batch_size: as of `BatchPlan`.
    """
    one = micro_batch_size or global_batch_size
    numbers = {num_processes} | {2**power for power in range(num_processes.bit_length())}
    tried = {(number, each) for number in numbers for each in (min(global_batch_size // number, one), one) if each}
    return sorted(tried, key=lambda setting: (setting[0], -setting[1] if setting[0] == 1 else setting[1]))


def measure_scaling(
    step: TrainStep,
    config: Config,
    image_size: tuple[int, int],
    num_classes: int,
    accelerator: Accelerator,
    *,
    seconds: float,
) -> Scaling:
    """Take the recipe's step on 1 … N processes, on black images; collective.

    Args:
        step: on one process; its model is on its device, not yet prepared. Its weights are moved by nothing.
        config: of the recipe.
        image_size: height and width.
        num_classes: of the labels.
        accelerator: all processes.
        seconds: of each measurement.
    """
    tried = settings(accelerator.num_processes, config.train.global_batch_size, config.train.micro_batch_size)
    groups = {number: torch.distributed.new_group(list(range(number))) for number, _ in tried}
    set_training_mode(step.model)
    best = dict.fromkeys(tried, 0.0)
    for _ in range(_ROUNDS):
        for number, each in tried:
            rate = 0.0
            if accelerator.process_index < number:
                batch = blank_batch(each, image_size, num_classes, accelerator.device)
                rate = number * each / _seconds_of_step(step, config.optim, batch, groups[number], number, seconds)
            rates: list[float] = gather_object([rate])  # those that are not asked wait here
            best[number, each] = max(best[number, each], rates[0])
    device = accelerator.device.type
    return Scaling(
        on=f"{config.model.name}, {accelerator.num_processes} x {device}, precision {accelerator.mixed_precision}",
        global_batch_size=config.train.global_batch_size,
        rows=tuple(Scaled(number, each, best[number, each]) for number, each in tried),
    )


def _seconds_of_step(
    step: TrainStep, optim: OptimConfig, batch: Any, group: Any, num_processes: int, seconds: float
) -> float:
    """Of the slowest of the group's processes; as many steps on each."""
    optimizer = build_optimizer(step.model, optim, scaled=False)
    for parameters in optimizer.param_groups:
        parameters["lr"] = 0.0  # the same work, and numbers that stay numbers
    model = step.model
    if num_processes > 1:
        model = DistributedDataParallel(
            model, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    trial = replace(step, model=model, optimizer=optimizer)

    def take(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            trial(batch)
        if batch["labels"].device.type != "cpu":
            torch.accelerator.synchronize(batch["labels"].device)
        slowest: Tensor = torch.tensor((time.perf_counter() - begun) / count, device=batch["labels"].device)
        torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX, group=group)
        return float(slowest)

    take(_WARM_UP)
    return take(max(_WARM_UP, int(seconds / take(_WARM_UP))))
