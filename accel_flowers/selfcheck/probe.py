"""What this machine has, looked at by a process of its own: a broken driver ends that, or hangs there, and nothing else.

Started as a module it prints one JSON object.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PROGRAM = "accel-flowers"


def look() -> dict[str, Any]:
    """Versions, devices, cores and memory; of plain types."""
    import torch
    import torchvision  # noqa: F401 - it fails here where it does not belong to this torch

    from accel_flowers.core.machine import available_cores, bf16_instructions, cpu_name, shared_memory
    from accel_flowers.tracking.run_dir import versions

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cpu" if accelerator is None else accelerator.type
    return {
        "versions": versions(),
        "too_old": _too_old(),
        "cuda_of_torch": torch.version.cuda,
        "device": kind,
        "devices": _gpus()
        if kind == "cuda"
        else [str(kind)] * (torch.accelerator.device_count() if accelerator else 0),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if kind == "cuda" else None,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False)
        if kind == "cuda"
        else bool(bf16_instructions()),
        "cpu": cpu_name() or platform.machine(),
        "cores": available_cores(),
        "shared_memory": shared_memory(),
        "gpu_without_torch": kind == "cpu" and any(map(Path.exists, map(Path, ("/dev/nvidia0", "/dev/kfd")))),
    }


def _gpus() -> list[str]:
    """Name, memory and capability of each."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}")
    return found


def _too_old() -> list[str]:
    """Libraries that are not in the versions that this program asks for; it asks for nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires(_PROGRAM) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} is wanted, {version} is here")
    return found


if __name__ == "__main__":
    json.dump(look(), sys.stdout)
