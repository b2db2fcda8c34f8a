#!/usr/bin/env python
"""From JPEG files to normalised batches on one core: this project's loader beside a plain `datasets` pipeline.

  files     `ImageDataset` (fast way for JPEGs, uint8 batch) and one normalisation of the batch
  cache     the same from images that were decoded before, in a memory-mapped file
  datasets  `load_dataset("imagefolder")` with `with_transform`, torchvision's transforms on Pillow images, float32 tensors
            stacked: what transformers' image classification example without Trainer does

Both in one process without workers, one thread, in turn (A B A B ...), after a warm-up that also fills the file cache.
Prints images a second of every round, the medians and the ratio. Other work on the machine spoils single rounds.

  python benchmarks/loading.py --data.path photos
  python benchmarks/loading.py --data.path photos --recipe eval
  python benchmarks/loading.py --data.path photos --recipe colour
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from common import PROJECT, machine, ratio, spread

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(PROJECT))

import torch
from datasets import load_dataset
from torch import Tensor
from torchvision import transforms as v1

from accel_flowers.data.cache import DecodedImages, open_cache
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.sampler import BatchPlan, SequentialBatchSampler, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable, content_digest
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.normalizer import Normalizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
RECIPES: dict[str, tuple[list[Any], list[Any]]] = {
    "train": (
        [{"RandomResizedCrop": {"size": 224}}, "RandomHorizontalFlip"],
        [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip()],
    ),
    "eval": ([{"Resize": {"size": 256}}, {"CenterCrop": {"size": 224}}], [v1.Resize(256), v1.CenterCrop(224)]),
    "colour": (
        [
            {"RandomResizedCrop": {"size": 224}}, "RandomHorizontalFlip", {"ColorJitter": COLOUR},
            {"RandomRotation": {"degrees": 10}}, {"RandomGrayscale": {"p": 0.2}},
        ],
        [
            v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ColorJitter(**COLOUR), v1.RandomRotation(10),
            v1.RandomGrayscale(0.2),
        ],
    ),
}  # fmt: skip


def from_cache(folder: str, recipe: str) -> Iterator[Tensor]:
    """The cache is made before the first batch, in a temporary folder."""
    table = load_images(folder)

    with tempfile.TemporaryDirectory() as root:
        contents = [content_digest(table.read(row)) for row in range(len(table.files))]
        decoded, _ = open_cache(Path(root), table.files, contents, table.read, max_bytes=2**40)
        yield from ours(table, recipe, decoded)


def from_files(folder: str, recipe: str) -> Iterator[Tensor]:
    return ours(load_images(folder), recipe, None)


def ours(table: ImageTable, recipe: str, decoded: DecodedImages | None) -> Iterator[Tensor]:
    transform, _ = build_transform(RECIPES[recipe][0], field="benchmark")
    split = Split(table.class_names, dict.fromkeys(table.files, "train"))
    images = ImageDataset(table, "train", split, transform, seed=0, decoded=decoded)
    normalizer = Normalizer(MEAN, STD, channels_last=True)
    stream = StreamBatchSampler(BatchPlan(len(images), 10**6, BATCH), 0)
    keys = cycle(SequentialBatchSampler(len(images) // BATCH * BATCH, BATCH)) if recipe == "eval" else iter(stream)
    for batch in keys:
        yield normalizer(images.__getitems__(batch)["pixels"])  # type: ignore[index]


def plain(folder: str, recipe: str) -> Iterator[Tensor]:
    dataset = load_dataset("imagefolder", data_dir=folder, split="train")
    transform = v1.Compose([*RECIPES[recipe][1], v1.ToTensor(), v1.Normalize(MEAN, STD)])

    def transform_rows(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]], "label": rows["label"]}

    dataset = dataset.with_transform(transform_rows)
    order = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(dataset), generator=order).split(BATCH)[:-1]:
            yield torch.stack(dataset[rows.tolist()]["pixel_values"])


def images_a_second(batches: Iterator[Tensor], seconds: float) -> float:
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="folder", required=True, help="folder with one sub-folder of JPEGs a class")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="train", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="of each; default %(default)s")
    parser.add_argument("--seconds", type=float, default=4, help="of a round; default %(default)s")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one thread of {machine('torch', 'torchvision', 'datasets', 'pillow', 'simplejpeg')}")
    makers: dict[str, Callable[[str, str], Iterator[Tensor]]] = {
        "files": from_files,
        "cache": from_cache,
        "datasets": plain,
    }
    batches = {name: make(asked.folder, asked.recipe) for name, make in makers.items()}
    rounds: dict[str, list[float]] = {name: [] for name in batches}
    for each in batches.values():
        images_a_second(each, asked.seconds)
    for number in range(1, asked.rounds + 1):
        for name, each in batches.items():
            rounds[name].append(images_a_second(each, asked.seconds))
        print(f"{number:2}  " + "  ".join(f"{name} {rates[-1]:6.0f}" for name, rates in rounds.items()), flush=True)
    for name, rates in rounds.items():
        print(f"{asked.recipe} {name}: pictures/s {spread(rates, 0)}")
    for name in ("files", "cache"):
        print(f"{asked.recipe} {name} / datasets: {ratio(rounds[name], rounds['datasets'])}")


if __name__ == "__main__":
    main()
