"""Parts of an image table → data loaders whose every random choice follows from (seed, epoch, sample)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import copy
from typing import Any, NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from accel_flowers.core.waiting import BatchWatch
from accel_flowers.data.cache import DecodedImages
from accel_flowers.data.decoding.jpeg import decode_pixels, read_header
from accel_flowers.data.decoding.pillow import BadImageError, decode_image
from accel_flowers.data.sampler import SampleKey, random_key
from accel_flowers.data.sources.source import read_image
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import ImageTransform
from accel_flowers.data.transforms.gpu.resize import ResizeWeights
from accel_flowers.data.transforms.gpu.stages import OutputExtent
from accel_flowers.data.transforms.gpu.transform import DeviceTransform


class Batch(TypedDict):
    """What a loader yields: pixels, or, where the images lie on the device, what to do to them."""

    pixels: NotRequired[Tensor]
    """uint8 [B, 3, H, W]"""
    random_params: NotRequired[Tensor]
    """float64 [B, K]: the chance of each sample, as `DeviceTransform.apply` takes it."""
    output_extent: NotRequired[OutputExtent]
    """What shapes the device's work on these draws."""
    resizes: NotRequired[tuple[ResizeWeights, ...]]
    """What of this work was done already, as `DeviceTransform.apply` takes it."""
    labels: Tensor
    """int64 [B]; or float32 [B, C] of 0 and 1, where images may have several"""
    samples: Tensor
    """int64 [B]: index of each image in its part"""
    micro_batch: int
    """number of the batch in the run, over all processes"""


class ImageDataset(Dataset[Batch]):
    """One part of a data set as the loader sees it: `SampleKey`s in, a batch out.

    Args:
        table: all images.
        part: "train", "val" or "test".
        split: which rows belong to it; a row's place in the part is its sample number.
        transform: upright RGB image → uint8 [3, H, W].
        seed: the run's.
        decoded: the table's images, decoded; None = each is decoded anew.
    """

    def __init__(
        self,
        table: ImageTable,
        part: str,
        split: Split,
        transform: ImageTransform,
        *,
        seed: int,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.files: tuple[str, ...] = tuple(split.files_of(part))
        self._rows = table.rows_of(self.files)
        self.labels = torch.from_numpy(table.labels[self._rows])
        """int64 [N], or bool [N, C]"""
        self._images = table.images
        self._transform = transform
        self._seed = seed
        self._decoded = decoded
        self._source = table.source
        self._made = _notes(1)
        self._pixels_on_device = False
        self._param_sampler: tuple[DeviceTransform, Sequence[tuple[int, int]]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, sample: int) -> Image.Image:
        """One image as people see it: upright RGB, whole.

        Raises:
            BadImageError: it cannot be read any more.
        """
        return decode_image(self._data(sample), self.files[sample])

    def decode(self, sample: int) -> Tensor:
        """One image, whole, upright RGB, uint8 [height, width, 3].

        Raises:
            BadImageError: it cannot be read any more.
        """
        return decode_pixels(self._data(sample), self.files[sample])

    def size(self, sample: int) -> tuple[int, int]:
        """Height and width of an image, of most kinds without decoding it.

        Raises:
            BadImageError: it cannot be read any more.
        """
        data = self._data(sample)
        header = read_header(data)
        if header:
            return header.height, header.width
        height, width, _ = decode_pixels(data, self.files[sample]).shape
        return height, width

    def without_pixels(self, param_sampler: tuple[DeviceTransform, Sequence[tuple[int, int]]] | None) -> ImageDataset:
        """The same images where their pixels are on the device already, so that batches come without.

        Args:
            param_sampler: what draws the chance of each sample for the device, and the sizes of all images; None = there is no
                chance.
        """
        part = copy(self)
        part._pixels_on_device, part._param_sampler = True, param_sampler
        return part

    def noted_by(self, num_workers: int) -> ImageDataset:
        """The same images, of which each of so many workers notes, for all to see, which it is making."""
        part = copy(self)
        part._made = _notes(max(1, num_workers))
        if num_workers:
            part._made.share_memory_()
        return part

    def watch(self) -> BatchWatch:
        """What sees that no batch of a loader of these images is waited for in vain."""
        return BatchWatch(lambda: int(self._made[:, _COUNT].sum()), self._stuck_at, self._source)

    def _stuck_at(self) -> tuple[list[str], list[int]]:
        """Images that are being made, and the workers that make them; where none is, all workers."""
        rows = self._made.tolist()
        busy = [row for row in rows if row[_SAMPLE] >= 0]
        workers = [row[_PROCESS] for row in busy or rows if row[_PROCESS] not in (-1, os.getpid())]
        return [self.files[row[_SAMPLE]] for row in busy], workers

    def _note(self, sample: int) -> None:
        """Note which image is being made; -1 = none."""
        worker = get_worker_info()
        row = self._made[worker.id if worker else 0]
        row[_PROCESS], row[_SAMPLE] = os.getpid(), sample
        row[_COUNT] += 1

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | BadImageError:
        """The batch; or the error, which a worker process can only hand over whole as a result (see `each_batch`)."""
        samples = torch.tensor([key.sample for key in keys])
        batch = Batch(labels=self.labels[samples], samples=samples, micro_batch=keys[0].micro_batch)
        try:
            if self._param_sampler:
                transform, sizes = self._param_sampler
                batch["random_params"] = self._draw(keys, transform, sizes)
                batch["output_extent"] = transform.output_extent(batch["random_params"])
                batch["resizes"] = transform.resizes(batch["random_params"], batch["output_extent"])
            elif not self._pixels_on_device:
                batch["pixels"] = _stack(self._of_cache(keys) if self._decoded else self._of_files(keys))
        except BadImageError as error:
            return error
        finally:
            self._note(-1)
        return batch

    def _draw(self, keys: Sequence[SampleKey], transform: DeviceTransform, sizes: Sequence[tuple[int, int]]) -> Tensor:
        rows = []
        for key in keys:
            torch.default_generator.manual_seed(self._chance(key))
            try:
                rows.append(transform.draw(*sizes[key.sample]))
            except ValueError as error:
                height, width = sizes[key.sample]
                cause = f"its {width} x {height} pixels cannot be transformed: {error}"
                raise BadImageError(self.files[key.sample], cause) from None
        return torch.tensor(rows, dtype=torch.float64)

    def check_can_be_sent(self) -> None:
        """See that loader workers can make its images.

        Raises:
            UserError: a transform of the user's own cannot be imported there.
        """
        self._transform.check_can_be_sent()

    @property
    def is_decoded(self) -> bool:
        """Whether they come from decoded images."""
        return self._decoded is not None

    @property
    def needs_workers(self) -> bool:
        """Whether there is anything for workers to do."""
        return not self._pixels_on_device or self._param_sampler is not None

    def rate(self, num_images: int = 32) -> float:
        """Images a second that this process makes ready, by a trial."""
        keys = [SampleKey(sample, 0, 0) for sample in range(min(num_images, len(self)))]
        begun = time.perf_counter()
        self.__getitems__(keys)
        return len(keys) / (time.perf_counter() - begun)

    def bytes_of_one(self) -> int:
        """Bytes that one image takes in a batch, by a trial."""
        made = self.__getitems__([SampleKey(0, 0, 0)])
        return made["pixels"].nbytes if not isinstance(made, BadImageError) and "pixels" in made else 0

    def _data(self, sample: int) -> bytes:
        return read_image(self._images, int(self._rows[sample]))

    def _of_files(self, keys: Sequence[SampleKey]) -> list[Tensor]:
        made = []
        for key in keys:
            self._note(key.sample)
            made.append(self._transform.of_file(self._data(key.sample), self.files[key.sample], self._chance(key)))
        return made

    def _of_cache(self, keys: Sequence[SampleKey]) -> list[Tensor]:
        assert self._decoded is not None
        made = []
        for key in keys:
            self._note(key.sample)
            pixels = self._decoded.pixels(int(self._rows[key.sample]))
            made += (
                self._of_files([key])
                if pixels is None
                else [self._transform.of_pixels(pixels, self.files[key.sample], self._chance(key))]
            )
        return made

    def _chance(self, key: SampleKey) -> int:
        """Chance belongs to the sample and the epoch: not to the worker, the process or what came before."""
        return random_key(self._seed, "augment", key.epoch, key.sample)


_PROCESS, _SAMPLE, _COUNT = range(3)
"""Columns of what workers note: who makes images, which one just now, and how many there were."""


def _notes(num_workers: int) -> Tensor:
    return torch.tensor([[-1, -1, 0]] * num_workers)


def _stack(images: Sequence[Tensor]) -> Tensor:
    """Images uint8 [3, H, W] → a batch whose channels lie together, as they do in the images of the fast way."""
    channels, height, width = images[0].shape
    batch = torch.empty((len(images), height, width, channels), dtype=torch.uint8)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image.permute(1, 2, 0))
    return batch.permute(0, 3, 1, 2)


def pack(batch: Any) -> dict[str, Any] | BadImageError:
    """A batch on its way out of a worker: all numbers of a sample as one row, because each tensor costs time there."""
    if isinstance(batch, BadImageError):
        return batch
    packed: dict[str, Any] = {**batch}
    labels = packed.pop("labels")
    if labels.ndim == 2:
        packed["num_classes"] = labels.shape[1]
    # float64 holds sample numbers and labels exactly.
    numbers = [packed.pop("samples")[:, None].double(), labels.reshape(len(labels), -1).double()]
    packed["rows"] = torch.cat([*numbers, *([packed.pop("random_params")] if "random_params" in batch else [])], dim=1)
    return packed


def unpack(packed: dict[str, Any]) -> Batch:
    """The same on the other side, on the device."""
    rows, num_classes = packed.pop("rows"), packed.pop("num_classes", None)
    end = 1 + (num_classes or 1)
    labels = rows[:, 1].long() if num_classes is None else rows[:, 1:end].float()
    batch: Batch = {**packed, "samples": rows[:, 0].long(), "labels": labels}  # type: ignore[typeddict-item]
    if "output_extent" in batch:
        batch["random_params"] = rows[:, end:]
    return batch
