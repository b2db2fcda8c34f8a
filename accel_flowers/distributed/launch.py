"""The processes of a run: starting Accelerate, agreeing on what the main process found, sharing what is exact.

Whatever is pure (order, split, transforms, scores, networks) knows nothing of processes; tests/test_imports.py keeps the list.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)

from accel_flowers.core.console import write_error
from accel_flowers.core.errors import UserError, exit_code
from accel_flowers.distributed.devices import (
    check_gpu_is_there,
    compare_places,
    count_on_machine,
    differences,
    start_device,
)
from accel_flowers.distributed.environment import (
    RANKS,
    is_launched,
    launched_place,
    left_over,
    names_of_a_launch,
    num_restarts,
)
from accel_flowers.distributed.health import HealthTimes
from accel_flowers.distributed.launch_words import asked_of, words_of_launcher
from accel_flowers.distributed.meeting import MEETING_URL, limited_wait

_log = logging.getLogger(__name__)


def identify_launcher() -> dict[str, Any] | None:
    """The process that started this one, such that no other is ever mistaken for it: not one on another host, nor one
    that got its number later, nor one in a container that starts the same way each time.

    Returns:
        None where there is no launcher that would start this process again.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in parentheses may hold anything; after it the start time is the 20th, in clock ticks since boot.
        started = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None  # not Linux, or the launcher is gone: then nothing is known for sure
    return {"host": platform.node(), "process": os.getppid(), "started": started, "boot": boot, "run_id": run_id}


def is_restart_of(launcher: object) -> bool:
    """Whether a launcher, as `identify_launcher` described it to an earlier process, has started this one again."""
    return num_restarts() > 0 and launcher is not None and launcher == identify_launcher()


_PATIENCE = timedelta(hours=6)
"""For the main process, which looks at all images or fetches them while the others wait; lost ones are noticed otherwise."""
_NOT_SUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
"""Variables of Accelerate's launcher. Taken for plain copies they would run as those without a word, crash, or hang."""
_OTHER_PRECISION = (
    "Give another --train.precision, or --mixed_precision to accelerate launch: no, or bf16 where the device has it."
)


def check_launch(environment: dict[str, str] | None = None) -> None:
    """Notice a launcher that was asked for several processes and started one, and variables that are left over.

    `accelerate launch --cpu --num_processes 2` and `distributed_type: MULTI_CPU` do that without a word
    (Accelerate 1.15 starts several CPU processes only through mpirun): the rendezvous address is set, the rank is not.

    Raises:
        UserError: saying which configuration starts two CPU processes, what to take instead of a sharded
            model, or which variables to unset.
    """
    given = os.environ if environment is None else environment
    launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in given and "ACCELERATE_DYNAMO_BACKEND" in given
    if launched_by_accelerate and "MASTER_PORT" in given and not any(rank in given for rank in (*RANKS, "LOCAL_RANK")):
        raise UserError(
            "The launcher was asked for several processes but started only this one: accelerate launch starts several "
            'CPU processes only with mpirun. Use `accelerate launch --config_file "$(accel-flowers launch-config cpu_2_processes)"`, '
            "or ask for one process. (If you set MASTER_PORT yourself, unset it.)"
        )
    for name, what in _NOT_SUPPORTED.items():
        if given.get(name, "").lower() in ("true", "1", "yes", "on", "y", "t"):
            raise UserError(
                f"The launch configuration asks for {what}, which is not supported: each process needs a whole copy of\n"
                'the model. Take `accelerate launch --config_file "$(accel-flowers launch-config multi_gpu)"`, with a smaller\n'
                f"--train.micro-batch-size where memory is short. (If {name} is left over: unset it.)"
            )
    wrong = left_over(given)
    if wrong is not None:
        raise UserError(
            f"The environment tells of a launch that is not there: {wrong}.\n"
            f"For a process of its own: unset {' '.join(names_of_a_launch(given))}\n"
            "For several processes, start them with accelerate launch."
        )


def start_processes(*, seconds_to_meet: float = HealthTimes.meet) -> PartialState:
    """Let the processes of the launcher find each other, before it is decided in which precision they compute; collective.

    `build_accelerator` then goes on with them.

    Args:
        seconds_to_meet: how long that may take. A process to which others do not come ends then, with a message.

    Raises:
        UserError: the launch is wrong, the GPU that it asks for is not there, or processes would share one.
    """
    check_launch()
    asked = asked_of(words_of_launcher()) if is_launched() else None
    if asked == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # which the launcher of several processes does not pass on
    if not parse_flag_from_env("ACCELERATE_USE_CPU"):
        check_gpu_is_there(asked=asked)
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    on_cpu, counted = computes_on_cpu(), "LOCAL_WORLD_SIZE" in os.environ
    trouble = "" if on_cpu else start_device()
    with limited_wait(launched_place()[1], seconds_to_meet):
        processes = PartialState(cpu=on_cpu, **_process_group().to_kwargs())
        try:
            places = compare_places(processes, trouble)
        except BaseException:
            processes.destroy_process_group()
            raise
        processes.wait_for_everyone()  # between GPUs the first exchange is what connects them
    if processes.is_main_process:
        for line in differences(places):
            _log.info(line)
    if processes.num_processes > 1 and not counted:  # by srun and MPI it is not, and Accelerate then puts 1 there
        os.environ["LOCAL_WORLD_SIZE"] = str(count_on_machine(places, processes.process_index))
    return processes


def computes_on_cpu() -> bool:
    """Whether there is no other device, or the launcher says so."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def _process_group() -> InitProcessGroupKwargs:
    return InitProcessGroupKwargs(init_method=MEETING_URL, timeout=_PATIENCE)


@contextmanager
def destroyed_at_the_end(processes: PartialState, *, seconds_to_leave: float = 10.0) -> Iterator[None]:
    """Destroy the process group, however the block is left; nobody else may do it before.

    Between GPUs that waits for what is still to be exchanged: for ever where another process is gone. So a process that
    leaves with an error ends after a while in any case.

    Args:
        processes: of the group.
        seconds_to_leave: how long that is.
    """
    way_out: threading.Timer | None = None
    try:
        yield
    except BaseException as error:
        if processes.num_processes > 1:
            words = f"process {processes.process_index}: {error or type(error).__name__}"
            way_out = threading.Timer(seconds_to_leave, _end_with, [words, exit_code(error)])
            way_out.daemon = True
            way_out.start()
        raise
    finally:
        processes.destroy_process_group()
        if way_out:
            way_out.cancel()


def close_trackers(accelerator: Accelerator) -> None:
    """As `Accelerator.end_training`, which would also destroy the process group: too early, and with nobody to see that
    this ends."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _end_with(words: str, code: int) -> None:
    write_error(words)
    os._exit(code)


def launcher_says_precision() -> bool:
    """Whether there is a launcher that says one, be it "no"."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


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
            dynamo_backend="no",  # train.compile says it; the launcher's flag would compile training alone, unrecorded
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
