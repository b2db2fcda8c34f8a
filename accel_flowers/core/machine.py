"""What this machine gives: its processor, and the cores that this process may use. No torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from accel_flowers.core.errors import UserError


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor, such as "model name" and "flags"; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return dict(reversed(pairs))


def cpu_name() -> str:
    """Its model; where that is not known, what Python calls it, which may be empty."""
    return cpu_facts().get("model name") or platform.processor()


def bf16_instructions() -> list[str]:
    """Flags of the instructions that compute in bfloat16, such as "avx512_bf16"."""
    return [flag for flag in cpu_facts().get("flags", "").split() if flag.endswith("_bf16")]


def available_cores() -> int:
    """Cores that this process may use: those it may run on, or the share of a container, which may be less; at least 1."""
    # macOS lets no process say on which cores it runs.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/"))
    return max(1, cores if quota is None else min(cores, int(quota)))


def check_can_train() -> None:
    """See that the system has what a training stands on.

    Raises:
        UserError: it has not; such a system can still look at images and ask a model.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise UserError(
            f"Training needs Linux, and this is {platform.system()}.\n"
            "inspect, evaluate, predict and report work here; train on a Linux machine."
        )


def shared_memory(folder: str = "/dev/shm") -> int | None:
    """Bytes that are free for what processes hand to each other; 0 = none can be made, None = the system has another way."""
    if not hasattr(os, "sched_getaffinity"):
        return None  # macOS
    if not os.access(folder, os.W_OK | os.X_OK):
        return 0  # it is missing, or cannot be written
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _cgroup_quota(root: Path) -> float | None:
    """Cores' worth of time that the control group of this process and those above it get; None = no limit.

    A container sees all cores of its host, and is made to wait once it has used its share of a period.

    Args:
        root: above `proc` and `sys`.
    """
    quotas = []
    for line in _words(root / "proc/self/cgroup", "\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # In a container the path may be the host's, of which only the end, or nothing, is there.
        folder = Path(path.lstrip("/"))
        quotas += [read(base / above) for above in (folder, *folder.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    return _ratio(*_words(group / "cpu.max"))


def _quota_v1(group: Path) -> float | None:
    return _ratio(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))


def _ratio(*words: str) -> float | None:
    """Microseconds of work in a period; "max" and -1 stand for no limit."""
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _words(file: Path, between: str | None = None) -> list[str]:
    try:
        return file.read_text().split(between)
    except (OSError, UnicodeDecodeError):
        return []
