"""Pixels, order and chance on this machine's device, looked at by a process of its own.

Started as a module, `python -m accel_flowers.selfcheck.pixels PHOTOS DEVICE`, it prints one JSON object: "pixels", "order" and
"chance" → what does not hold there, a sentence each, and "looked_at" → how much was compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel_flowers.config.loading import load_recipe, recipe_names
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.placement.resident import FinishedImages, WholeImages
from accel_flowers.data.sampler import BatchPlan, SampleKey, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.models.preprocessing import settle_preprocessing

CROP = ({"RandomResizedCrop": {"size": 64}}, "RandomHorizontalFlip")
EVALUATION = ({"Resize": {"size": 72}}, {"CenterCrop": {"size": 64}})
_MAX_LEVELS = 2
"""Of 255, where colours are not changed: docs/guarantees.md."""
_MEAN_LEVELS, _MOST_LEVELS = 0.3, 3.0
"""Mean difference, and that of 999 in 1,000 values, where they are: a level before a change of contrast can become several."""
_PAINTS = ("ColorJitter", "RandomGrayscale", "Grayscale", "GaussianBlur")


def look(photos: str, device: torch.device) -> dict[str, Any]:
    """Compare; see the module."""
    table = load_images(photos)
    recipes = {name: settle_preprocessing(load_recipe(name))[0].data.preprocessing() for name in recipe_names()}
    lists = {"crop and flip": CROP, **{name: each.train_transforms for name, each in recipes.items()}}
    wrong, compared = [], 0
    for name, specs in lists.items():
        transform, _ = build_transform(specs, field="data.train_transforms")
        paints = any(kind in json.dumps(list(specs)) for kind in _PAINTS)
        for way, far, factor in _ways(table, transform, device):
            compared += 1
            wrong += [f"{name}, from {way}: {problem}" for problem in _judge(far, factor, paints=paints)]
    wrong += _evaluation(table, device)
    return {
        "pixels": wrong,
        "order": list(order_problems()),
        "chance": list(chance_problems(table)),
        "looked_at": f"{compared} ways of {len(lists)} lists of transforms, {len(table.files)} pictures",
    }


def order_problems(num_samples: int = 37, epochs: int = 3) -> Iterator[str]:
    """What is wrong with the order of samples."""
    one = BatchPlan(num_samples, epochs, 8)
    shown = [key.sample for batch in StreamBatchSampler(one, seed=3) for key in batch]
    passes = [shown[first : first + num_samples] for first in range(0, epochs * num_samples, num_samples)]
    if any(sorted(each) != list(range(num_samples)) for each in passes):
        yield "a sample does not come once an epoch"
    if passes[0] == passes[1]:
        yield "two epochs have the same order"
    for processes in (2, 4):
        plan = BatchPlan(num_samples, epochs, 8, processes, 8 // processes)
        if [key.sample for batch in StreamBatchSampler(plan, seed=3) for key in batch] != shown:
            yield f"{processes} processes see other samples"
    later = [key.sample for batch in StreamBatchSampler(one, seed=3, start_step=5) for key in batch]
    if later != shown[5 * 8 :]:
        yield "a run that goes on after step 5 sees other samples"


def chance_problems(table: ImageTable) -> Iterator[str]:
    """What is wrong with the random boxes and flips of samples."""
    transform = build_transform(CROP, field="data.train_transforms")[0]
    images = _part(table, transform)
    first = _pixels(images, [SampleKey(0, 0, 0), SampleKey(1, 0, 0)])
    torch.manual_seed(99)
    torch.rand(7)
    again = _pixels(images, [SampleKey(1, 0, 5), SampleKey(0, 0, 5)])
    if not (torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])):
        yield "what is done to a sample depends on more than the sample and its epoch"
    if all(torch.equal(first[0], _pixels(images, [SampleKey(0, epoch, 0)])[0]) for epoch in range(1, 5)):
        yield "each epoch does the same to a sample"
    drawn = transform.on_device()
    assert drawn is not None, "crop and flip have their counterparts"
    # All of one size, so that the boxes differ by chance alone.
    boxes = images.without_pixels((drawn, [(256, 256)] * len(images)))
    rows = _batch(boxes, [SampleKey(sample, 0, 0) for sample in range(len(images))])["random_params"]
    if len(rows.unique(dim=0)) < len(rows):
        yield "the same is done to two samples"


def _part(table: ImageTable, transform: ImageTransform) -> ImageDataset:
    split = Split(table.class_names, dict.fromkeys(table.files, "train"))
    return ImageDataset(table, "train", split, transform, seed=5)


def _batch(images: ImageDataset, keys: list[SampleKey]) -> Batch:
    batch = images.__getitems__(keys)
    if isinstance(batch, BadImageError):
        raise batch
    return batch


def _pixels(images: ImageDataset, keys: list[SampleKey]) -> Tensor:
    return _batch(images, keys)["pixels"]


def _ways(table: ImageTable, transform: ImageTransform, device: torch.device) -> Iterator[tuple[str, Tensor, int]]:
    """Each way of pixels, how far (in levels) it is from Pillow and torchvision's transforms, and how many times as far
    as promised it may be: on a GPU resizes are computed in float16 by themselves, whose weights have 11 bits."""
    files = _part(table, transform)
    keys = [SampleKey(sample, epoch, 0) for sample in range(len(files)) for epoch in (0, 1)]
    reference = _pixels(_part(table, transform.plainly()), keys).int()
    yield "files", (_pixels(files, keys).int() - reference).abs(), 1
    on_device = transform.on_device()
    if on_device is None:
        return
    sizes = [files.size(sample) for sample in range(len(files))]
    whole = WholeImages(files, sizes, on_device, device)
    whole.fill(threads=1)
    batch = _on(_batch(files.without_pixels((on_device, sizes)), keys), device)
    if device.type == "cuda":
        yield f"{device} in float16", (whole(batch).cpu().int() - reference).abs(), 2
    on_device.dtype = torch.float32
    yield str(device), (whole(batch).cpu().int() - reference).abs(), 1


def _evaluation(table: ImageTable, device: torch.device) -> list[str]:
    images = _part(table, build_transform(EVALUATION, field="data.eval_transforms")[0])
    keys = [SampleKey(sample, 0, 0) for sample in range(len(images))]
    finished = FinishedImages(images, device, threads=1)
    made = finished(_on(_batch(images.without_pixels(None), keys), device)).cpu()
    return [] if torch.equal(made, _pixels(images, keys)) else [f"evaluation pictures on {device} are others"]


def _on(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors there."""
    moved = batch.copy()
    moved["labels"], moved["samples"] = batch["labels"].to(device), batch["samples"].to(device)
    if "random_params" in batch:
        moved["random_params"] = batch["random_params"].to(device)
    return moved


def _judge(far: Tensor, factor: int, *, paints: bool) -> list[str]:
    values = far.numpy().ravel()
    if not paints:
        return [] if values.max() <= factor * _MAX_LEVELS else [f"up to {values.max()} levels from the reference"]
    mean, most = float(values.mean()), float(np.quantile(values, 0.999))
    if mean < factor * _MEAN_LEVELS and most <= factor * _MOST_LEVELS:
        return []
    return [f"{mean:.2f} levels from the reference in the mean, {most:.0f} for one in a thousand"]


if __name__ == "__main__":
    json.dump(look(sys.argv[1], torch.device(sys.argv[2])), sys.stdout)
