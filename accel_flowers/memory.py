"""How many pictures fit into memory at once: tried before the first step, agreed between all processes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from accel_flowers.config import OptimConfig
from accel_flowers.data.order import StepPlan
from accel_flowers.data.transforms import Normalizer
from accel_flowers.errors import OutOfMemory, UserError
from accel_flowers.models import clean_state_dict
from accel_flowers.optim import build_optimizer
from accel_flowers.processes import true_everywhere


def can_run_short(device: torch.device) -> bool:
    """Whether a lack of memory would be an error and not the end of the process, as it is on a CPU without a limit."""
    return device.type != "cpu" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that was in use so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def smaller_micro_batches(plan: StepPlan) -> list[int]:
    """Micro-batches to try, the plan's own first, each at most half of the one before, all dividing the global batch."""
    sizes = [plan.micro_batch]
    for size in range(plan.micro_batch, 0, -1):
        if size <= sizes[-1] / 2 and plan.global_batch_size % (size * plan.num_processes) == 0:
            sizes.append(size)
    return sizes


def fit_micro_batch(
    network: nn.Module,
    optim: OptimConfig,
    normalizer: Normalizer,
    plan: StepPlan,
    size: tuple[int, int],
    accelerator: Accelerator,
) -> tuple[int, float]:
    """Find the micro-batch that leaves room for a whole training step on every process; collective.

    Each trial is a step on black pictures, a sixteenth more than asked for; the weights are put back. It runs before the processes are tied together by
    DDP, so one that fails keeps none waiting.

    Args:
        network: on its device, not yet prepared.
        optim: its optimizer's state needs memory, too.
        normalizer: uint8 pictures → network input.
        plan: gives the micro-batch that is asked for, and what else divides the global batch.
        size: height and width of the pictures.
        accelerator: the processes.

    Returns:
        Pictures in one forward pass, and the seconds that a step on a sixteenth more took.

    Raises:
        UserError: not even the smallest fits.
    """
    before = clean_state_dict(network)
    seconds: float | None = None
    for micro_batch in smaller_micro_batches(plan):
        seconds = _try_step(network, optim, normalizer, (micro_batch + -(-micro_batch // 16), 3, *size), accelerator)
        fits = true_everywhere(accelerator, seconds is not None)
        if fits:
            break
    network.load_state_dict(before)
    if not fits or seconds is None:
        raise UserError(
            f"There is not enough memory on {accelerator.device} to train on {micro_batch} picture(s) of "
            f"{size[0]} x {size[1]} pixels at once: take smaller pictures (data.train_transforms), a smaller "
            "--model.name, or leave more memory free."
        )
    return micro_batch, seconds


@contextmanager
def told_when_short() -> Iterator[None]:
    """Turn a lack of memory in the middle of a run into a message.

    Raises:
        OutOfMemory: what to change.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise OutOfMemory(
            f"Out of memory: {(str(error) or type(error).__name__).splitlines()[0]}. Leave more memory free and go on with --resume auto, or begin "
            "anew with a smaller --train.micro-batch-size."
        ) from None


def _try_step(
    network: nn.Module,
    optim: OptimConfig,
    normalizer: Normalizer,
    shape: tuple[int, int, int, int],
    accelerator: Accelerator,
) -> float | None:
    """Seconds of a step; None where the memory is too short for it."""
    optimizer = build_optimizer(network, optim, scaled=accelerator.scaler is not None)
    network.train()
    try:
        for _ in range(2):  # from the second on, the optimizer's state is there, too
            begun = time.perf_counter()
            with accelerator.autocast():
                pixels = torch.zeros(shape, dtype=torch.uint8, device=accelerator.device)
                loss = network(normalizer(pixels)).float().mean()
            loss.backward()
            optimizer.step()
            if accelerator.device.type != "cpu":
                torch.accelerator.synchronize(accelerator.device)
        return time.perf_counter() - begun
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        return None
    finally:
        network.zero_grad(set_to_none=True)
        del optimizer
        clear_device_cache(garbage_collection=True)


def _is_lack_of_memory(error: Exception) -> bool:
    """Accelerate knows the words of most devices; oneDNN has its own, and so have Python and C++."""
    if isinstance(error, MemoryError) or should_reduce_batch_size(error):
        return True
    return any(words in str(error) for words in ("could not create a primitive", "std::bad_alloc"))
