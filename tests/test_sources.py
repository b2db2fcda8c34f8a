"""An image source: what a folder, the hub or somebody else's store must give, and what is made of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decide_split import decide_split
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.source import ImageSource
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable, content_digest
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.data.validate import validate_all
from tests.conftest import make_folder


class Packed:
    """All images in one file, found by their offsets: a store of somebody's own, which knows its digests."""

    given_parts = None

    def __init__(self, file: Path, table: ImageTable) -> None:
        self.file, self.names, self.labels, self.class_names = file, table.files, table.labels, table.class_names
        images = [table.read(row) for row in range(len(table.files))]
        self.offsets = np.cumsum([0, *map(len, images)])
        self.digests = [content_digest(image) for image in images]
        file.write_bytes(b"".join(images))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.offsets[row])
            return file.read(self.offsets[row + 1] - self.offsets[row])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return load_images(str(make_folder(tmp_path_factory.mktemp("source") / "photos", per_class=6)))


@pytest.fixture(scope="module")
def packed(folder: ImageTable, tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    images = Packed(tmp_path_factory.mktemp("packed") / "images", folder)
    return ImageTable("packed", images, images.labels, images.class_names)


def batches(table: ImageTable, num_workers: int) -> Iterator[torch.Tensor]:
    transform, _ = build_transform([{"CenterCrop": {"size": 16}}], field="data.eval_transforms")
    images = ImageDataset(table, "val", Split(table.class_names, dict.fromkeys(table.files, "val")), transform, seed=0)
    loader = build_loader(images, SequentialBatchSampler(len(images), 4), num_workers=num_workers, pin_memory=False)
    for batch in each_batch(loader):
        yield batch["pixels"]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=[pytest.mark.multiprocess, pytest.mark.slow])])
def test_a_source_of_somebodys_own_loads_as_the_folder_does(
    folder: ImageTable, packed: ImageTable, num_workers: int
) -> None:
    images: ImageSource = packed.images
    assert pickle.loads(pickle.dumps(folder.images)).read(3) == images.read(3)
    for one, other in zip(batches(folder, num_workers), batches(packed, num_workers), strict=True):
        assert torch.equal(one, other)
    split = decide_split(packed, "60/20/20", seed=0, on_bad_image="stop")
    assert split == decide_split(folder, "60/20/20", seed=0, on_bad_image="stop")


def test_digests_that_are_known_spare_the_reading(packed: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed.images, "read", lambda row: pytest.fail("it was read"))
    assert validate_all(packed, [5, 2]) == [(packed.images.digests[5], None), (packed.images.digests[2], None)]


@pytest.mark.parametrize("how", ["gone", "a folder", "a pipe"])
def test_what_cannot_be_read_is_named(how: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=2)
    table = load_images(str(root))
    file = root / table.files[1]
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how == "a pipe":
        os.mkfifo(file)
    cause = {"gone": "No such file or directory", "a folder": "Is a directory", "a pipe": "not a regular file"}[how]
    with pytest.raises(BadImageError) as caught:
        table.read(1)
    assert caught.value.cause == cause
    assert table.files[1] in str(caught.value)


def test_rows_are_found_by_their_names(folder: ImageTable) -> None:
    wanted = [folder.files[row] for row in (4, 0, 9)]
    assert folder.rows_of(wanted).tolist() == [4, 0, 9]
    assert folder.row_of(folder.files[7]) == 7
    assert folder.has(folder.files[7])
    assert not folder.has("nobody/1.png")
    with pytest.raises(KeyError):
        folder.rows_of(["nobody/1.png"])


def test_a_folder_is_loaded_without_the_library_for_the_hub(folder: ImageTable) -> None:
    """It takes each process and each worker most of a second."""
    code = (
        "import sys; from accel_flowers.data.sources.load import load_images; import accel_flowers.data.dataset;"
        "table = load_images(sys.argv[1]); table.read(0); sys.exit('datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, folder.source], check=False).returncode == 0


def test_an_empty_row_of_the_hub_is_a_bad_image(tmp_path: Path) -> None:
    import datasets

    from accel_flowers.data.sources.hub import HubImages

    values: dict[str, Any] = {"image": [None, {"bytes": b"x", "path": None}], "label": [0, 0]}
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a"])}
    rows = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    images = HubImages(rows, ("train/00000000", "train/00000001"), np.zeros(2, np.int64), ("a",))
    assert images.read(1) == b"x"
    with pytest.raises(BadImageError, match="train/00000000"):
        images.read(0)
