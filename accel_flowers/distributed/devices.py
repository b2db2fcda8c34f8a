"""Which device each process computes on: whether one is there at all, whether two would share one, and which differ.

What is decided is pure and takes facts (`Place`, variables); `start_processes` gathers them and acts.
"""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import check_cuda_p2p_ib_support

from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import asks_for_gpu, is_main_process, sign_of_gpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a process computes."""

    machine: str
    """The same for all processes of a machine, and for no others."""
    device: str = ""
    """The same for all processes that share a device; empty on a CPU."""
    name: str = ""
    """The device's model."""
    driver: str = ""
    """Version of its driver; empty where it is not known."""
    trouble: str = ""
    """Why nothing can be computed there; empty where it can."""


# A GPU that is not there


def check_gpu_is_there(environment: Mapping[str, str] | None = None, asked: str | None = None) -> None:
    """See that a launch that asks for GPUs has one; to be called before the processes look for each other.

    Without a launcher the CPU is taken, as on a laptop; where there seems to be a GPU all the same, that is told.

    Args:
        environment: the launcher's variables.
        asked: what else is known of the launch (`launch_words.asked_of`).

    Raises:
        UserError: there is none; with torch's words for why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver in lines of its own; here its words are told
        if torch.accelerator.is_available():
            return
    sign = sign_of_gpu(environment)
    if asks_for_gpu(environment, asked):
        raise UserError(missing_gpu(_why_no_gpu()))
    if sign and is_main_process():
        _log.warning(f"no GPU is used, though {sign}: {_why_no_gpu()}. Training on the CPU.")


def missing_gpu(why: str) -> str:
    """What to tell where a launch asks for GPUs and there is none.

    Args:
        why: torch's words.
    """
    return (
        f"The launch configuration asks for a GPU, and none can be used: {why}.\n"
        "Look at `nvidia-smi` and CUDA_VISIBLE_DEVICES (in Docker: --gpus all). To train on the CPU, add --cpu to\n"
        "accelerate launch, or take the configuration cpu or cpu_2_processes (accel-flowers launch-config);\n"
        "a configuration of your own says use_cpu: true. ACCELERATE_USE_CPU=true does it, too."
    )


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: this torch was built without CUDA
        return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
    return "torch sees none"


# Devices that cannot be used as they are dealt out


def start_device() -> str:
    """Set up CUDA, where this process is to compute on it.

    Returns:
        Why nothing can be computed on its GPUs, in torch's words on one line; empty where it can, or there is none.
    """
    if not torch.cuda.is_available():
        return ""
    if not check_cuda_p2p_ib_support():  # else Accelerate ends with a traceback; its launcher does the same
        for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
            os.environ.setdefault(name, "1")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.cuda.init()
        except RuntimeError as error:
            return _on_one_line(str(error))
    words = next((str(warning.message) for warning in told if "capability" in str(warning.message)), "")
    if not torch.version.cuda:
        return ""  # ROCm has names for its architectures, no numbers
    major, minor = torch.cuda.get_device_capability()
    if runs_on((major, minor), torch.cuda.get_arch_list()):
        return ""
    return _on_one_line(words) or (
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} ({major}.{minor})"
    )


def runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a GPU can run what torch was built for.

    Args:
        capability: of the GPU.
        built_for: such as "sm_80" (runs on 8.0 and later, below 9.0) and "compute_90" (is translated for 9.0 and later).
    """
    major, minor = capability
    for name in built_for:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdigit, number))
        if not digits:
            return True  # an architecture of a kind that is not known here
        built_major, built_minor = divmod(int(digits), 10)
        if kind == "sm" and built_major == major and built_minor <= minor:
            return True
        if kind == "compute" and (built_major, built_minor) <= (major, minor):
            return True
    return not built_for


def _on_one_line(words: str) -> str:
    """What torch says in many, for one: up to the list of what it was built for, and the advice that follows it."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    shown = [line for line in lines if not line.startswith("- ") and "following list" not in line]
    return " ".join(shown)[:600].rstrip(".: ")


def compare_places(processes: PartialState, trouble: str) -> list[Place]:
    """Where each process computes, by rank, seen to be possible; collective, but no device is touched.

    Args:
        processes: all of them; its `local_process_index` is set to the device's, which is another number where each
            process sees its own GPU alone, as in a task of SLURM's.
        trouble: what `start_device` has said.

    Raises:
        UserError: on every process alike.
    """
    own = _own_place(processes, trouble)
    places = [own]
    if processes.num_processes > 1:
        places = [own] * processes.num_processes
        # Not between the devices: they are what is to be looked at.
        group: Any = torch.distributed.new_group(backend="gloo")
        torch.distributed.all_gather_object(places, own, group=group)
        torch.distributed.destroy_process_group(group)
    wrong = device_trouble(places)
    if wrong:
        raise UserError(wrong)
    if own.device and processes.num_processes > 1 and processes.device.index is not None:
        processes.local_process_index = processes.device.index
    return places


def device_trouble(places: Sequence[Place]) -> str | None:
    """Why processes cannot compute where they are; None where they can.

    Args:
        places: of all processes, by rank.
    """
    for rank, place in enumerate(places):
        if place.trouble:
            on = f" of process {rank}" if len(places) > 1 else ""
            return f"The GPU{on} cannot be used: {place.trouble}."
    shared = Counter((place.machine, place.device) for place in places if place.device)
    (machine, device), most = max(shared.items(), key=lambda item: item[1], default=(("", ""), 0))
    if most < 2:
        return None
    here = [place for place in places if place.machine == machine]
    gpus = len({place.device for place in here})
    name = next(place.name for place in here if place.device == device)
    return (
        f"{len(here)} processes share a machine where they see {gpus} GPU{'s' if gpus > 1 else ''} ({name}):\n"
        "each process needs one of its own.\n"
        f"Start {gpus} on it (--num_processes of accelerate launch counts over all machines), or give the job more\n"
        "GPUs (CUDA_VISIBLE_DEVICES, gpu_ids; with SLURM one for each task: --gpus-per-task 1)."
    )


def differences(places: Sequence[Place]) -> list[str]:
    """What to tell of processes that compute on different devices: one line for models, one for drivers.

    Args:
        places: of all processes, by rank.
    """
    lines = []
    for what, values, so in (
        ("GPUs", [place.name for place in places], "each step takes as long as on the slowest"),
        ("GPU drivers", [place.driver for place in places], "the last digits may differ between them"),
    ):
        kinds = sorted({value for value in values if value})
        if len(kinds) > 1:
            found = "; ".join(f"{kind} on {_ranks([r for r, v in enumerate(values) if v == kind])}" for kind in kinds)
            lines.append(f"the processes have different {what}: {found}: {so}")
    return lines


def count_on_machine(places: Sequence[Place], rank: int) -> int:
    """Processes on the machine of one of them, that one included."""
    return sum(place.machine == places[rank].machine for place in places)


def _ranks(ranks: Sequence[int]) -> str:
    """ "process 3", "processes 0-3" or "processes 0, 2, 5"."""
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if len(ranks) == ranks[-1] - ranks[0] + 1:
        return f"processes {ranks[0]}-{ranks[-1]}"
    shown = ", ".join(map(str, ranks[:8]))
    return f"processes {shown}{', ...' if len(ranks) > 8 else ''}"


def _own_place(processes: PartialState, trouble: str) -> Place:
    machine = platform.node()
    with suppress(OSError):  # two machines may have one name
        machine += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    device = processes.device
    if device.type == "cpu":
        return Place(machine, trouble=trouble)
    if device.type not in ("cuda", "xpu"):
        return Place(machine, device=str(device), name=device.type)
    found = torch.get_device_module(device).get_device_properties(device)
    identity = str(getattr(found, "uuid", "")) or str(device)
    return Place(machine, device=identity, name=found.name, driver=_driver_version(), trouble=trouble)


def _driver_version(file: Path = Path("/sys/module/nvidia/version")) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
