"""The processes of a run: starting Accelerate, agreeing on what the main process found, sharing what is exact.

Whatever is pure (order, split, transforms, scores, networks) knows nothing of processes; tests/test_imports.py keeps the list.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn

from accel_flowers.errors import Interrupted, UserError
from accel_flowers.launcher import rendezvous_url
from accel_flowers.progress import tell

T = TypeVar("T")


class Processes(Protocol):
    """How many processes there are and which one this is: Accelerate's PartialState knows from the start, its
    Accelerator from when the precision is decided."""

    num_processes: int
    process_index: int
    is_main_process: bool
    device: torch.device


_PATIENCE = timedelta(hours=6)
"""For the main process, which looks at all pictures or fetches them while the others wait; lost ones are noticed otherwise."""
_SECONDS_TO_LEAVE = 10.0
_OTHER_PRECISION = "Give another --mixed_precision to accelerate launch: no, or bf16 where the device has it."


def check_launch(environment: dict[str, str] | None = None) -> None:
    """Notice a launcher that was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` and `distributed_type: MULTI_CPU` do that without a word
    (Accelerate 1.15 starts several CPU processes only through mpirun): the rendezvous address is set, the rank is not.

    Raises:
        UserError: saying which configuration starts two CPU processes.
    """
    given = os.environ if environment is None else environment
    launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in given and "ACCELERATE_DYNAMO_BACKEND" in given
    ranks = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
    if launched_by_accelerate and "MASTER_PORT" in given and not any(rank in given for rank in ranks):
        raise UserError(
            "The launcher was asked for several processes but started only this one: accelerate launch starts several "
            "CPU processes only with mpirun. Use `accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml`, "
            "or ask for one process. (If you set MASTER_PORT yourself, unset it.)"
        )


def start_processes() -> PartialState:
    """Let the processes of the launcher find each other, before it is decided in which precision they compute; collective.

    `build_accelerator` then goes on with them.
    """
    check_launch()
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    return PartialState(cpu=computes_on_cpu(), **_process_group().to_kwargs())


def computes_on_cpu() -> bool:
    """Whether there is no other device, or the launcher says so."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def _process_group() -> InitProcessGroupKwargs:
    return InitProcessGroupKwargs(init_method=rendezvous_url(), timeout=_PATIENCE)


@contextmanager
def destroyed_at_the_end(processes: PartialState) -> Iterator[None]:
    """Destroy the process group, however the block is left.

    Between GPUs that waits for what is still to be exchanged: for ever where another process is gone. So a process that
    leaves with an error ends after a while in any case.
    """
    way_out: threading.Timer | None = None
    try:
        yield
    except BaseException as error:
        if processes.num_processes > 1 and not isinstance(error, Interrupted):
            words = f"process {processes.process_index}: {error or type(error).__name__}"
            way_out = threading.Timer(_SECONDS_TO_LEAVE, _end_with, [words])
            way_out.daemon = True
            way_out.start()
        raise
    finally:
        processes.destroy_process_group()
        if way_out:
            way_out.cancel()


def _end_with(words: str) -> None:
    tell(words)
    os._exit(1)


def launched_precision() -> str:
    """What the launcher says: "no", "fp16", "bf16" or what it knows besides; "no" where there is no launcher."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def build_accelerator(
    *, mixed_precision: str | None = None, trackers: Sequence[str | GeneralTracker] = (), run_dir: Path | None = None
) -> Accelerator:
    """Start Accelerate on what the launcher gave, or on the CPU where there is no other device.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None = what the launch configuration says.
        trackers: names or objects that Accelerate logs to.
        run_dir: where TensorBoard's files go.

    Raises:
        UserError: a precision that the device does not have.
    """
    check_launch()
    try:
        accelerator = Accelerator(
            cpu=computes_on_cpu(),
            mixed_precision=mixed_precision,
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(project_dir=run_dir, logging_dir=run_dir / "tensorboard")
            if run_dir
            else None,
            # Micro-batches are dealt out as they are: nothing is padded, so nothing is counted twice.
            dataloader_config=DataLoaderConfiguration(even_batches=False, non_blocking=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                _process_group(),
            ],
        )
    except ValueError as error:
        if "mixed precision" not in str(error):
            raise
        raise UserError(f"{error} {_OTHER_PRECISION}") from None
    # On a CPU Accelerate takes fp16 without a word and computes in float32; fp8 is another kind of training.
    on_cpu = accelerator.device.type == "cpu"
    if accelerator.mixed_precision not in (("no", "bf16") if on_cpu else ("no", "fp16", "bf16")):
        raise UserError(
            f"There is no {accelerator.mixed_precision} here on {accelerator.device.type}. {_OTHER_PRECISION}"
        )
    return accelerator


def num_local_processes(accelerator: Accelerator) -> int:
    """Processes that share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def main_first(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """`do` on the main process, then on the others: for what fills a cache.

    Raises:
        UserError: the main process's mistake, on every process, so that all end and none waits.
    """
    done: list[T] = []

    def on_main() -> None:
        done.append(do())

    decided_by_main(accelerator, on_main)
    return done[0] if done else do()


def decided_by_main(processes: Processes, decide: Callable[[], T]) -> T:
    """`decide` on the main process alone; every process gets its result, or its error.

    Raises:
        UserError: the main process's mistake, on every process.
    """
    outcome: list[object] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = str(error)
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(str(outcome[1]))
    return outcome[0]  # type: ignore[return-value]  # what `decide` returned, on one process or sent to all


def on_each(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """`do` on every process at once; where one makes a mistake, all end with it; collective.

    Raises:
        UserError: the first process's that had one, on every process.
    """
    done: list[T] = []
    mistake: str | None = None
    try:
        done.append(do())
    except UserError as error:
        mistake = str(error)
    everywhere: list[str | None] = gather_object([mistake]) if accelerator.num_processes > 1 else [mistake]
    first = next((found for found in everywhere if found is not None), None)
    if first is not None:
        raise UserError(first)
    return done[0]


def tell_main(accelerator: Accelerator, *lines: str) -> None:
    """Print lines on the main process alone."""
    if accelerator.is_main_process:
        tell(*lines)


def true_everywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether something is so on every process; collective."""
    return all(gather_object([here])) if accelerator.num_processes > 1 else here


def keep_own_buffers(model: nn.Module) -> None:
    """Stop DDP from overwriting every process's batch-norm statistics with the first one's before each forward.

    `average_buffers` then keeps what all of them saw. (Set here because the constructor's argument changed its name
    between versions of torch.)
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.broadcast_buffers = False


def settle_gradient_order(model: nn.Module, network: nn.Module, pixels: Tensor) -> None:
    """Let DDP lay out its gradient buckets before the first step instead of after it; collective.

    It rebuilds them once, after a first backward pass, and sums in another order from then on, which on three
    processes and more changes the last digits: without this the first step after a resume would differ.

    Args:
        model: as Accelerate wrapped it, before any training.
        network: the same, unwrapped; its batch-norm statistics are put back.
        pixels: any input, float [B, C, H, W].
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel) or torch.distributed.get_world_size() < 3:
        return
    before = [buffer.clone() for buffer in network.buffers()]
    for _ in range(2):  # the layout changes at the beginning of the second pass
        model(pixels).sum().mul(0).backward()
        model.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)


def check_same_everywhere(processes: Processes, facts: Mapping[str, object]) -> None:
    """See that all processes are of one mind before they train together; collective.

    Args:
        processes: all of them.
        facts: what must be equal: name → value, of plain types.

    Raises:
        UserError: naming each fact that differs, with a process on either side; the same on every process.
    """
    if processes.num_processes == 1:
        return
    everywhere: list[dict[str, object]] = gather_object([dict(facts)])
    first = everywhere[0]
    lines = []
    for name in sorted({name for each in everywhere for name in each}):
        other = next((rank for rank, each in enumerate(everywhere) if each.get(name) != first.get(name)), None)
        if other is not None:
            lines.append(
                f"  {name}: {first.get(name)!r} on process 0, {everywhere[other].get(name)!r} on process {other}"
            )
    if lines:
        raise UserError(
            "The processes do not agree, so they cannot train together:\n" + "\n".join(lines) + "\n"
            "Give all machines the same versions, the same words and the same pictures."
        )


class Agreement:
    """Flags that one process raises and all act on: a small message a step between the CPUs.

    It has a gloo group of its own, so that no device has to be waited for.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._alone = accelerator.num_processes == 1
        self._group: Any = None if self._alone else torch.distributed.new_group(backend="gloo")

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether some process raised it; collective."""
        if self._alone:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return tuple(bool(vote) for vote in votes)


def gather_buffers(network: nn.Module, accelerator: Accelerator) -> Tensor:
    """Each process's own running statistics as one row, float32 [processes, all values]; collective."""
    own = [buffer.detach().float().flatten() for buffer in network.buffers() if buffer.is_floating_point()]
    if not own:
        return torch.empty(accelerator.num_processes, 0)  # between GPUs nothing cannot be gathered
    return accelerator.gather(torch.cat(own)[None]).cpu()


@torch.no_grad()
def set_buffers(network: nn.Module, rows: Tensor, accelerator: Accelerator) -> None:
    """Put running statistics back: a process's own where as many are running as were, else the mean of all.

    Raises:
        ValueError: the rows are of another network.
    """
    same = rows.shape[0] == accelerator.num_processes
    row = rows[accelerator.process_index] if same else rows.double().mean(dim=0)
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if row.numel() != sum(buffer.numel() for buffer in buffers):
        raise ValueError("another number of batch-norm statistics")
    for buffer, values in zip(buffers, row.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def average_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their batch-norm running statistics: collective, before evaluation and saving.

    Each process has seen other micro-batches; the mean is what one process with as many would have kept, but for
    the order. Frozen layers are left alone.
    """
    if accelerator.num_processes == 1:
        return
    moving = [
        buffer
        for module in network.modules()
        for buffer in module.buffers(recurse=False)
        if module.training and buffer.is_floating_point()
    ]
    if moving:
        # All in one message. In float64 the mean of equal values is that value, so that to average twice changes nothing.
        means = accelerator.reduce(torch.cat([buffer.double().flatten() for buffer in moving]), reduction="mean")
        for buffer, mean in zip(moving, means.split([buffer.numel() for buffer in moving]), strict=True):
            buffer.copy_(mean.view_as(buffer))
