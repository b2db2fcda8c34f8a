"""How many images fit into memory at once: tried before the first step, agreed between all processes."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import UserError, error_text
from accel_flowers.core.out_of_memory import first_line, is_lack_of_memory
from accel_flowers.core.plural import number_of
from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.distributed.collectives import true_everywhere
from accel_flowers.models.ema import Ema
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.training.optim import build_optimizer
from accel_flowers.training.step import InPrecision, LocalEngine, TrainStep, blank_batch


def can_run_out_of_memory(device: torch.device) -> bool:
    """Whether a lack of memory would be an error and not the end of the process, as it is on a CPU without a limit."""
    return device.type != "cpu" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that was in use so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def smaller_micro_batches(plan: BatchPlan) -> list[int]:
    """Micro-batches to try, the plan's own first, each at most half of the one before, all dividing the global batch."""
    sizes = [plan.micro_batch]
    for size in range(plan.micro_batch, 0, -1):
        if size <= sizes[-1] / 2 and plan.global_batch_size % (size * plan.num_processes) == 0:
            sizes.append(size)
    return sizes


def fit_micro_batch(
    step: TrainStep,
    optim: OptimConfig,
    plan: BatchPlan,
    size: tuple[int, int],
    num_classes: int,
    accelerator: Accelerator,
    *,
    ema_decay: float = 0.0,
) -> tuple[int, float]:
    """Find the micro-batch that leaves room for a whole training step on every process; collective.

    Each trial is a few of the training's own steps on black images, with all that the training will hold beside them (the
    gradients of earlier micro-batches, DDP's buckets, the moving average) and a sixteenth more memory than that needs; the
    weights are put back. It runs before the processes are tied together by DDP, so one that fails keeps none waiting.

    Args:
        step: the training's step; its model is on its device, not yet prepared.
        optim: makes an optimizer for the trial, whose state needs memory, too.
        plan: gives the micro-batch that is asked for, and what else divides the global batch.
        size: height and width of the images.
        num_classes: labels of the trial are 0 … num_classes - 1 in turn.
        accelerator: the processes.
        ema_decay: of the moving average that the run will keep; 0 = none.

    Returns:
        Images in one forward pass, and the seconds that one with its backward pass took.

    Raises:
        UserError: not even the smallest fits.
    """
    network = step.model
    before = clean_state_dict(network)
    for micro_batch in smaller_micro_batches(plan):
        batch = blank_batch(micro_batch, size, num_classes, accelerator.device)
        accumulates = replace(plan, micro_batch_size=micro_batch).accumulation > 1
        found = _try_steps(step, optim, batch, accelerator, accumulates=accumulates, ema_decay=ema_decay)
        fits = true_everywhere(accelerator, isinstance(found, float))
        if fits:
            break
    network.load_state_dict(before)
    if not fits or isinstance(found, str):
        words = f" ({found})" if isinstance(found, str) else ""
        raise UserError(
            f"There is not enough memory on {accelerator.device} to train on {number_of(micro_batch, 'picture')} of "
            f"{size[0]} x {size[1]} pixels at once{words}: take smaller pictures (data.train_transforms), a smaller "
            "--model.name, or leave more memory free."
        )
    return micro_batch, found


@dataclass(frozen=True)
class LargestBatch:
    """The largest micro-batch that a process has memory for; where several train, each of them.

    Attributes:
        images: of a forward pass; 0 = not even one fits.
        size: their height and width.
        failed: so many do not fit; None = more were not tried.
    """

    images: int
    size: tuple[int, int]
    failed: int | None

    def in_words(self) -> str:
        """The line of a table."""
        pixels = f"{self.size[0]} x {self.size[1]} pixels"
        ends = "more were not tried" if self.failed is None else f"{self.failed} do not fit"
        return f"Largest micro-batch that fits: {number_of(self.images, 'picture')} of {pixels} ({ends})."


def largest_micro_batch(
    step: TrainStep,
    optim: OptimConfig,
    size: tuple[int, int],
    num_classes: int,
    accelerator: Accelerator,
    *,
    first: int,
    ema_decay: float = 0.0,
) -> LargestBatch | None:
    """Find it by doubling, then by halves between what fits and what does not, to an eighth of it; collective.

    Each trial is as those of `fit_micro_batch`, and the weights are put back.

    Args:
        step, optim, size, num_classes, accelerator, ema_decay: as of `fit_micro_batch`.
        first: the micro-batch that is tried first.

    Returns:
        None where a lack of memory would end the process, so that nothing can be tried.
    """
    if not can_run_out_of_memory(accelerator.device):
        return None
    before = clean_state_dict(step.model)
    most = _MOST_ON_A_CPU if accelerator.device.type == "cpu" else _MOST

    def fits(images: int) -> bool:
        batch = blank_batch(images, size, num_classes, accelerator.device)
        found = _try_steps(step, optim, batch, accelerator, accumulates=False, ema_decay=ema_decay)
        return true_everywhere(accelerator, isinstance(found, float))

    good, bad, tried = 0, None, first
    while tried <= max(most, first):
        if not fits(tried):
            bad = tried
            break
        good, tried = tried, 2 * tried
    # Two is the least that batch norm takes, and pairs are what is mixed.
    while bad is not None and bad - good > max(2, good // 8):
        middle = (good + bad) // 4 * 2
        if middle <= good:
            break
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    step.model.load_state_dict(before)
    return LargestBatch(good, size, bad)


_MOST, _MOST_ON_A_CPU = 2**14, 2**8
"""Images beyond which nobody asks."""


def check_training_mode(network: nn.Module, size: tuple[int, int], micro_batch: int) -> None:
    """See that a network takes a micro-batch in training mode, which may refuse what evaluation takes: a batch norm wants
    more than one value a channel. Weights, statistics, modes and chance stay as they are.

    Args:
        network: not prepared.
        size: height and width of the images.
        micro_batch: images of a forward pass.

    Raises:
        UserError: it does not; with the network's own words.
    """
    few = min(micro_batch, 2)
    modes = [(module, module.training) for module in network.modules()]
    before = [buffer.clone() for buffer in network.buffers()]
    like = next(network.parameters())
    set_training_mode(network)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(torch.zeros((few, 3, *size), dtype=like.dtype, device=like.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_lack_of_memory(error):
            raise
        advice = "--train.micro-batch-size 2 or more" if micro_batch == 1 else "larger pictures (data.train_transforms)"
        raise UserError(
            f"{type(network).__name__} cannot be trained on {number_of(micro_batch, 'picture')} of {size[0]} x {size[1]} pixels at "
            f"once: {error_text(error)}.\nTake {advice}, another --model.name, or freeze the network's layers (--model.freeze)."
        ) from None
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


class _WhenDue:
    """An optimizer that steps where the engine completes a step, as Accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer, engine: LocalEngine) -> None:
        self._optimizer, self._engine = optimizer, engine

    def step(self) -> None:
        if self._engine.sync_gradients:
            self._optimizer.step()

    def zero_grad(self) -> None:
        if self._engine.sync_gradients:
            self._optimizer.zero_grad()


def _try_steps(
    step: TrainStep, optim: OptimConfig, batch: Batch, accelerator: Accelerator, *, accumulates: bool, ema_decay: float
) -> float | str:
    """Seconds of the last micro-batch of three steps; where the memory is too short for one, the words of the device."""
    network = step.model
    try:
        return _steps(step, optim, batch, accelerator, accumulates=accumulates, ema_decay=ema_decay)
    except (RuntimeError, MemoryError, ValueError) as error:
        # A batch norm that does not take one image at once: then so few do not fit, whatever the memory.
        if not is_lack_of_memory(error) and "more than 1 value per channel" not in str(error):
            raise
        return first_line(error)
    finally:
        network.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)


def _steps(
    step: TrainStep, optim: OptimConfig, batch: Batch, accelerator: Accelerator, *, accumulates: bool, ema_decay: float
) -> float:
    """Three steps with all that the training will hold, which is given back at the end; seconds of the last micro-batch."""
    device, network, engine = accelerator.device, step.model, LocalEngine()
    held: list[Tensor] = []
    optimizer = build_optimizer(network, optim, scaled=accelerator.scaler is not None)
    trial = replace(
        step,
        engine=engine,
        model=InPrecision(network, accelerator.autocast),
        optimizer=_WhenDue(optimizer, engine),
    )
    set_training_mode(network)
    ema = Ema(network, ema_decay) if ema_decay else None
    if accelerator.num_processes > 1:
        # DDP's buckets: they are there during the forward pass, too, when the gradients of the trial are not yet.
        held.append(torch.empty(_gradient_bytes(network), dtype=torch.uint8, device=device))
    # In the first cuDNN searches for its ways through this very shape, in memory that the training will not need; in the
    # second the optimizer's state is there, too, and in the last the memory that is to be left over is not.
    for number in range(3):
        if device.type == "cuda" and number == 1:
            torch.cuda.reset_peak_memory_stats(device)
        if number == 2:
            held.append(torch.empty(int(peak_memory_gib(device) * 2**30 / 16), dtype=torch.uint8, device=device))
        # The second of two micro-batches finds the gradients of the first in memory, and so does any after it.
        for completes in (False, True) if accumulates else (True,):
            engine.sync_gradients = completes
            begun = time.perf_counter()
            trial(batch)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        if ema:
            ema.update(number + 1)
    return time.perf_counter() - begun


def _gradient_bytes(network: nn.Module) -> int:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * parameter.element_size() for parameter in trained)
