"""Processes that fill their devices together; what each has then, and what it decoded itself, goes to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor

from accel_flowers.core.errors import UserError
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.placement import together
from accel_flowers.data.placement.resident import FinishedImages
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.transforms.gpu.store import DeviceImages
from accel_flowers.distributed.collectives import machine_group, run_on_all
from tests.test_pixel_source import images_of

CPU = torch.device("cpu")


def main(words: Sequence[str]) -> None:
    """DIR, a folder of photos, and the number of a photo that cannot be read, or -1; DIR/RANK.json gets what came of it."""
    folder, photos, broken = words
    together.WINDOW = 5
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    rank, size = accelerator.process_index, accelerator.num_processes
    images = images_of(load_images(photos), [{"Resize": {"size": [24, 24]}}])
    decoded: list[int] = []

    def decode(sample: int) -> Tensor:
        decoded.append(sample)
        if sample == int(broken):
            raise UserError(f"photo {sample} cannot be read")
        return images.decode(sample)

    store = DeviceImages([images.size(sample) for sample in range(len(images))], CPU)
    try:
        with machine_group(accelerator) as machine:
            run_on_all(accelerator, lambda: together.fill_together(store, decode, machine, threads=2))
        ended = ""
    except UserError as error:
        ended = str(error)
    same = ended == "" and all(torch.equal(store.image(sample), images.decode(sample)) for sample in range(len(images)))

    sampler = SequentialBatchSampler(len(images), 4)
    own = sampler.samples_of(rank, size)
    finished = FinishedImages(images, CPU, own, threads=2)
    asked: list[int] = []
    loader = accelerator.prepare(build_loader(images, sampler, num_workers=0, pin_memory=False))
    for batch in each_batch(loader):
        asked += batch["samples"].tolist()
        assert torch.equal(finished(batch), batch["pixels"])
    found = {"decoded": sorted(decoded), "same": same, "ended": ended, "asked": asked, "own": own}
    Path(folder, f"{rank}.json").write_text(json.dumps({**found, "bytes": finished.num_bytes, "size": machine.size}))
    accelerator.end_training()
