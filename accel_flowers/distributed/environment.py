"""What a launcher says of this process in environment variables, and what of that is only left over. No torch.

A shell inside a job, a Kubernetes worker or a debugging session keeps such variables, although nobody else was started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launched_place(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where the variables do not say that there are others."""
    given = os.environ if environment is None else environment
    rank, size = _first(RANKS, given), _first(SIZES, given)
    if rank is None or size is None or not given.get("MASTER_ADDR") or not 0 <= rank < size:
        return 0, 1
    return rank, size


def num_restarts() -> int:
    """How often the launcher has started the processes again."""
    given = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(given) if given.isdecimal() else 0


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that a launcher started; so is one that has no others."""
    return launched_place()[0] == 0


def is_left_out() -> bool:
    """Whether a command that is for one process has nothing to do here, because its launcher has started that one, too.

    Only a launcher of this machine is believed: what a pod of a cluster says of its rank is so for every program in it.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and not is_main_process()


def left_over(environment: Mapping[str, str] | None = None) -> str | None:
    """What is wrong with the variables, such that no training could start on them; None where they make sense.

    A rank without a number of processes is no harm: nobody asks for it.
    """
    given = os.environ if environment is None else environment
    for name in (*RANKS, *SIZES, *_LOCAL):
        if name in given and _number(given[name]) is None:
            return f"{name} is {given[name]!r}, which is no number"
    rank, size = _first(RANKS, given), _first(SIZES, given)
    if size is None or size == 1:
        return "LOCAL_RANK is set, but no WORLD_SIZE" if "LOCAL_RANK" in given and size is None else None
    name = next(name for name in SIZES if name in given)
    if size < 1:
        return f"{name} is {size}"
    if rank is None and "LOCAL_RANK" not in given:
        return f"{name} is {size}, but nothing says which of the {size} processes this is: there is no RANK"
    if rank is not None and not 0 <= rank < size:
        return f"RANK is {rank}, but {name} is {size}"
    if not given.get("MASTER_ADDR"):
        return f"{name} is {size}, but nothing says where the other processes are: there is no MASTER_ADDR"
    return None


def names_of_a_launch(environment: Mapping[str, str] | None = None) -> list[str]:
    """The variables that are set."""
    given = os.environ if environment is None else environment
    return [name for name in (*RANKS, *SIZES, *_LOCAL, "MASTER_ADDR", "MASTER_PORT") if name in given]


def _first(names: tuple[str, ...], given: Mapping[str, str]) -> int | None:
    return next((_number(given[name]) for name in names if name in given), None)


def _number(word: str) -> int | None:
    try:
        return int(word)
    except ValueError:
        return None


def is_launched(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process was started by Accelerate's launcher; the precision alone may be somebody's own setting."""
    given = os.environ if environment is None else environment
    return {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"} <= given.keys()


def asks_for_gpu(environment: Mapping[str, str] | None = None, asked: str | None = None) -> bool:
    """Whether this process was started by Accelerate's launcher, and nothing says that it shall compute on the CPU.

    One that hides all GPUs (`gpu_ids: "-1,-1"`) says as much.

    Args:
        environment: the launcher's variables.
        asked: what else is known of the launch (`launch_words.asked_of`).
    """
    given = os.environ if environment is None else environment
    on_cpu = given.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "on", "y", "t")
    return is_launched(given) and not on_cpu and not _hides_gpus(given) and asked not in ("cpu", "nothing")


def sign_of_gpu(environment: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> str | None:
    """What makes one think that there is a GPU, though torch sees none; None where nothing does.

    Args:
        environment: a job's variables; CUDA_VISIBLE_DEVICES may also hide all GPUs on purpose.
        devices: where the system lists them.
    """
    given = os.environ if environment is None else environment
    if _hides_gpus(given):
        return None
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        if given.get(name, "").strip() not in ("", "NoDevFiles"):  # so SLURM says that a job has none
            return f"{name} is {given[name]!r}"
    found = sorted(devices.glob("nvidia[0-9]*"))
    return f"there is {found[0]}" if found else None


def _hides_gpus(given: Mapping[str, str]) -> bool:
    """Whether CUDA was told of a device that cannot be, which hides all: its documented way."""
    return given.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("-1")
