"""How many images fit into memory at once: tried before the first step, agreed between all processes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import OutOfMemory, UserError
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.distributed.collectives import true_everywhere
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.training.optim import build_optimizer


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
    network: nn.Module,
    optim: OptimConfig,
    normalizer: Normalizer,
    plan: BatchPlan,
    size: tuple[int, int],
    accelerator: Accelerator,
) -> tuple[int, float]:
    """Find the micro-batch that leaves room for a whole training step on every process; collective.

    Each trial is a few steps on black images, with a sixteenth more memory than they need; the weights are put back. It
    runs before the processes are tied together by DDP, so one that fails keeps none waiting.

    Args:
        network: on its device, not yet prepared.
        optim: its optimizer's state needs memory, too.
        normalizer: uint8 images → network input.
        plan: gives the micro-batch that is asked for, and what else divides the global batch.
        size: height and width of the images.
        accelerator: the processes.

    Returns:
        Images in one forward pass, and the seconds that a step took.

    Raises:
        UserError: not even the smallest fits.
    """
    before = clean_state_dict(network)
    for micro_batch in smaller_micro_batches(plan):
        found = _try_steps(network, optim, normalizer, (micro_batch, 3, *size), accelerator)
        fits = true_everywhere(accelerator, isinstance(found, float))
        if fits:
            break
    network.load_state_dict(before)
    if not fits or isinstance(found, str):
        words = f" ({found})" if isinstance(found, str) else ""
        raise UserError(
            f"There is not enough memory on {accelerator.device} to train on {micro_batch} picture(s) of "
            f"{size[0]} x {size[1]} pixels at once{words}: take smaller pictures (data.train_transforms), a smaller "
            "--model.name, or leave more memory free."
        )
    return micro_batch, found


@contextmanager
def oom_as_user_error() -> Iterator[None]:
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
            f"Out of memory: {_first_line(error)}. Leave more memory free and go on with --resume auto, or begin anew with "
            "a smaller --train.micro-batch-size."
        ) from None


def _try_steps(
    network: nn.Module,
    optim: OptimConfig,
    normalizer: Normalizer,
    shape: tuple[int, int, int, int],
    accelerator: Accelerator,
) -> float | str:
    """Seconds of the last of three steps; where the memory is too short for one, the words of the device."""
    device, optimizer = accelerator.device, build_optimizer(network, optim, scaled=accelerator.scaler is not None)
    network.train()
    kept_free: list[Tensor] = []
    try:
        # In the first cuDNN searches for its ways through this very shape, in memory that the training will not need; in the
        # second the optimizer's state is there, too, and in the last the memory that is to be left over is not.
        for step in range(3):
            if device.type == "cuda" and step == 1:
                torch.cuda.reset_peak_memory_stats(device)
            if step == 2:
                kept_free.append(
                    torch.empty(int(peak_memory_gib(device) * 2**30 / 16), dtype=torch.uint8, device=device)
                )
            begun = time.perf_counter()
            with accelerator.autocast():
                pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
                loss = network(normalizer(pixels)).float().mean()
            loss.backward()
            optimizer.step()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        return time.perf_counter() - begun
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        return _first_line(error)
    finally:
        network.zero_grad(set_to_none=True)
        del optimizer
        kept_free.clear()
        clear_device_cache(garbage_collection=True)


_WORDS_FOR_IT = (
    "out of memory",
    "unable to find an engine",  # cuDNN, where it searched and none of its ways had room
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN
    "std::bad_alloc",
)


def _is_lack_of_memory(error: Exception) -> bool:
    """Accelerate knows the words of most devices; libraries have their own, and so have Python and C++."""
    if isinstance(error, MemoryError) or should_reduce_batch_size(error):
        return True
    return any(words in str(error) for words in _WORDS_FOR_IT)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
