"""One pass over the pictures through frozen backbones: features by content, shared by all processes, kept as they come.

Features are float32, computed channels last where the network has convolutions: bf16 would be up to twice as fast on some CPUs,
but not the same numbers on any two machines, and what is kept must be. Batches are the same for any number of processes and
after an interruption, so each picture meets the same neighbours and its features are the same to the last digit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_flowers.core.allocator import freed_memory_is_kept
from accel_flowers.core.backends import cudnn_heuristics
from accel_flowers.core.console import counted
from accel_flowers.core.files import user_cache, writing
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import SampleKey, SequentialBatchSampler
from accel_flowers.data.sources.source import ImageSource
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable, content_digest
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.joined import MEAN, STD, FeatureNetwork
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.probe.backbones import Frozen, Sight, space_key
from accel_flowers.probe.store import Keys, RowStore, keys_of, make_room

BATCH_SIZE = 16
"""Pictures of a forward pass. On a CPU the memory of larger ones is given back to the system and taken again for each layer, which
cost a third more of the processor's time with 32 of 224 pixels (EfficientNet-lite0, one core of an AMD EPYC)."""
_PADDING = -1


@dataclass(frozen=True)
class Space:
    """One kind of features: of one network, in one way, of the picture or its mirror image.

    Attributes:
        frozen: the network, by its place among the backbones.
        sight: how the picture is made.
        place: of the network in the sight's parts.
        mirrored: whether of the mirror image.
        key: the name of the store.
    """

    frozen: int
    sight: Sight
    place: int
    mirrored: bool
    key: str


def spaces_of(frozen: Sequence[Frozen], chosen: Sequence[int], sight: Sight, *, mirrored: bool) -> list[Space]:
    """The kinds of features that some of the backbones together make of a sight, in the order of its parts."""
    return [
        Space(number, sight, place, mirrored, space_key(frozen[number], sight, sight.parts[place], mirrored=mirrored))
        for place, number in enumerate(chosen)
    ]


def features_folder() -> Path:
    """Where features are kept."""
    return user_cache() / "features"


class UnchangedImages:
    """The same images, as long as each is what it was when it was looked at: features are kept under its content.

    Args:
        images: of the data set.
        digests: row → `content_digest`, of those that may be read.
    """

    def __init__(self, images: ImageSource, digests: Mapping[int, str]) -> None:
        self._images, self._digests = images, digests
        self.names, self.labels, self.class_names = images.names, images.labels, images.class_names
        self.given_parts, self.digests = images.given_parts, images.digests

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: it cannot be read.
            BadImageError: it is not what it was.
        """
        data = self._images.read(row)
        if content_digest(data) != self._digests[row]:
            cause = "it is not what it was when the pictures were looked at: leave them as they are, and run it again"
            raise BadImageError(self.names[row], cause)
        return data


@dataclass(frozen=True)
class _ChosenBatches:
    """Some of the batches of a sequential sampler, under their own numbers."""

    all: SequentialBatchSampler
    chosen: npt.NDArray[np.bool_]
    drop_last: bool = False

    @property
    def batch_size(self) -> int:
        """Accelerate asks a batch sampler for it."""
        return self.all.batch_size

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (keys for keys, chosen in zip(self.all, self.chosen, strict=True) if chosen)


@dataclass
class Passes:
    """What the passes over the pictures cost.

    Attributes:
        computed: rows that were computed now, over all kinds of features.
        seconds: key of a kind → seconds of computing that one picture took, where it was ever computed.
    """

    computed: int
    seconds: dict[str, float]


def compute_features(
    accelerator: Accelerator,
    table: ImageTable,
    files: Sequence[str],
    digests: Sequence[str],
    frozen: Sequence[Frozen],
    spaces: Sequence[Space],
    *,
    num_workers: int,
    after_round: Callable[[], None],
) -> Passes:
    """Compute what is not there yet, and keep it as it comes; collective.

    Args:
        accelerator: the processes, which share the work; the main one keeps what comes out of it.
        table: the images.
        files: those that are wanted, sorted.
        digests: of their contents.
        frozen: the backbones; on the CPU.
        spaces: the kinds of features that are wanted.
        num_workers: loader processes.
        after_round: called whenever each process has had a batch, equally often on all of them; may raise.

    Raises:
        UserError: the disk refuses.
        BadImageError: an image could be read before, and now it cannot, or it is another one.
    """
    passes = Passes(0, {})
    by_sight: dict[str, list[Space]] = {}
    for space in {space.key: space for space in spaces}.values():
        by_sight.setdefault(repr(space.sight.transforms), []).append(space)
    table = replace(
        table, images=UnchangedImages(table.images, dict(zip(table.rows_of(files).tolist(), digests, strict=True)))
    )
    keys = keys_of(digests) if accelerator.is_main_process else None
    root = features_folder()
    if accelerator.is_main_process:
        make_room(root, [root / space.key for space in spaces])
    with ExitStack() as stores_close:
        for group in by_sight.values():
            stores = [open_store(frozen, space) for space in group] if accelerator.is_main_process else None
            for store in stores or ():
                stores_close.enter_context(store)
            _one_pass(accelerator, table, files, keys, frozen, group, stores, passes, num_workers, after_round)
    return passes


def open_store(frozen: Sequence[Frozen], space: Space) -> RowStore:
    """The store of one kind of features.

    Raises:
        UserError: it cannot be made.
    """
    with writing(
        f"'{features_folder()}', where features are kept,", "Make room, or set XDG_CACHE_HOME to another folder."
    ):
        return RowStore(features_folder() / space.key, frozen[space.frozen].width, np.float32)


def _one_pass(
    accelerator: Accelerator,
    table: ImageTable,
    files: Sequence[str],
    keys: Keys | None,
    frozen: Sequence[Frozen],
    spaces: Sequence[Space],
    stores: Sequence[RowStore] | None,
    passes: Passes,
    num_workers: int,
    after_round: Callable[[], None],
) -> None:
    """Over all pictures that some of these kinds of features, which are of one sight, lack."""

    def find_missing() -> list[bytes]:
        assert stores is not None
        assert keys is not None
        return [np.packbits(store.find(keys)[:, 0] < 0).tobytes() for store in stores]

    packed = broadcast_from_main(accelerator, find_missing)
    missing = [np.unpackbits(np.frombuffer(each, np.uint8), count=len(files)).astype(bool) for each in packed]
    every = SequentialBatchSampler(len(files), BATCH_SIZE)
    starts = np.arange(0, len(files), BATCH_SIZE)
    wanted = [np.logical_or.reduceat(each, starts) for each in missing]
    chosen = np.logical_or.reduce(wanted)
    if stores is not None:
        passes.seconds |= {
            space.key: store.about["seconds_a_picture"] for space, store in zip(spaces, stores, strict=True)
            if isinstance(store.about.get("seconds_a_picture"), float)
        }  # fmt: skip
    if not chosen.any():
        return
    transform, _ = build_transform(spaces[0].sight.transforms, field="the backbone's own transforms")
    images = ImageDataset(table, "train", Split(table.class_names, dict.fromkeys(files, "train")), transform, seed=0)
    loader = accelerator.prepare(
        build_loader(
            images,
            _ChosenBatches(every, chosen),  # type: ignore[arg-type]  # a batch sampler as those are
            num_workers=num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    networks = [_on_device(frozen[space.frozen], space, accelerator.device) for space in spaces]
    normalizer = Normalizer(MEAN, STD, channels_last=any(wants_channels_last(each) for each in networks))
    counts = accelerator.gather(torch.tensor([len(loader)], device=accelerator.device))
    seconds, done = [0.0] * len(spaces), [0] * len(spaces)

    def rounds() -> Iterator[int]:
        batches = each_batch(loader)
        for _ in range(int(counts.max())):
            batch = next(batches, None)
            samples, made = _of_batch(
                batch, normalizer, networks, spaces, wanted, frozen, accelerator.device, seconds, done
            )
            gathered = _gather(accelerator, samples, made)
            if stores is not None:
                assert keys is not None
                for place, (its_samples, rows) in enumerate(gathered):
                    new = missing[place][its_samples]
                    with writing(
                        f"'{stores[place].folder}', where features are kept,", "Make room and run it again: it goes on."
                    ):
                        stores[place].append(keys[its_samples[new]], rows[new])
                    passes.computed += int(new.sum())
            yield from range(max(len(each) for each, _ in gathered))
            after_round()

    total = int(np.repeat(chosen, BATCH_SIZE)[: len(files)].sum())
    with cudnn_heuristics(), torch.inference_mode(), freed_memory_is_kept():
        if accelerator.is_main_process:
            for _ in counted(rounds(), total, unit="picture"):
                pass
        else:
            for _ in rounds():
                pass
    if stores is not None:
        for space, store, spent, number in zip(spaces, stores, seconds, done, strict=True):
            if number:
                each = passes.seconds[space.key] = spent / number
                store.note({**describe_space(frozen, space), "seconds_a_picture": each})


def describe_space(frozen: Sequence[Frozen], space: Space) -> dict[str, Any]:
    """What a kind of features is, for people."""
    network, part = frozen[space.frozen], space.sight.parts[space.place]
    return {
        "network": network.name,
        "weights": network.weights,
        "digest": network.digest,
        "transforms": list(space.sight.transforms),
        "size": list(part.size),
        "mirrored": space.mirrored,
    }


def _on_device(frozen: Frozen, space: Space, device: torch.device) -> FeatureNetwork:
    network = frozen.features(space.sight.parts[space.place])
    if wants_channels_last(network):
        network.network.to(memory_format=torch.channels_last)
    return network.to(device).eval()


def _of_batch(
    batch: Batch | None,
    normalizer: nn.Module,
    networks: Sequence[FeatureNetwork],
    spaces: Sequence[Space],
    wanted: Sequence[npt.NDArray[np.bool_]],
    frozen: Sequence[Frozen],
    device: torch.device,
    seconds: list[float],
    done: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Sample numbers and features of one batch for each kind; none where the kind has them all, or there is no batch."""
    samples, made = [], []
    pixels = normalizer(batch["pixels"]) if batch is not None else None
    for place, (network, space) in enumerate(zip(networks, spaces, strict=True)):
        own = torch.empty(0, dtype=torch.int64, device=device)
        rows = torch.empty((0, frozen[space.frozen].width), device=device)
        if batch is not None and pixels is not None and wanted[place][int(batch["samples"][0]) // BATCH_SIZE]:
            begun = time.perf_counter()
            own, rows = batch["samples"].to(device), network(pixels.flip(-1) if space.mirrored else pixels).float()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds[place] += time.perf_counter() - begun
            done[place] += len(own)
        samples.append(own)
        made.append(rows)
    return samples, made


def _gather(
    accelerator: Accelerator, samples: Sequence[Tensor], made: Sequence[Tensor]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """What all processes made in a round, in the samples' order."""
    gathered = []
    for own, rows in zip(samples, made, strict=True):
        numbers = accelerator.gather(accelerator.pad_across_processes(own, pad_index=_PADDING)).cpu().numpy()
        features = accelerator.gather(accelerator.pad_across_processes(rows)).cpu().numpy()
        kept = np.flatnonzero(numbers != _PADDING)
        kept = kept[np.argsort(numbers[kept], kind="stable")]
        gathered.append((numbers[kept], features[kept]))
    return gathered
