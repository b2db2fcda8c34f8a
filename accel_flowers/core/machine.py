"""What this machine gives: its processor, and the cores that this process may use. No torch."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Literal

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


_OVER_A_NETWORK = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "ocfs2",
    "orangefs", "panfs", "pvfs2", "smb", "virtiofs", "wekafs", "sshfs", "s3fs", "gcsfuse", "juicefs", "blobfuse", "mountpoint-s3",
)  # fmt: skip
"""Beginnings of the names of file systems whose disks are elsewhere, with or without "fuse." in front."""


def kind_of_disk(path: Path, mounts: str | None = None) -> Literal["network", "memory", "local"]:
    """What the files of a folder, which need not be there yet, would lie on.

    Args:
        path: the folder.
        mounts: what /proc/self/mountinfo says; None = it is read. Where there is none, all is taken for local.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return "local"
    place, longest, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])  # blanks are written as numbers
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(longest):  # the last one lies over those before it
            longest, kind = point, after.split()[0]
    if kind in ("tmpfs", "ramfs"):
        return "memory"
    return "network" if kind.removeprefix("fuse.").startswith(_OVER_A_NETWORK) else "local"


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
