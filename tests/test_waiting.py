"""A disk that hangs is not waited for without end: the wait is told, and ended with what was being read."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.core.waiting import LIMIT_VARIABLE, batch_time_limit, file_system_of
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.distributed.health import HealthTimes
from tests.conftest import make_folder


class Slow(ImageDataset):
    """Images whose third is not handed over for `seconds`."""

    seconds = 600.0

    def _data(self, sample: int) -> bytes:
        time.sleep(self.seconds if sample == 2 else 0)
        return super()._data(sample)


class Slower(Slow):
    """Each takes nearly the limit: together they take longer."""

    seconds = 0.5

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        time.sleep(0.5)
        return super().__getitems__(keys)


def images_of(folder: Path, kind: type[ImageDataset] = Slow) -> ImageDataset:
    """All images of a new folder, in one part."""
    table = load_images(str(make_folder(folder, per_class=3)))
    transform, _ = build_transform(({"Resize": {"size": [16, 16]}},), field="data.eval_transforms")
    return kind(table, "val", Split(table.class_names, dict.fromkeys(table.files, "val")), transform, seed=0)


@pytest.mark.holds("A picture that is not handed over by a disk or network is not waited for without end")
def test_a_worker_that_reads_for_ever_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    images = images_of(tmp_path / "photos")
    loader = build_loader(images, SequentialBatchSampler(len(images), 1), num_workers=1, pin_memory=False)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as ended:
        list(each_batch(loader))
    assert time.monotonic() - begun < 300
    told = str(ended.value)
    assert images.files[2] in told
    assert images.files[1] not in told, "it was handed over"
    assert f"({file_system_of(str(tmp_path))})" in told
    assert LIMIT_VARIABLE in told
    assert images.files[2] in caplog.text, "it is told before"


def test_slow_pictures_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take longer than the limit while there is a picture in each."""
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    images = images_of(tmp_path / "photos", Slower)
    loader = build_loader(images, SequentialBatchSampler(len(images), 3), num_workers=0, pin_memory=False)
    assert sum(len(batch["labels"]) for batch in each_batch(loader)) == len(images)


@pytest.mark.holds("A picture that is not handed over by a disk or network is not waited for without end")
@pytest.mark.slow
def test_without_workers_the_command_line_ends(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from accel_flowers.core.signals import handle_signals
        from tests.test_waiting import *
        images = images_of(Path({str(tmp_path / "photos")!r}))
        handle_signals(lambda *_: None)
        loader = build_loader(images, SequentialBatchSampler(len(images), 1), num_workers=0, pin_memory=False)
        list(each_batch(loader))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(LIMIT_VARIABLE, "2")
        ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2, ended.stderr
    assert images_of(tmp_path / "same").files[2] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_program_of_somebody_elses_is_not_ended() -> None:
    from accel_flowers.core import signals

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not signals.owns_signals()
    before = signals.handle_signals(lambda *_: None)
    assert signals.owns_signals()
    signals.restore_signals(before)
    assert not signals.owns_signals()


def test_the_limit_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert batch_time_limit() == 600
    assert HealthTimes().stuck > 600, "who waits for its pictures can say why before the others end it"
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert batch_time_limit() == float("inf")
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(UserError, match=r"number of seconds, such as 1800"):
            batch_time_limit()


def test_the_file_system_is_named() -> None:
    assert file_system_of("/proc/self") == "proc at /proc"
    assert file_system_of("/no/such/place").endswith(" at /")
