"""Images that the processes of a machine decode together: each its share, which the others get from its device.

Decoding is what takes the time: with eight processes each photo would be decoded eight times by the cores that they share.
Between the devices of a machine pixels travel many times faster than a core decodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from accel_flowers.core.parallel import map_in_order
from accel_flowers.data.transforms.gpu.store import DeviceImages
from accel_flowers.distributed.collectives import MachineGroup

WINDOW = 256
"""Images of each process between two exchanges: some 100 MB of photos, so that exchanging goes on beside the decoding and
what is on its way stays small."""


def shares(num_bytes: list[int], size: int) -> list[range]:
    """Cut images into so many runs of neighbours that take about equally long to decode.

    Args:
        num_bytes: of each image, decoded.
        size: how many runs.

    Returns:
        The runs, in order; some are empty where there are fewer images.
    """
    ends = np.cumsum(num_bytes)
    total = int(ends[-1])
    cuts = [int(np.searchsorted(ends, total * share / size)) for share in range(1, size)]
    return [range(first, last) for first, last in zip([0, *cuts], [*cuts, len(num_bytes)], strict=True)]


def fill_together(store: DeviceImages, decode: Callable[[int], Tensor], machine: MachineGroup, *, threads: int) -> None:
    """Fill a store of all images on each process; collective between those of a machine.

    Args:
        store: of the same sizes on all of them.
        decode: sample → uint8 [H, W, 3].
        machine: its processes.
        threads: of decoding, of this process.

    Raises:
        ValueError, UserError: an image of this process's share. It has taken part in all exchanges even so, and none waits
            for it; what the others have instead of its images is black.
    """
    runs = shares([height * width for height, width in store.sizes], machine.size)
    windows = max(-(-len(run) // WINDOW) for run in runs)
    failure: ValueError | None = None
    with closing(map_in_order(decode, runs[machine.rank], threads=threads)) as decoded:
        for number in range(windows):
            parts = [run[number * WINDOW : (number + 1) * WINDOW] for run in runs]
            own = parts[machine.rank]
            if failure is None and len(own):
                try:
                    store.fill(islice(decoded, len(own)), own)
                except ValueError as error:
                    failure = error
            for rank, part in zip(machine.ranks, parts, strict=True):
                if machine.size > 1 and len(part):
                    torch.distributed.broadcast(store.bytes_of(part), src=rank, group=machine.group)
    if failure is not None:
        raise failure
