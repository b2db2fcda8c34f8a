"""Where the pixels of a run come from: chosen by the recipe or here, agreed between the processes, told in one line."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from accel_flowers.config.schema import DataConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import user_cache
from accel_flowers.core.machine import kind_of_disk
from accel_flowers.core.out_of_memory import is_lack_of_memory
from accel_flowers.core.parallel import map_in_order
from accel_flowers.data.cache import SAMPLED_IMAGES, DecodedImages, NoCache, open_cache
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.placement.resident import FinishedImages, ToPixels, WholeImages, loaded_pixels
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import ImageTransform
from accel_flowers.data.transforms.gpu.store import bytes_needed
from accel_flowers.data.workers import local_cores
from accel_flowers.distributed.collectives import (
    log_on_main,
    machine_group,
    num_local_processes,
    run_on_all,
    true_everywhere,
)


@dataclass(frozen=True)
class Part:
    """A part of the data set, on the way that was chosen."""

    images: ImageDataset
    to_pixels: ToPixels = loaded_pixels
    """What makes a batch's pixels on the device."""


def wants_cache(data: DataConfig, device: torch.device) -> bool:
    """Whether decoded images shall be kept on the disk, if that can be and they are not on the device."""
    return data.pixels_from == "cache" or (data.pixels_from == "auto" and device.type != "cpu")


def open_parts(
    data: DataConfig,
    table: ImageTable,
    split: Split,
    contents: Sequence[str],
    transforms: Mapping[str, tuple[str, ImageTransform]],
    accelerator: Accelerator,
    *,
    eval_size: tuple[int, int],
    eval_batch_size: int,
    compiled: bool,
    seed: int,
) -> dict[str, Part]:
    """Make the parts of a data set ready to be loaded; collective.

    Args:
        data: says where pixels come from.
        table: all images.
        split: which of them are used, and in which part.
        contents: digest of each image of the table, where `wants_cache`.
        transforms: name of each loader → the part that it reads and what is done to its images.
        accelerator: the processes; those of one machine share a cache.
        eval_size: height and width of the evaluation's images.
        eval_batch_size: images of a forward pass of it; says which of them a process will be asked for.
        compiled: whether the device's work on images is compiled, too.
        seed: the run's.

    Returns:
        The name of each loader → its part.

    Raises:
        UserError: what the recipe insists on cannot be; an image that cannot be read any more.
    """
    images = partial(ImageDataset, table, split=split, seed=seed)
    if data.pixels_from == "reference":
        # Training images alone: evaluations are the same on all ways, and when the model is scored later.
        part, transform = transforms["train"]
        transforms = {**transforms, "train": (part, transform.plainly())}
    parts = {name: images(part=part, transform=transform) for name, (part, transform) in transforms.items()}
    if data.pixels_from == "device" or (data.pixels_from == "auto" and accelerator.device.type != "cpu"):
        asked = {
            name: SequentialBatchSampler(len(each), eval_batch_size).samples_of(
                accelerator.process_index, accelerator.num_processes
            )
            for name, each in parts.items()
            if name != "train"
        }
        placed = _place_on_device(data, parts, transforms["train"][1], asked, eval_size, accelerator, compiled=compiled)
        if placed:
            return placed
    if wants_cache(data, accelerator.device):
        decoded = _keep_decoded(data, table, split, contents, accelerator)
        return {
            name: Part(images(part=part, transform=transform, decoded=decoded))
            for name, (part, transform) in transforms.items()
        }
    unused = "" if data.cache_dir is None else " (data.cache_dir is for --data.pixels-from cache)"
    log_on_main(accelerator, _WITHOUT[data.pixels_from] + unused)
    return {name: Part(each) for name, each in parts.items()}


_WITHOUT = {
    "auto": "pixels: decoded anew each time, because on a CPU training takes longer than loading",
    "files": "pixels: decoded anew each time, as the recipe says",
    "reference": "pixels: Pillow and torchvision's transforms, as the recipe says",
}


def _place_on_device(
    data: DataConfig,
    parts: Mapping[str, ImageDataset],
    transform: ImageTransform,
    asked: Mapping[str, Sequence[int]],
    eval_size: tuple[int, int],
    accelerator: Accelerator,
    *,
    compiled: bool,
) -> dict[str, Part] | None:
    """All images in the device's memory: those for training whole, and of the others this process's share, finished.

    Args:
        asked: name of each other part → the samples that this process will be asked for.

    Returns:
        None where they do not fit, or the transforms cannot be done there, and the recipe does not insist.
    """
    begun = time.monotonic()
    device, insists = accelerator.device, data.pixels_from == "device"
    threads = local_cores(num_local_processes(accelerator))
    on_device = transform.on_device()
    if on_device is None:
        lacking = "the training's transforms hold what cannot be done on the device"
        if insists:
            raise UserError(f"data.train_transforms: {lacking}: take --data.pixels-from auto, or other transforms.")
        log_on_main(accelerator, f"pixels: not on the device, because {lacking}")
        return None

    train, room = parts["train"], _room(device)
    finished = sum(map(len, asked.values())) * 3 * eval_size[0] * eval_size[1]
    # A few first: to learn that a set is far too large, nobody needs to read all of it once more.
    for every in sorted({max(1, len(train) // SAMPLED_IMAGES), 1}, reverse=True):
        sizes = _sizes(train, range(0, len(train), every), threads, accelerator)
        needed = bytes_needed(sizes) * len(train) // len(sizes) + finished
        too_large = f"{needed / 2**30:.2f} GiB do not fit on {device} beside the training"
        if not true_everywhere(accelerator, insists or needed <= room * (1 if every == 1 else 2)):
            log_on_main(accelerator, f"pixels: not on the device, because {too_large}")
            return None
    on_device.max_bytes = min(on_device.max_bytes, max(2**28, room - needed))
    on_device.dtype = torch.float16 if device.type == "cuda" else torch.float32
    on_device.compiled = compiled

    def place_all() -> tuple[WholeImages, dict[str, Part]] | None:
        try:
            whole = WholeImages(train, sizes, on_device, device)
            finished = {name: FinishedImages(parts[name], device, asked[name], threads=threads) for name in asked}
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            return None  # somebody else took it meanwhile, or the recipe asked for too much
        placed = {name: Part(parts[name].without_pixels(None), made) for name, made in finished.items()}
        return whole, {"train": Part(train.without_pixels((on_device, sizes)), whole), **placed}

    made = run_on_all(accelerator, place_all)
    if not true_everywhere(accelerator, made is not None):
        made = None
        clear_device_cache(garbage_collection=True)  # what was placed so far, here or where it did fit
        if insists:
            raise UserError(f"The pictures cannot be kept on the device: {too_large}. Take --data.pixels-from auto.")
        log_on_main(accelerator, f"pixels: not on the device, because {too_large}")
        return None
    assert made is not None
    whole, placed = made
    with machine_group(accelerator) as machine:
        run_on_all(accelerator, partial(whole.fill, machine, threads=threads))
    seconds = time.monotonic() - begun
    once = f", decoded once for {machine.size} processes" if machine.size > 1 else ""
    log_on_main(
        accelerator,
        f"pixels: on {device}, {needed / 2**30:.2f} GiB, cropped and coloured there (placed in {seconds:.1f} s{once})",
    )
    return placed


def _sizes(
    images: ImageDataset, samples: Sequence[int], threads: int, accelerator: Accelerator
) -> list[tuple[int, int]]:
    """Height and width of some images, each looked at by one process; collective.

    Raises:
        UserError: an image cannot be read any more.
    """
    first, step = accelerator.process_index, accelerator.num_processes
    own = run_on_all(
        accelerator, lambda: list(map_in_order(images.size, islice(samples, first, None, step), threads=threads))
    )
    if step == 1:
        return own
    sizes = [(0, 0)] * len(samples)
    everywhere: list[list[tuple[int, int]]] = gather_object([own])
    for rank, found in enumerate(everywhere):
        sizes[rank::step] = found
    return sizes


def _room(device: torch.device) -> int:
    """Bytes that images may take: half of what is free while the training has all that it needs."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    needed_by_training = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return (free - needed_by_training) // 2


def _keep_decoded(
    data: DataConfig, table: ImageTable, split: Split, contents: Sequence[str], accelerator: Accelerator
) -> DecodedImages | None:
    """The cache of decoded images, made now or before.

    Returns:
        None where it does not fit and the recipe does not insist.
    """
    used = [content if name in split.parts else "" for name, content in zip(table.files, contents, strict=True)]

    begun = time.monotonic()

    def open_or_not() -> tuple[DecodedImages | None, bool, str]:
        try:
            limit = int(data.cache_gib * 2**30)
            opened, made = open_cache(cache_root(data), table.files, used, table.read, max_bytes=limit)
        except NoCache as error:
            if data.pixels_from == "cache":
                more = "Allow more with --data.cache-gib, give" if error.more_helps else "Give"
                raise UserError(
                    f"The pictures cannot be kept decoded: {error}. {more} another place with --data.cache-dir, or take "
                    "--data.pixels-from files."
                ) from None
            return None, False, str(error)
        return opened, made, ""

    decoded, made_here, why_not = run_on_all(accelerator, open_or_not)
    # Whichever process came first made it, while the others waited.
    made_before = true_everywhere(accelerator, not made_here)
    if decoded is None:
        log_on_main(accelerator, f"pixels: decoded anew each time; {why_not}")
        return None
    if kind_of_disk(decoded.folder) == "network":
        log_on_main(
            accelerator, "pixels: the cache lies on a network disk: --data.cache-dir on a local one may be faster"
        )
    how = "made before" if made_before else f"made in {time.monotonic() - begun:.1f} s"
    size = f"{decoded.num_bytes / 2**30:.2f} GiB"
    log_on_main(accelerator, f"pixels: from decoded pictures, {size} in {decoded.folder} ({how})")
    return decoded


def cache_root(data: DataConfig) -> Path:
    """Where caches of decoded images lie: where the recipe says, else in the user's cache directory; where that is over a
    network, which would carry every image of every epoch, on a disk of this machine, if its temporary files lie on one.

    Raises:
        NoCache: there is no such place.
    """
    if data.cache_dir is not None:
        return Path(data.cache_dir)
    try:
        usual = user_cache() / "decoded"
    except RuntimeError as error:  # a user without a home directory
        raise NoCache(f"there is no cache directory: {error}") from None
    here = Path(tempfile.gettempdir(), f"accel_flowers-{os.getuid()}")
    if kind_of_disk(usual) == "network" and kind_of_disk(here) == "local" and _is_our_own(here):
        return here / "decoded"
    return usual


def _is_our_own(folder: Path) -> bool:
    """Whether a folder among everybody's temporary files, made if need be, belongs to this user alone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
