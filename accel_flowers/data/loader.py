"""Data loaders over the batches of all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader

from accel_flowers.core.errors import UserError
from accel_flowers.core.signals import waiting_for_batch
from accel_flowers.data.dataset import Batch, ImageDataset, pack, unpack
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.sampler import SequentialBatchSampler, StreamBatchSampler
from accel_flowers.data.workers import end_with_the_training, start_forkserver


def each_batch(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a loader that `build_loader` made.

    Raises:
        BadImageError: an image could be read before the training, and now it cannot.
        UserError: for minutes no image came (see `BatchWatch`).
    """
    images = getattr(loader, "dataset", None)
    with images.watch() if isinstance(images, ImageDataset) else nullcontext() as watch:
        try:
            yield from _unwatched(loader)
        except RuntimeError as error:
            if watch is None or watch.ended is None or "DataLoader worker (pid" not in str(error):
                raise
            raise UserError(watch.ended) from None


def _unwatched(loader: DataLoader[Batch]) -> Iterator[Batch]:
    packed: Any
    with waiting_for_batch():
        waiting = iter(loader)
    while True:
        with waiting_for_batch():
            packed = next(waiting, None)
        if packed is None:
            return
        if isinstance(packed, BadImageError):
            raise packed
        yield unpack(packed)


def build_loader(
    images: ImageDataset, batches: StreamBatchSampler | SequentialBatchSampler, *, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """A loader over the batches of all processes; `Accelerator.prepare` deals them out.

    Raises:
        UserError: there shall be workers, and a transform of the user's own cannot be sent to them.
    """
    if num_workers:
        images.check_can_be_sent()
        start_forkserver()
    return DataLoader(
        images.noted_by(num_workers),
        batch_sampler=batches,
        collate_fn=pack,
        num_workers=num_workers,
        # An evaluation's workers go with it: kept, they would stand beside the training's with memory and batches of their own.
        persistent_workers=num_workers > 0 and isinstance(batches, StreamBatchSampler),
        pin_memory=pin_memory,
        # Workers are forked from a process that has used threads; a spawned one starts clean.
        multiprocessing_context="forkserver" if num_workers else None,
        worker_init_fn=end_with_the_training if num_workers else None,
    )
