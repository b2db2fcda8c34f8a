"""Images that lie on the training's device: a batch brings only what is done to them, or nothing.

Training images are kept whole and are cropped and coloured there (`transform`), with the chance that the loader draws
for each sample as for all other ways. Evaluation images are the same each time, so they are kept as the usual way makes
them, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from accel_flowers.core.errors import UserError
from accel_flowers.core.parallel import map_in_order
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.placement.together import fill_together
from accel_flowers.data.sampler import SampleKey
from accel_flowers.data.transforms.gpu.store import DeviceImages
from accel_flowers.data.transforms.gpu.transform import DeviceTransform
from accel_flowers.distributed.collectives import ALONE, MachineGroup

ToPixels = Callable[[Batch], Tensor]
"""Batch, on the device → uint8 [B, 3, H, W] there."""


def loaded_pixels(batch: Batch) -> Tensor:
    """What the loader made."""
    return batch["pixels"]


def _whole(pixels: Tensor) -> Tensor:
    return pixels


def in_halves(to_pixels: ToPixels) -> tuple[Callable[[Batch], tuple[Tensor, ...]], Callable[..., Tensor]]:
    """The same in two halves, the second of which has the same shapes for each batch of a size."""
    if isinstance(to_pixels, WholeImages):
        return to_pixels.begin, to_pixels.finish
    return lambda batch: (to_pixels(batch),), _whole


class WholeImages:
    """Training images, kept whole.

    Args:
        images: the part.
        sizes: height and width of each.
        transform: what is done to them on the device.
        device: where they are kept. They are black until `fill` was called.
    """

    def __init__(
        self,
        images: ImageDataset,
        sizes: Sequence[tuple[int, int]],
        transform: DeviceTransform,
        device: torch.device,
    ) -> None:
        self._images, self._transform = images, transform
        self._store = DeviceImages(sizes, device)

    def fill(self, machine: MachineGroup = ALONE, *, threads: int) -> None:
        """Decode all images, together with the other processes of the machine; collective between those.

        Args:
            machine: its processes, each of which decodes its share and gives it to the others.
            threads: of decoding, of this process.

        Raises:
            UserError: an image of this process's share cannot be read, or is not what it was.
        """
        try:
            fill_together(self._store, self._images.decode, machine, threads=threads)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"Leave the pictures as they are while a run begins: {error}.") from None

    def __call__(self, batch: Batch) -> Tensor:
        """Crops, flips and colours, as the batch's draws say."""
        return self.finish(*self.begin(batch))

    def begin(self, batch: Batch) -> tuple[Tensor, ...]:
        """Resized pixels, and the draws for what is still to be done."""
        random_params = batch["random_params"]
        pixels = self._transform.begin(
            self._store,
            batch["samples"],
            random_params,
            output_extent=batch["output_extent"],
            resizes=batch["resizes"],
        )
        return pixels, random_params

    def finish(self, pixels: Tensor, random_params: Tensor) -> Tensor:
        """What stands behind the last resize."""
        return self._transform.finish(pixels, random_params)


class FinishedImages:
    """Evaluation images, kept as the network takes them.

    Args:
        images: the part; its transform is without chance.
        device: where they are kept.
        samples: those that this process will be asked for; None = all.
        threads: of decoding.
    """

    def __init__(
        self, images: ImageDataset, device: torch.device, samples: Sequence[int] | None = None, *, threads: int
    ) -> None:
        def make(sample: int) -> Tensor:
            batch = images.__getitems__([SampleKey(sample, 0, 0)])
            if isinstance(batch, BadImageError):
                raise batch
            return batch["pixels"][0].permute(1, 2, 0)

        samples = range(len(images)) if samples is None else samples
        # What this process is never asked for has no place; -1 is one that no device reads from.
        places = torch.full((len(images),), -1)
        places[list(samples)] = torch.arange(len(samples))
        self._places = places.to(device)
        self._pixels = torch.empty(0, dtype=torch.uint8, device=device)
        for place, pixels in enumerate(map_in_order(make, samples, threads=threads)):
            if place == 0:
                self._pixels = torch.empty((len(samples), *pixels.shape), dtype=torch.uint8, device=device)
            self._pixels[place] = pixels

    @property
    def num_bytes(self) -> int:
        """Memory of the images."""
        return self._pixels.nbytes

    def __call__(self, batch: Batch) -> Tensor:
        """The images of the batch's samples."""
        return self._pixels.index_select(0, self._places[batch["samples"]]).permute(0, 3, 1, 2)
