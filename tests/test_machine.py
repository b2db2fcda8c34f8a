"""Which cores a process may use, and what works on a system that is not Linux."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from accel_flowers.cli import main
from accel_flowers.config.schema import Config
from accel_flowers.core import machine
from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import available_cores
from accel_flowers.data.workers import end_with_the_training
from accel_flowers.training.benchmark import benchmark
from accel_flowers.training.train import train
from tests.conftest import CLASSES, make_folder
from tests.made_runs import make_run


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.holds("A container's share of the cores is what counts")
@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {}, None),
        ("0::/pod/box", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "400000 100000"}, 2.0),
        ("0::/../../of/the/host", {"cpu.max": "300000 100000"}, 3.0),
        ("3:cpu,cpuacct:/docker/x\n0::/", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4.0),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/a", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None),
        ("nonsense", {"cpu.max": "1 0"}, None),
        ("0::/", {"cpu.max": "1 0"}, None),
    ],
)  # fmt: skip
def test_the_share_of_a_container(groups: str, limits: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    """Version 2 and version 1, at any height of the tree."""
    write(tmp_path, proc__self__cgroup=groups)
    for name, text in limits.items():
        write(tmp_path / "sys/fs/cgroup", **{name: text})
    assert machine._cgroup_quota(tmp_path) == expected


@pytest.mark.holds("A container's share of the cores is what counts")
@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (2.9, 2), (64.0, 8)])
def test_cores_are_the_smaller_of_both(quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: quota)
    assert available_cores() == cores


def test_without_affinity_the_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: None)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.holds("inspect, evaluate and predict work without Linux")
@pytest.mark.parametrize("what", [train, benchmark])
def test_without_linux_a_training_says_so(what: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(UserError, match="Training needs Linux"):
        what(Config(run_dir=str(tmp_path / "run")))  # type: ignore[operator]


def code_of(words: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


@pytest.mark.holds("inspect, evaluate and predict work without Linux")
def test_without_linux_all_else_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What macOS lacks of Python's standard library."""
    photos = make_folder(tmp_path / "photos", per_class=4)
    model = make_run(tmp_path / "run", tmp_path / "own", CLASSES) / "model"
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(signal, "sigwaitinfo")
    assert code_of(["inspect", str(photos)]) == 0
    assert code_of(["evaluate", str(model), "--data", str(photos)]) == 0
    assert code_of(["predict", str(model), str(photos)]) == 0
    worker = multiprocessing.get_context("spawn").Process(target=_begin_a_worker)
    worker.start()
    worker.join()
    assert worker.exitcode == 0


def _begin_a_worker() -> None:
    """As a loader's worker begins there."""
    del signal.sigwaitinfo
    end_with_the_training(0)


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /users rw,relatime shared:9 - nfs4 server:/users rw
31 30 8:2 / /users/local\040disk rw - xfs /dev/sdb1 rw
32 22 0:41 / /ram rw - tmpfs tmpfs rw
33 22 0:42 / /scratch rw - fuse.sshfs me@host: rw
34 22 0:43 / /lustre rw - lustre 10.0.0.1@tcp:/fs rw
35 22 0:44 / /mnt rw - ext4 /dev/sdc rw
36 22 0:45 / /mnt rw - beegfs beegfs_nodev rw
nonsense
"""


@pytest.mark.holds("A cache of decoded pictures lies on a disk of the machine")
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/cache", "local"),
        ("/", "local"),
        ("/users/me/.cache/not/there/yet", "network"),
        ("/usershelf", "local"),
        ("/users/local disk/cache", "local"),
        ("/ram/x", "memory"),
        ("/scratch/x", "network"),
        ("/lustre", "network"),
        ("/mnt/x", "network"),
    ],
)
def test_what_a_folder_lies_on(path: str, kind: str) -> None:
    assert machine.kind_of_disk(Path(path), MOUNTS) == kind
    assert machine.kind_of_disk(Path(path), "") == "local"
