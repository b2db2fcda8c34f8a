"""How many images fit into memory at once: tried before the first step, agreed between all processes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import OutOfMemory, UserError, error_text
from accel_flowers.core.plural import number_of
from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.distributed.collectives import true_everywhere
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
) -> tuple[int, float]:
    """Find the micro-batch that leaves room for a whole training step on every process; collective.

    Each trial is a few of the training's own steps on black images, with a sixteenth more memory than they need; the weights
    are put back. It runs before the processes are tied together by DDP, so one that fails keeps none waiting.

    Args:
        step: the training's step; its model is on its device, not yet prepared.
        optim: makes an optimizer for the trial, whose state needs memory, too.
        plan: gives the micro-batch that is asked for, and what else divides the global batch.
        size: height and width of the images.
        num_classes: labels of the trial are 0 … num_classes - 1 in turn.
        accelerator: the processes.

    Returns:
        Images in one forward pass, and the seconds that a step took.

    Raises:
        UserError: not even the smallest fits.
    """
    network = step.model
    before = clean_state_dict(network)
    for micro_batch in smaller_micro_batches(plan):
        batch = blank_batch(micro_batch, size, num_classes, accelerator.device)
        found = _try_steps(step, optim, batch, accelerator)
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
        if _is_lack_of_memory(error):
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
        if isinstance(error, MemoryError):  # the machine's, which pictures, workers and scores take, no forward pass
            raise OutOfMemory(
                f"Out of this machine's memory: {_first_line(error)}. Leave more of it free, or give it to fewer workers "
                "(--data.num-workers 0), and go on with --resume auto."
            ) from None
        raise OutOfMemory(
            f"Out of memory: {_first_line(error)}. Leave more memory free and go on with --resume auto, or begin anew with "
            "a smaller --train.micro-batch-size."
        ) from None


def _try_steps(step: TrainStep, optim: OptimConfig, batch: Batch, accelerator: Accelerator) -> float | str:
    """Seconds of the last of three steps; where the memory is too short for one, the words of the device."""
    device, network = accelerator.device, step.model
    optimizer = build_optimizer(network, optim, scaled=accelerator.scaler is not None)
    trial = replace(step, engine=LocalEngine(), model=InPrecision(network, accelerator.autocast), optimizer=optimizer)
    set_training_mode(network)
    kept_free: list[Tensor] = []
    try:
        # In the first cuDNN searches for its ways through this very shape, in memory that the training will not need; in the
        # second the optimizer's state is there, too, and in the last the memory that is to be left over is not.
        for number in range(3):
            if device.type == "cuda" and number == 1:
                torch.cuda.reset_peak_memory_stats(device)
            if number == 2:
                kept_free.append(
                    torch.empty(int(peak_memory_gib(device) * 2**30 / 16), dtype=torch.uint8, device=device)
                )
            begun = time.perf_counter()
            trial(batch)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        return time.perf_counter() - begun
    except (RuntimeError, MemoryError, ValueError) as error:
        # A batch norm that does not take one image at once: then so few do not fit, whatever the memory.
        if not _is_lack_of_memory(error) and "more than 1 value per channel" not in str(error):
            raise
        return _first_line(error)
    finally:
        network.zero_grad(set_to_none=True)
        del optimizer, trial
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
