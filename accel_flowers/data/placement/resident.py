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
from accel_flowers.data.sampler import SampleKey
from accel_flowers.data.transforms.gpu.store import DeviceImages
from accel_flowers.data.transforms.gpu.transform import DeviceTransform

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
        device: where they are kept.
        threads: of decoding.
    """

    def __init__(
        self,
        images: ImageDataset,
        sizes: Sequence[tuple[int, int]],
        transform: DeviceTransform,
        device: torch.device,
        *,
        threads: int,
    ) -> None:
        self._transform = transform
        self._store = DeviceImages(sizes, device)
        try:
            self._store.fill(map_in_order(images.decode, range(len(images)), threads=threads))
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
        threads: of decoding.
    """

    def __init__(self, images: ImageDataset, device: torch.device, *, threads: int) -> None:
        def make(sample: int) -> Tensor:
            batch = images.__getitems__([SampleKey(sample, 0, 0)])
            if isinstance(batch, BadImageError):
                raise batch
            return batch["pixels"][0].permute(1, 2, 0)

        made = map_in_order(make, range(len(images)), threads=threads)
        first = next(made)
        self._pixels = torch.empty((len(images), *first.shape), dtype=torch.uint8, device=device)
        self._pixels[0] = first
        for sample, pixels in enumerate(made, start=1):
            self._pixels[sample] = pixels

    def __call__(self, batch: Batch) -> Tensor:
        """The images of the batch's samples."""
        return self._pixels.index_select(0, batch["samples"]).permute(0, 3, 1, 2)
