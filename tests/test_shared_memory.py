"""Workers hand their batches over through shared memory: where it is small there are fewer, and no batch is waited for in vain."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core import machine, parallel
from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import shared_memory
from accel_flowers.core.parallel import map_in_order
from accel_flowers.data import workers
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.data.workers import fit_shared_memory, workers_as_user_error
from tests.conftest import make_folder

MIB = 2**20


@pytest.mark.holds("A loader that cannot hand over a batch ends the run")
@pytest.mark.parametrize(
    ("free", "wanted", "batches", "processes", "fits"),
    [
        (4096 * MIB, 8, [38 * MIB], 1, 8),
        (64 * MIB, 2, [38 * MIB, 38 * MIB], 1, 0),
        (64 * MIB, 8, [4 * MIB], 1, 5),
        (64 * MIB, 8, [4 * MIB], 2, 2),
        (64 * MIB, 8, [2 * MIB, 2 * MIB], 1, 5),
        (0, 4, [1], 1, 0),
        (0, 0, [1], 1, 0),
        (None, 4, [38 * MIB], 1, 4),
    ],
)
def test_there_are_no_more_workers_than_room(
    free: int | None, wanted: int, batches: list[int], processes: int, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "shared_memory", lambda: free)
    found, told = fit_shared_memory(wanted, batches, processes)
    assert found == fits
    assert (told is not None) == (fits < wanted)
    if told is not None:
        assert f"{fits} workers for each process instead of {wanted}" in told
        assert "/dev/shm" in told


def test_the_room_is_that_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_memory(str(tmp_path / "missing")) == 0
    free = shared_memory(str(tmp_path))
    assert free is not None
    assert free > 0
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a file system that is read-only
    assert shared_memory(str(tmp_path)) == 0
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.shared_memory() is None


def test_without_it_one_process_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "shared_memory", lambda: 0)
    here = os.getpid()
    assert [pid for _, pid in map_in_order(with_pid, range(3), processes=2)] == [here] * 3


def with_pid(item: int) -> tuple[int, int]:
    return item, os.getpid()


class Short(ImageDataset):
    """Images of a worker for whom no memory can be shared."""

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return super().__getitems__(keys)


@pytest.mark.holds("A loader that cannot hand over a batch ends the run")
@pytest.mark.slow
def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(tmp_path: Path) -> None:
    table = load_images(str(make_folder(tmp_path / "photos", per_class=4)))
    transform, _ = build_transform(({"Resize": {"size": [64, 64]}},), field="data.eval_transforms")
    images = Short(table, "val", Split(table.class_names, dict.fromkeys(table.files, "val")), transform, seed=0)
    loader = build_loader(images, SequentialBatchSampler(len(images), 4), num_workers=1, pin_memory=False)
    begun = time.monotonic()
    with (
        pytest.raises(UserError, match=r"(?s)worker of the loader is gone.*shared memory.*num-workers 0"),
        workers_as_user_error(),
    ):
        list(each_batch(loader))
    assert time.monotonic() - begun < 30
