"""Batches: the right images under the right labels, and chance that belongs to the sample and the epoch alone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from accel_flowers.core import machine
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import BatchPlan, SampleKey, SequentialBatchSampler, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.data.workers import local_cores, plan_workers
from tests.conftest import make_folder

AUGMENT = [
    {"RandomResizedCrop": {"size": 16}},
    "RandomHorizontalFlip",
    {"ColorJitter": {"brightness": 0.5}},
    {"RandomErasing": {"p": 0.5}},
]
PLAIN = [{"CenterCrop": {"size": 24}}]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return load_images(str(make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=6)))


def split_of(table: ImageTable) -> Split:
    """Every third image validates, one is in no part, the rest is trained on."""
    parts = {name: "val" if row % 3 == 0 else "train" for row, name in enumerate(table.files)}
    del parts["rose/02.png"]
    return Split(table.class_names, parts, {"rose/02.png": "blurred"})


def images_of(table: ImageTable, specs: Sequence[Any] = AUGMENT, *, part: str = "train", seed: int = 0) -> ImageDataset:
    transform, _ = build_transform(specs, field="data.train_transforms")
    return ImageDataset(table, part, split_of(table), transform, seed=seed)


def keys(*samples: int, epoch: int = 0, micro_batch: int = 0) -> list[SampleKey]:
    return [SampleKey(sample, epoch, micro_batch) for sample in samples]


def pixels_of(images: ImageDataset, sample: int, epoch: int = 0) -> Tensor:
    """One image, asked for alone."""
    return images.__getitems__(keys(sample, epoch=epoch))["pixels"][0]


def all_equal(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return len(one) == len(other) and all(
        a["micro_batch"] == b["micro_batch"]
        and all(torch.equal(a[name], b[name]) for name in ("pixels", "labels", "samples"))
        for a, b in zip(one, other, strict=True)
    )


# --- which image, which label


@pytest.mark.parametrize("part", ["train", "val"])
def test_samples_of_a_part_are_its_files_in_order(part: str, table: ImageTable) -> None:
    images = images_of(table, PLAIN, part=part)
    files = split_of(table).files_of(part)
    assert images.files == tuple(files)
    assert len(images) == len(files) == len(images.labels)
    batch = images.__getitems__(keys(*reversed(range(len(files))), micro_batch=7))
    assert batch["samples"].tolist() == list(reversed(range(len(files))))
    assert batch["micro_batch"] == 7
    assert (batch["pixels"].dtype, batch["labels"].dtype, batch["samples"].dtype) == (
        torch.uint8, torch.int64, torch.int64,
    )  # fmt: skip
    for sample, label, pixels in zip(batch["samples"], batch["labels"], batch["pixels"], strict=True):
        name = files[sample]
        assert table.class_names[label] == name.split("/")[0]
        crop = np.asarray(Image.open(Path(table.source) / name))[3:27, 8:32]  # the middle of 40 x 30
        assert np.array_equal(pixels.permute(1, 2, 0), crop)


def test_labels_are_those_of_the_table(table: ImageTable) -> None:
    """As evaluation maps them to the classes of a model."""
    other = replace(table, labels=table.labels + 5)
    assert torch.equal(images_of(other).labels, images_of(table).labels + 5)


def test_images_come_upright_and_in_colour(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        image = Image.new("L", (40, 20), 200)
        exif = image.getexif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(tmp_path / name / "1.jpg", exif=exif)
    table = load_images(str(tmp_path))
    images = ImageDataset(table, "val", Split(("a", "b"), dict.fromkeys(table.files, "val")), Shape(), seed=0)
    assert images.__getitems__(keys(0, 1))["pixels"].flatten(1).tolist() == [[40, 20, 3]] * 2


class Shape(ImageTransform):
    """A transform that makes the image's height, width and channels."""

    def __init__(self) -> None:
        super().__init__([])

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.tensor(np.asarray(image).shape, dtype=torch.uint8).view(3, 1, 1)


def test_image_that_broke_during_the_run_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", per_class=6)
    images = images_of(load_images(str(folder)))
    place = images.files.index("rose/04.png")
    (folder / "rose/04.png").write_bytes(b"")
    assert pixels_of(images, place - 1).shape == (3, 16, 16)
    error = images.__getitems__(keys(place))
    assert isinstance(error, BadImageError)
    assert str(error).endswith("rose/04.png: the file is empty")


# --- chance


@pytest.mark.holds("Crop, flip, colour, erasing of a sample")
def test_same_key_same_pixels_whatever_was_drawn_before(table: ImageTable) -> None:
    images = images_of(table)
    first = [pixels_of(images, sample) for sample in range(len(images))]
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        assert all(torch.equal(pixels_of(images, sample), pixels) for sample, pixels in enumerate(first))


@pytest.mark.holds("Crop, flip, colour, erasing of a sample")
def test_same_key_same_pixels_whatever_else_is_in_the_batch(table: ImageTable) -> None:
    images = images_of(table)
    alone = [pixels_of(images, sample) for sample in range(len(images))]
    for samples in ([0, 1, 2, 3], [3, 2, 1, 0], [5, 3, 5], list(range(len(images)))):
        batch = images.__getitems__(keys(*samples, micro_batch=9))
        for sample, pixels in zip(samples, batch["pixels"], strict=True):
            assert torch.equal(pixels, alone[sample])


def test_one_batch_may_hold_two_epochs(table: ImageTable) -> None:
    """At the seam of two epochs a sample can even come twice."""
    images = images_of(table)
    batch = images.__getitems__(keys(4, epoch=0) + keys(4, epoch=1))
    assert torch.equal(batch["pixels"][0], pixels_of(images, 4, epoch=0))
    assert torch.equal(batch["pixels"][1], pixels_of(images, 4, epoch=1))
    assert not torch.equal(batch["pixels"][0], batch["pixels"][1])


@pytest.mark.holds("Crop, flip, colour, erasing of a sample")
def test_chance_differs_between_epochs_samples_and_seeds(tmp_path: Path) -> None:
    """Of one and the same image under several names, no two results are equal."""
    folder = make_folder(tmp_path / "photos", per_class=6)
    for image in folder.glob("*/*"):
        image.write_bytes((folder / "rose/00.png").read_bytes())
    table = load_images(str(folder))
    results = [
        pixels_of(images_of(table, seed=seed), sample, epoch).numpy().tobytes()
        for seed in (0, 1)
        for sample in range(5)
        for epoch in range(5)
    ]
    assert len(set(results)) == len(results) == 50


def test_without_chance_epochs_do_not_differ(table: ImageTable) -> None:
    images = images_of(table, PLAIN)
    assert torch.equal(pixels_of(images, 3, epoch=0), pixels_of(images, 3, epoch=9))


# --- loaders


def test_loader_yields_the_batches_of_the_stream(table: ImageTable) -> None:
    images = images_of(table)
    stream = StreamBatchSampler(BatchPlan(len(images), epochs=2, global_batch_size=4, micro_batch_size=2), seed=3)
    batches = list(each_batch(build_loader(images, stream, num_workers=0, pin_memory=False)))
    assert all_equal(batches, [images.__getitems__(batch) for batch in stream])
    assert [batch["micro_batch"] for batch in batches] == list(range(len(stream)))


def test_evaluation_loader_shows_every_image_once(table: ImageTable) -> None:
    images = images_of(table, PLAIN, part="val")
    batches = list(
        each_batch(build_loader(images, SequentialBatchSampler(len(images), 4), num_workers=0, pin_memory=False))
    )
    assert [len(batch["samples"]) for batch in batches] == [4, 2]
    assert torch.cat([batch["samples"] for batch in batches]).tolist() == list(range(6))
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), images.labels)


@pytest.mark.holds("Crop, flip, colour, erasing of a sample")
@pytest.mark.multiprocess
def test_workers_change_nothing(table: ImageTable) -> None:
    images = images_of(table)
    stream = StreamBatchSampler(BatchPlan(len(images), epochs=2, global_batch_size=4), seed=3)
    batches = {
        workers: list(each_batch(build_loader(images, stream, num_workers=workers, pin_memory=False)))
        for workers in (0, 2)
    }
    assert len(batches[0]) == len(stream)
    assert all_equal(batches[0], batches[2])


# --- the number of workers


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (3, 1), (16, 1), (64, 2)])
def test_a_training_on_the_cpu_keeps_its_cores(cores: int, workers: int) -> None:
    assert plan_workers(cores, on_cpu=True) == workers


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 16, 64])
def test_workers_feed_the_device_and_are_no_more_than_the_cores(cores: int) -> None:
    for loaded, trained in ((900, 100), (900, 1500), (900, 9000), (2000, 9000), (30, 9000)):
        workers = plan_workers(cores, on_cpu=False, loaded_per_second=loaded, trained_per_second=trained)
        assert 1 <= workers <= max(1, min(cores, 16))
        most = workers == min(cores if cores <= 2 else cores - 1, 16)
        assert most or workers * loaded >= 1.3 * trained
        assert workers == 1 or (workers - 1) * loaded < 1.5 * trained
    assert 1 <= plan_workers(cores, on_cpu=False) <= min(cores, 8)


@pytest.mark.parametrize(("processes", "expected"), [(1, 8), (2, 4), (3, 2), (8, 1), (64, 1)])
def test_processes_of_a_machine_share_its_cores(processes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert local_cores(processes) == expected


def test_the_rate_of_loading_is_what_a_clock_says(table: ImageTable) -> None:
    images = images_of(table)
    begun = time.perf_counter()
    rate = images.rate(8)
    assert rate >= 8 / (time.perf_counter() - begun)
