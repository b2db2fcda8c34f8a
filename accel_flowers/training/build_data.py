"""The data of a run: from a folder and a recipe to the images of each part and their loaders.

What can be wrong with a folder, a split or a list of transforms is found here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from accel_flowers.config.schema import MULTILABEL, Config, DataConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.content import content_facts, table_facts
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.label_fixes import read_label_fixes
from accel_flowers.data.label_sets import as_several
from accel_flowers.data.loader import build_loader
from accel_flowers.data.placement.choose import Part, open_parts, wants_cache
from accel_flowers.data.sampler import SequentialBatchSampler, StreamBatchSampler, random_key
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, Split
from accel_flowers.data.table import HUB_PREFIX, ImageTable
from accel_flowers.data.transforms.build import ImageTransform, build_transform, check_repeatable
from accel_flowers.data.validate import validate_all
from accel_flowers.data.workers import fit_shared_memory, local_cores, plan_workers
from accel_flowers.distributed.collectives import (
    broadcast_from_main,
    check_same_everywhere,
    log_on_main,
    main_process_first,
    num_local_processes,
)
from accel_flowers.models.seen import SEEN_PARTS, Digests, short_digests
from accel_flowers.tracking.run_dir import how_to_build_on
from accel_flowers.training.debugging import subsample_for_debugging

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a configuration's lists of transforms make: checked first of all, because mistakes there cost nothing to find."""

    transforms: dict[str, tuple[str, ImageTransform]]
    """Loader → the part that it reads and what happens to its images."""
    train_size: tuple[int, int]
    eval_size: tuple[int, int]
    """Height and width of the images in training and evaluation."""


@dataclass(frozen=True)
class DataParts:
    """The images, and who goes into which part."""

    table: ImageTable
    split: Split
    contents: list[str]
    """Digest of each image of the table, where `wants_cache`."""
    seen: Mapping[str, Digests]
    """"train" and "val" → digests of their images, on the main process alone, which writes them into `model/`."""

    @property
    def train_labels(self) -> torch.Tensor:
        """Labels of the training images in their part's order, int64 [N]."""
        return torch.from_numpy(self.table.labels[self.table.rows_of(self.split.files_of("train"))])


def read_transforms(config: Config) -> Recipe:
    """Make a recipe's transforms.

    Raises:
        UserError: a mistake in its lists.
    """
    preprocessing = config.data.preprocessing()
    for_training, train_size = build_transform(preprocessing.train_transforms, field="data.train_transforms")
    for_evaluation, eval_size = build_transform(preprocessing.eval_transforms, field="data.eval_transforms")
    check_repeatable(for_evaluation, field="data.eval_transforms")
    if config.debug.overfit_batches:
        return Recipe(dict.fromkeys(("train", "val"), ("train", for_evaluation)), eval_size, eval_size)
    reads = {"train": ("train", for_training), "val": ("val", for_evaluation), "test": ("test", for_evaluation)}
    return Recipe(reads, train_size, eval_size)


def build_data(
    config: Config, table: ImageTable, accelerator: Accelerator, *, split_file: Path | None = None
) -> DataParts:
    """Read every image once and give each its part: the main process decides for all; collective.

    Raises:
        UserError: images that cannot be read, a split that does not fit, or processes that see different images.
    """
    asked = str(split_file) if split_file else config.data.split
    validated = cache(lambda: validate_all(table, range(len(table.files))))
    seen: dict[str, Digests] = {}

    def decide() -> tuple[Split, list[str]]:
        split = decide_split(
            table,
            asked,
            seed=config.train.seed,
            on_bad_image=config.data.on_bad_image,
            goes_on=_how_to_go_on(split_file.parent) if split_file else None,
            examined=validated,
            # Of two steps' images some classes may have none: so it is where such a run goes on.
            each_class=not (split_file and config.debug.fast_dev_run),
        )
        if not split_file:
            split = subsample_for_debugging(split, table, config)
        for line in describe_split(table, split):
            _log.info(line)
        found = validated()
        for part in SEEN_PARTS:
            seen[part] = short_digests([found[row][0] for row in table.rows_of(split.files_of(part))])
        return split, [digest for digest, _ in validated()] if wants_cache(config.data, accelerator.device) else []

    split, contents = broadcast_from_main(accelerator, decide)
    fingerprint = {**dataset_fingerprint(table, split), "precision": accelerator.mixed_precision}
    check_same_everywhere(accelerator, fingerprint)
    if accelerator.num_processes > 1:
        check_same_everywhere(accelerator, content_facts(table, sorted(split.parts), seed=config.train.seed))
    return DataParts(table, split, contents, seen)


def _how_to_go_on(run_dir: Path) -> str:
    return (
        "Put them back as they were and go on with --resume auto, or begin a new run with --run-dir DIR"
        f"{how_to_build_on(run_dir)}."
    )


def dataset_fingerprint(table: ImageTable, split: Split) -> dict[str, object]:
    """What every process must have found in the folder, and been told of the split."""
    return {
        **table_facts(table),
        **{f"pictures to {part}": len(split.files_of(part)) for part in PARTS},
        "digest of the split": random_key(*map(str, sorted(split.parts.items()))),
    }


def check_source(data: DataConfig) -> str:
    """data.path, seen to be there, and a file of label fixes that can be read: the first of all mistakes, and the cheapest to find.

    Raises:
        UserError: none is given, there is nothing, or the fixes cannot be read.
    """
    if data.path is None:
        raise UserError("Which pictures? Add --data.path DIR (a folder with one sub-folder per class).")
    if not data.path.startswith(HUB_PREFIX) and not os.path.exists(data.path):
        load_images(data.path)  # which says what is there instead
    if data.label_fixes is not None:
        read_label_fixes(data.label_fixes)
    return data.path


def load_table(config: Config, accelerator: Accelerator) -> ImageTable:
    """The images, with labels in the form that the task takes; collective.

    Raises:
        UserError: nothing there, a layout whose labels would be wrong, or labels that the task does not take.
    """
    data = config.data
    table = main_process_first(accelerator, lambda: load_images(check_source(data), **data.labels, **data.groups))
    return fit_labels(table, config)


def fit_labels(table: ImageTable, config: Config) -> ImageTable:
    """The table with labels in the form that the task takes.

    Raises:
        UserError: it takes one label a picture, and there are several; or the best epoch goes by a score of the other kind.
    """
    task, metric = config.loss.task, config.train.best_metric
    if table.several_labels and task == "classification":
        raise UserError(
            f"The pictures of '{table.source}' have several labels each, and loss.task is classification, which takes one: type "
            "--loss.task multilabel, or name a column of one label with --data.label-column."
        )
    if table.several_labels and task == "distillation":
        raise UserError(
            f"The pictures of '{table.source}' have several labels each, and loss.task distillation compares one class with the "
            "others: type --loss.task multilabel."
        )
    if task == MULTILABEL:
        table = replace(table, labels=as_several(table.labels, len(table.class_names)))
    lacking = ("accuracy",) if table.several_labels else ("map", "micro_f1", "exact_match")
    if metric in lacking:
        kind = "several labels" if table.several_labels else "one label"
        more = "map, micro_f1, exact_match" if table.several_labels else "accuracy"
        raise UserError(
            f"train.best_metric {metric} is not told of pictures with {kind} each: take {more}, macro_f1 or loss."
        )
    if table.several_labels and config.data.sampling == "balanced":
        raise UserError(
            "data.sampling balanced lets classes take turns, and a picture with several labels has several."
        )
    return table


def open_run_parts(config: Config, data: DataParts, recipe: Recipe, accelerator: Accelerator) -> dict[str, Part]:
    transforms = {name: read for name, read in recipe.transforms.items() if data.split.files_of(read[0])}
    return open_parts(
        config.data,
        data.table,
        data.split,
        data.contents,
        transforms,
        accelerator,
        eval_size=recipe.eval_size,
        eval_batch_size=config.train.eval_batch_size,
        compiled=config.train.compile,
        seed=config.train.seed,
    )


def build_loaders(
    config: Config,
    parts: dict[str, ImageDataset],
    stream: StreamBatchSampler,
    trained_per_second: float | None,
    accelerator: Accelerator,
) -> list[DataLoader[Batch]]:
    num_workers, on_cpu = config.data.num_workers, accelerator.device.type == "cpu"
    if num_workers is None:
        loaded_per_second = None if on_cpu else parts["train"].rate()
        num_workers = plan_workers(
            local_cores(num_local_processes(accelerator)),
            on_cpu=on_cpu,
            loaded_per_second=loaded_per_second,
            trained_per_second=trained_per_second,
        )
        if loaded_per_second and trained_per_second:
            log_on_main(
                accelerator,
                f"loading: {number_of(num_workers, 'worker')} for each process; a core makes {loaded_per_second:.0f} pictures/s ready, "
                f"the training takes {trained_per_second:.0f}",
            )
    needing = {part: images.bytes_of_one() for part, images in parts.items() if images.needs_workers and num_workers}
    scored = [config.train.eval_batch_size * size for part, size in needing.items() if part != "train"]
    held = [stream.plan.micro_batch * needing.get("train", 0), max(scored, default=0)]
    num_workers, told = fit_shared_memory(num_workers, held, num_local_processes(accelerator))
    if told:
        log_on_main(accelerator, told)
    return [
        build_loader(
            images,
            stream if part == "train" else SequentialBatchSampler(len(images), config.train.eval_batch_size),
            num_workers=num_workers if images.needs_workers else 0,
            pin_memory=not on_cpu,
        )
        for part, images in parts.items()
    ]
