"""A configuration → a `Run`: data, model and step, built, fitted to the memory and prepared by Accelerate.

What can be wrong with a configuration, a folder, weights or a launch is found here, before the first step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from accel_flowers.config.schema import Config, DataConfig, ModelConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data.content import content_facts, table_facts
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.loader import build_loader
from accel_flowers.data.placement.choose import Part, open_parts, wants_cache
from accel_flowers.data.sampler import BatchPlan, SequentialBatchSampler, StreamBatchSampler, random_key, shrunk_to
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, Split
from accel_flowers.data.table import HUB_PREFIX, ImageTable
from accel_flowers.data.transforms.batch import BatchContext, build_batch_transform
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
from accel_flowers.distributed.ddp import disable_buffer_broadcast, warm_up_ddp_buckets
from accel_flowers.models.backbone import check_input, wants_channels_last
from accel_flowers.models.ema import Ema
from accel_flowers.models.find import find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.saved import ModelSpec
from accel_flowers.models.seen import SEEN_PARTS, Digests, short_digests
from accel_flowers.tracking.run_dir import how_to_build_on
from accel_flowers.training.checkpoint import TrainState
from accel_flowers.training.debugging import subsample_for_debugging
from accel_flowers.training.memory import can_run_out_of_memory, check_training_mode, fit_micro_batch
from accel_flowers.training.optim import build_lr_schedule, build_optimizer
from accel_flowers.training.run import Run
from accel_flowers.training.step import TrainStep
from accel_flowers.training.tasks import Task, TaskContext, build_task

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


@dataclass(frozen=True)
class ModelParts:
    """The network on its device, and what stands around it."""

    network: nn.Module
    normalizer: Normalizer


def build_run(
    config: Config, accelerator: Accelerator, *, split_file: Path | None = None, state: TrainState | None = None
) -> Run:
    """Build all parts of a run; collective.

    Args:
        config: resolved; `data.path` is set.
        accelerator: the processes.
        split_file: of a run that goes on, which is obeyed; None = as the configuration says.
        state: where a run goes on; None = it begins.

    Raises:
        UserError: a mistake in the recipe, the folder or the weights; the same on every process.
    """
    state = state or TrainState()
    recipe = read_transforms(config)
    table = _load_table(config.data, accelerator)
    # The network and the plan come before the images are read one by one: their mistakes are quicker to find.
    sizes = {recipe.train_size, recipe.eval_size}
    network = _build_network(config.model, table.class_names, sizes, accelerator, seed=config.train.seed)
    plan = BatchPlan(1, 1, config.train.global_batch_size, accelerator.num_processes, config.train.micro_batch_size)
    check_training_mode(network, recipe.train_size, plan.micro_batch)
    data = build_data(config, table, accelerator, split_file=split_file)
    if not config.debug.overfit_batches:
        plan = _fit_to_images(plan, data, accelerator)
    model = place_model(network, config.data, accelerator)
    task = _build_task(config, data, accelerator)
    if state.micro_batch_size:
        plan = replace(plan, micro_batch_size=min(state.micro_batch_size, plan.micro_batch))
    plan, trained_per_second = fit_memory(plan, model, task, config, recipe, len(table.class_names), accelerator)
    if plan.micro_batch_size != config.train.micro_batch_size:
        state.micro_batch_size = plan.micro_batch_size
    # After the trial of the memory, which says what is left for images.
    opened = _open_parts(config, data, recipe, accelerator)
    return prepare(config, accelerator, data, model, task, plan, opened, recipe, state, trained_per_second)


def _fit_to_images(plan: BatchPlan, data: DataParts, accelerator: Accelerator) -> BatchPlan:
    num_images = len(data.split.files_of("train"))
    fits = shrunk_to(plan, num_images)
    if fits != plan:
        log_on_main(
            accelerator,
            f"train.global_batch_size {plan.global_batch_size} is more than the {num_images} pictures to train on: "
            f"{fits.global_batch_size} is taken",
        )
    return fits


def read_transforms(config: Config) -> Recipe:
    """Make a recipe's transforms.

    Raises:
        UserError: a mistake in its lists.
    """
    for_training, train_size = build_transform(config.data.train_transforms, field="data.train_transforms")
    for_evaluation, eval_size = build_transform(config.data.eval_transforms, field="data.eval_transforms")
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
    fingerprint = {**_dataset_fingerprint(table, split), "precision": accelerator.mixed_precision}
    check_same_everywhere(accelerator, fingerprint)
    if accelerator.num_processes > 1:
        check_same_everywhere(accelerator, content_facts(table, sorted(split.parts), seed=config.train.seed))
    return DataParts(table, split, contents, seen)


def _how_to_go_on(run_dir: Path) -> str:
    return (
        "Put them back as they were and go on with --resume auto, or begin a new run with --run-dir DIR"
        f"{how_to_build_on(run_dir)}."
    )


def place_model(network: nn.Module, data: DataConfig, accelerator: Accelerator) -> ModelParts:
    """Move a network to its device, in the memory layout that is fastest there."""
    channels_last = wants_channels_last(network)
    network.to(accelerator.device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return ModelParts(network, Normalizer(data.mean, data.std, channels_last=channels_last))


def fit_memory(
    plan: BatchPlan,
    model: ModelParts,
    task: Task,
    config: Config,
    recipe: Recipe,
    num_classes: int,
    accelerator: Accelerator,
) -> tuple[BatchPlan, float | None]:
    """The plan with a micro-batch that fits into every process's memory, and images a second of the trial; collective.

    Raises:
        UserError: not even the smallest fits.
    """
    if not can_run_out_of_memory(accelerator.device):
        return plan, None
    step = TrainStep(
        engine=accelerator,
        model=model.network,
        optimizer=None,
        task=task,
        to_inputs=lambda batch: model.normalizer(batch["pixels"]),
        mix=build_batch_transform(
            config.data.batch_transform, BatchContext(num_classes, config.train.seed, plan.micro_batch)
        ),
        max_grad_norm=config.optim.max_grad_norm,
    )
    fits, seconds = fit_micro_batch(step, config.optim, plan, recipe.train_size, num_classes, accelerator)
    if fits < plan.micro_batch:
        log_on_main(accelerator, f"out of memory: {fits} pictures in a forward pass instead of {plan.micro_batch}")
        plan = replace(plan, micro_batch_size=fits)
    return plan, fits / seconds


def prepare(
    config: Config,
    accelerator: Accelerator,
    data: DataParts,
    model: ModelParts,
    task: Task,
    plan: BatchPlan,
    opened: dict[str, Part],
    recipe: Recipe,
    state: TrainState,
    trained_per_second: float | None,
) -> Run:
    """Hand network, optimizer and loaders to Accelerate; collective."""
    network, normalizer, device = model.network, model.normalizer, accelerator.device
    parts = {name: part.images for name, part in opened.items()}
    to_pixels = {name: part.to_pixels for name, part in opened.items()}
    plan = replace(plan, num_samples=len(parts["train"]), epochs=config.train.epochs)
    stream = StreamBatchSampler(plan, config.train.seed)
    if config.train.compile:
        network.compile()  # in place: the names of the weights stay what they are
    wrapped, optimizer, *loaders = accelerator.prepare(
        network,
        build_optimizer(network, config.optim, scaled=accelerator.scaler is not None),
        *_build_loaders(config, parts, stream, trained_per_second, accelerator),
    )
    ema = Ema(network, config.ema.decay) if config.ema.decay else None
    disable_buffer_broadcast(wrapped)
    # On a GPU as many as a step has, because cuDNN has autotuned this batch size already.
    few = 2 if device.type == "cpu" else plan.micro_batch
    black = torch.zeros((few, 3, *recipe.train_size), dtype=torch.uint8, device=device)
    warm_up_ddp_buckets(wrapped, network, normalizer(black))
    # Not given to the constructor: it follows from the plan, and there an environment variable would beat it.
    accelerator.gradient_accumulation_steps = plan.accumulation
    class_names = data.split.class_names
    train_step = TrainStep(
        engine=accelerator,
        model=wrapped,
        optimizer=optimizer,
        task=task,
        to_inputs=lambda batch: normalizer(to_pixels["train"](batch)),
        mix=build_batch_transform(
            config.data.batch_transform, BatchContext(len(class_names), config.train.seed, plan.micro_batch)
        ),
        max_grad_norm=config.optim.max_grad_norm,
    )
    return Run(
        config=config,
        accelerator=accelerator,
        split=data.split,
        network=network,
        optimizer=optimizer,
        train_step=train_step,
        loaders=dict(zip(parts, loaders, strict=True)),
        parts=parts,
        to_pixels=to_pixels,
        plan=plan,
        lr_at=build_lr_schedule(config.schedule, lr=config.optim.lr, epochs=config.train.epochs, step=plan.epoch_at(1)),
        normalizer=normalizer,
        spec=_describe_model(config, class_names, accelerator),
        state=state,
        ema=ema,
        stream=stream,
        seen=data.seen,
    )


def _dataset_fingerprint(table: ImageTable, split: Split) -> dict[str, object]:
    """What every process must have found in the folder, and been told of the split."""
    return {
        **table_facts(table),
        **{f"pictures to {part}": len(split.files_of(part)) for part in PARTS},
        "digest of the split": random_key(*map(str, sorted(split.parts.items()))),
    }


def check_source(data: DataConfig) -> str:
    """data.path, seen to be there: the first of all mistakes, and the cheapest to find.

    Raises:
        UserError: none is given, or there is nothing.
    """
    if data.path is None:
        raise UserError("Which pictures? Add --data.path DIR (a folder with one sub-folder per class).")
    if not data.path.startswith(HUB_PREFIX) and not os.path.exists(data.path):
        load_images(data.path)  # which says what is there instead
    return data.path


def _load_table(data: DataConfig, accelerator: Accelerator) -> ImageTable:
    return main_process_first(accelerator, lambda: load_images(check_source(data), label_column=data.label_column))


def _build_task(config: Config, data: DataParts, accelerator: Accelerator) -> Task:
    context = TaskContext(
        config=config.loss,
        labels=data.train_labels,
        class_names=data.split.class_names,
        device=accelerator.device,
        mean=config.data.mean,
        std=config.data.std,
    )
    return build_task(context)


def _open_parts(config: Config, data: DataParts, recipe: Recipe, accelerator: Accelerator) -> dict[str, Part]:
    transforms = {name: read for name, read in recipe.transforms.items() if data.split.files_of(read[0])}
    return open_parts(
        config.data,
        data.table,
        data.split,
        data.contents,
        transforms,
        accelerator,
        eval_size=recipe.eval_size,
        compiled=config.train.compile,
        seed=config.train.seed,
    )


def _build_network(
    config: ModelConfig,
    class_names: Sequence[str],
    sizes: Iterable[tuple[int, int]],
    accelerator: Accelerator,
    *,
    seed: int,
) -> nn.Module:
    """The network with its first weights, frozen as asked, checked against the images' sizes."""

    def build() -> nn.Module:
        # The same seed on every process and whatever was drawn before: the new last layer starts the same anywhere.
        torch.manual_seed(random_key(seed, "first weights"))
        backbone = find_backbone(config.name)
        network, report = backbone.build(len(class_names), weights=config.weights, dropout=config.dropout)
        frozen = freeze(network, config.freeze, backbone)
        for height, width in sizes:
            check_input(network, (3, height, width), num_classes=len(class_names))
        if accelerator.is_main_process:
            trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
            _log.info(f"{config.name}: {report.summary()}")
            _log.info(f"{trained:,} parameters train" + (f"; {len(frozen)} tensors are frozen" if frozen else ""))
        return network

    return main_process_first(accelerator, build)


def _build_loaders(
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
                f"loading: {num_workers} workers for each process; a core makes {loaded_per_second:.0f} pictures/s ready, "
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


def _describe_model(config: Config, class_names: tuple[str, ...], accelerator: Accelerator) -> ModelSpec:
    return ModelSpec(
        architecture=config.model.name,
        dropout=config.model.dropout,
        class_names=class_names,
        transforms=config.data.eval_transforms,
        mean=config.data.mean,
        std=config.data.std,
        precision=accelerator.mixed_precision,
        eval_batch_size=config.train.eval_batch_size,
    )
