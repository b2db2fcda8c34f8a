"""All images of a part on the training's device, decoded once, at their full sizes.

They lie one behind the other in one tensor, because one allocation per image would waste memory and could not be read by
one kernel. What becomes of them there is in `transform`; decoding is somebody else's task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CHANNELS = 3
ALIGNED = 8
"""Lines begin at multiples of this many pixels, so that they are read in words of eight bytes and not byte by byte."""
_WORD = 8
_WIDTHS = 64
"""Regions are read in widths of a multiple of this many pixels, so that few different shapes occur."""
_CHUNK_BYTES = 64 * 2**20


def region_side(pixels: int) -> int:
    """Side of a region that holds a box of so many pixels, wherever it begins in a word."""
    return -(-(pixels + ALIGNED - 1) // _WIDTHS) * _WIDTHS


def bytes_needed(sizes: Sequence[tuple[int, int]]) -> int:
    """Memory of a store of images of these sizes (height, width)."""
    array = _as_array(sizes)
    numbers = 4 * 8 * len(array)  # offset, height, width and length of the lines of each
    return int((array[:, 0] * _pitches(array)).sum()) * CHANNELS + _slack(array) + numbers


class DeviceImages:
    """Upright RGB images on a device.

    Args:
        sizes: (height, width) of each image, by sample number.
        device: where they are kept. They are empty until `fill` was called.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> None:
        array = _as_array(sizes)
        pitches = _pitches(array)
        ends = np.cumsum(array[:, 0] * pitches)
        self.sizes: list[tuple[int, int]] = [(int(height), int(width)) for height, width in array]
        self.max_height, self.max_width = (int(side) for side in array.max(axis=0))
        self.max_aspect = float((array.max(axis=1) / array.min(axis=1)).max())
        """The largest ratio of a longer to a shorter side."""
        self.device = device
        self._starts: list[int] = [0, *(int(end) * CHANNELS for end in ends)]
        # int64 [N, 4]: where each image begins and how long its lines are in memory, in runs of `ALIGNED` pixels; its last
        # row and column. One table, because each look into one starts a kernel.
        begins = (ends - array[:, 0] * pitches) // ALIGNED
        table = np.column_stack((begins, pitches // ALIGNED, array - 1))
        self.table = torch.from_numpy(table).to(device)
        self.flat = torch.zeros(self._starts[-1] + _slack(array), dtype=torch.uint8, device=device)
        self._pixels, self._words = self.flat.view(-1, CHANNELS), self.flat.view(torch.int64)
        self._rows = torch.arange(region_side(self.max_height), device=device)

    def __len__(self) -> int:
        return len(self.sizes)

    def bytes_of(self, samples: range) -> Tensor:
        """Where images that follow one another lie, a view, uint8 [bytes]."""
        return self.flat[self._starts[samples.start] : self._starts[samples.stop]]

    def fill(self, images: Iterable[Tensor], samples: range | None = None) -> None:
        """Copy images, uint8 [H, W, 3] on the host, to their places.

        Args:
            images: in the order of the samples.
            samples: of these, one after the other; None = of all.

        Raises:
            ValueError: one has another size than was said, or their number differs.
        """
        samples = range(len(self)) if samples is None else samples
        writer = _Writer(self.bytes_of(samples))
        number = samples.start - 1
        for number, image in enumerate(images, samples.start):
            if number >= samples.stop:
                break
            if image.dtype != torch.uint8 or tuple(image.shape) != (*self.sizes[number], CHANNELS):
                raise ValueError(
                    f"picture {number} is {image.dtype} {list(image.shape)}, not {[*self.sizes[number], CHANNELS]}"
                )
            writer.write(functional.pad(image, (0, 0, 0, -image.shape[1] % ALIGNED)).reshape(-1))
        given = number + 1 - samples.start
        if given != len(samples):
            raise ValueError(f"{'more' if given > len(samples) else given} pictures for {len(samples)} places")
        writer.finish()

    def image(self, sample: int) -> Tensor:
        """One image, uint8 [H, W, 3], as it lies on the device."""
        height, width = self.sizes[sample]
        return self.flat[self._starts[sample] : self._starts[sample + 1]].view(height, -1, CHANNELS)[:, :width]

    def pixels_at(self, samples: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Single pixels.

        Args:
            samples: int64 [B].
            rows, columns: int64, broadcast to [B, h, w]; beyond an image's edge its last pixel is meant.

        Returns:
            uint8 [B, h, w, 3]
        """
        begin, line, last_row, last_column = self.table[samples].view(-1, 4, 1, 1).unbind(1)
        rows, columns = rows.clamp(min=0).minimum(last_row), columns.clamp(min=0).minimum(last_column)
        return self._pixels[(rows * line + begin) * ALIGNED + columns]

    def region_at(self, samples: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
        """A region of each image, by whole lines, which is much faster than by single pixels.

        Args:
            samples: int64 [B].
            corner: float64 [B, 2], top and left of what is wanted, inside the images. Regions begin at the multiples of `ALIGNED`
                above and left of it.
            height, width: of the region, a `region_side`. What lies beyond an image's edge is filled with anything.

        Returns:
            uint8 [B, height, width, 3]
        """
        aligned = (corner / ALIGNED).long()
        begin, line, last_row, _ = self.table[samples].split(1, 1)
        rows = torch.add(self._rows[:height], aligned[:, :1], alpha=ALIGNED).minimum(last_row)
        starts = torch.addcmul(begin + aligned[:, 1:], rows, line)
        # All that a line could be, from every run on: a view, from which some are taken.
        length, step = width * CHANNELS // _WORD, ALIGNED * CHANNELS // _WORD
        lines = self._words.as_strided(((len(self._words) - length) // step + 1, length), (step, 1))
        return lines[starts].view(torch.uint8).view(-1, height, width, CHANNELS)


class _Writer:
    """Host memory → a device tensor, front to back; through two pinned buffers where the device is a GPU."""

    def __init__(self, target: Tensor) -> None:
        self._target, self._position = target, 0
        self._buffers: list[Tensor] = []
        if target.is_cuda:
            self._buffers = [torch.empty(_CHUNK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in self._buffers]
        self._used = 0
        """Bytes that wait in the first buffer."""

    def write(self, flat: Tensor) -> None:
        if not self._buffers:
            self._target[self._position : self._position + len(flat)] = flat
            self._position += len(flat)
            return
        while len(flat):
            part = flat[: _CHUNK_BYTES - self._used]
            self._buffers[0][self._used : self._used + len(part)] = part
            self._used += len(part)
            flat = flat[len(part) :]
            if self._used == _CHUNK_BYTES:
                self._send()

    def _send(self) -> None:
        self._target[self._position : self._position + self._used].copy_(
            self._buffers[0][: self._used], non_blocking=True
        )
        self._copied[0].record(torch.cuda.current_stream(self._target.device))
        self._position, self._used = self._position + self._used, 0
        # The other buffer is next, once its copy is done.
        self._buffers.reverse()
        self._copied.reverse()
        self._copied[0].synchronize()

    def finish(self) -> None:
        if self._used:
            self._send()
        if self._buffers:
            torch.cuda.synchronize(self._target.device)


def _as_array(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    array = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    if not len(array) or array.min() < 1:
        raise ValueError("a store needs pictures, each of one pixel or more")
    return array


def _slack(array: np.ndarray) -> int:
    """Bytes behind the last image: its lines may be read in the width of the widest region."""
    return region_side(int(array[:, 1].max())) * CHANNELS


def _pitches(array: np.ndarray) -> np.ndarray:
    """Pixels from one line to the next."""
    pitches: np.ndarray = -(-array[:, 1] // ALIGNED) * ALIGNED
    return pitches
