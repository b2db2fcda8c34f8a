"""What the benchmarks share: the machine in a line, and figures as a median with the least and the most."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

from accel_flowers.core.machine import bf16_instructions, cpu_name

PROJECT = Path(__file__).resolve().parent.parent


def machine(*packages: str, gpu: bool = False) -> str:
    """The processor (or the GPU before it), cores, load, and the versions of Python and of packages."""
    cpu, bf16 = cpu_name() or platform.machine(), bf16_instructions()
    where = f"{cpu} ({', '.join(bf16) or 'no bf16 instructions'}), {len(os.sched_getaffinity(0))} cores"
    if gpu:
        import torch

        where = f"{torch.cuda.get_device_name()}, {where}"
    versions = "".join(f", {name} {metadata.version(name)}" for name in packages)
    return f"{where}, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}{versions}"


def spread(values: Sequence[float], decimals: int) -> str:
    """`MEDIAN (LEAST to MOST)`."""
    return f"{median(values):.{decimals}f} ({min(values):.{decimals}f} to {max(values):.{decimals}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float], decimals: int = 2) -> str:
    """The same of ours / theirs, round by round: neighbours in time, so what slows the machine slows both."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)], decimals)
