"""A configuration → everything that the training loop works with, built, prepared by Accelerate and restored.

What can be wrong with a configuration, a folder, weights or a launch is found here, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from accel_flowers.config.schema import Config, DataConfig, ModelConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.progress import tell
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.loader import build_loader
from accel_flowers.data.placement.choose import open_parts, wants_cache
from accel_flowers.data.sampler import BatchPlan, SequentialBatchSampler, StreamBatchSampler, random_key
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import ImageTransform, build_transform, check_repeatable
from accel_flowers.data.validate import validate_all
from accel_flowers.data.workers import local_cores, plan_workers
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
from accel_flowers.tracking.run_dir import SPLIT_FILE, holds_run
from accel_flowers.training.checkpoint import Checkpoints, TrainState
from accel_flowers.training.debugging import subsample_for_debugging
from accel_flowers.training.memory import can_run_out_of_memory, fit_micro_batch
from accel_flowers.training.optim import build_lr_schedule, build_optimizer
from accel_flowers.training.run import Run
from accel_flowers.training.tasks import build_objective


def build_run(config: Config, accelerator: Accelerator) -> Run:
    """Build all parts of a run, and restore them where its directory holds a checkpoint; collective.

    Raises:
        UserError: a mistake in the recipe, the folder or the weights; the same on every process.
    """
    assert config.run_dir is not None
    run_dir, seed, device = Path(config.run_dir), config.train.seed, accelerator.device
    transforms, train_size, eval_size = _build_transforms(config)
    table = _load_table(config.data, accelerator)
    # The plan and the network come before the images are read one by one: their mistakes are quicker to find.
    network = _build_network(config.model, table.class_names, {train_size, eval_size}, accelerator, seed=seed)
    plan = BatchPlan(1, 1, config.train.global_batch_size, accelerator.num_processes, config.train.micro_batch_size)
    split, contents = _decide_split(config, run_dir, table, accelerator)
    check_same_everywhere(accelerator, {**_dataset_fingerprint(table, split), "precision": accelerator.mixed_precision})
    checkpoints = Checkpoints(run_dir, accelerator, config.checkpoint)
    newest, passed_over = broadcast_from_main(accelerator, checkpoints.find_newest)
    log_on_main(accelerator, *passed_over)
    state = newest or TrainState()
    channels_last = wants_channels_last(network)
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    normalizer = Normalizer(config.data.mean, config.data.std, channels_last=channels_last)
    if state.micro_batch_size:
        plan = replace(plan, micro_batch_size=min(state.micro_batch_size, plan.micro_batch))
    trained_per_second = None
    if can_run_out_of_memory(device):
        fits, seconds = fit_micro_batch(network, config.optim, normalizer, plan, train_size, accelerator)
        if fits < plan.micro_batch:
            log_on_main(accelerator, f"out of memory: {fits} pictures in a forward pass instead of {plan.micro_batch}")
            plan, state.micro_batch_size = replace(plan, micro_batch_size=fits), fits
        trained_per_second = fits / seconds
    # After the trial of the memory, which says what is left for images.
    transforms = {name: read for name, read in transforms.items() if split.files_of(read[0])}
    opened = open_parts(
        config.data,
        table,
        split,
        contents,
        transforms,
        accelerator,
        eval_size=eval_size,
        compiled=config.train.compile,
        seed=seed,
    )
    parts = {name: part.images for name, part in opened.items()}
    plan = replace(plan, num_samples=len(parts["train"]), epochs=config.train.epochs)
    stream = StreamBatchSampler(plan, config.train.seed)
    ema = Ema(network, config.ema.decay) if config.ema.decay else None
    if config.train.compile:
        network.compile()  # in place: the names of the weights stay what they are

    model, optimizer, *loaders = accelerator.prepare(
        network,
        build_optimizer(network, config.optim, scaled=accelerator.scaler is not None),
        *_build_loaders(config, parts, stream, trained_per_second, accelerator),
    )
    if ema:
        accelerator.prepare_model(ema.network, evaluation_mode=True)
    disable_buffer_broadcast(model)
    # On a GPU as many as a step has, through which cuDNN has found its ways already.
    few = 2 if device.type == "cpu" else plan.micro_batch
    black = torch.zeros((few, 3, *train_size), dtype=torch.uint8, device=device)
    warm_up_ddp_buckets(model, network, normalizer(black))
    # Not given to the constructor: it follows from the plan, and there an environment variable would beat it.
    accelerator.gradient_accumulation_steps = plan.accumulation
    run = Run(
        config=config,
        run_dir=run_dir,
        accelerator=accelerator,
        split=split,
        network=network,
        model=model,
        optimizer=optimizer,
        loaders=dict(zip(parts, loaders, strict=True)),
        parts=parts,
        to_pixels={name: part.to_pixels for name, part in opened.items()},
        plan=plan,
        objective=build_objective(config.loss, parts["train"].labels, len(split.class_names), device),
        lr_at=build_lr_schedule(config.schedule, lr=config.optim.lr, epochs=config.train.epochs),
        normalizer=normalizer,
        spec=_describe_model(config, split.class_names, accelerator),
        checkpoints=checkpoints,
        state=state,
        ema=ema,
        stream=stream,
    )
    if newest:
        run.restore(newest)
    return run


def _build_transforms(
    config: Config,
) -> tuple[dict[str, tuple[str, ImageTransform]], tuple[int, int], tuple[int, int]]:
    """Loader → the part that it reads and what happens to its images; the sizes (height, width) in training and evaluation.

    First of all, because mistakes in a recipe's lists cost nothing to find.
    """
    for_training, train_size = build_transform(config.data.train_transforms, field="data.train_transforms")
    for_evaluation, eval_size = build_transform(config.data.eval_transforms, field="data.eval_transforms")
    check_repeatable(for_evaluation, field="data.eval_transforms")
    if config.debug.overfit_batches:
        return dict.fromkeys(("train", "val"), ("train", for_evaluation)), eval_size, eval_size
    reads = {"train": ("train", for_training), "val": ("val", for_evaluation), "test": ("test", for_evaluation)}
    return reads, train_size, eval_size


def _dataset_fingerprint(table: ImageTable, split: Split) -> dict[str, object]:
    """What every process must have found in the folder, and been told of the split."""
    return {
        "number of pictures": len(table.files),
        "digest of their names and classes": random_key(*table.files, *map(int, table.labels)),
        **{f"pictures to {part}": len(split.files_of(part)) for part in PARTS},
        "digest of the split": random_key(*map(str, sorted(split.parts.items()))),
    }


def _load_table(data: DataConfig, accelerator: Accelerator) -> ImageTable:
    source = data.path
    if source is None:
        raise UserError("Which pictures? Add --data.path DIR (a folder with one sub-folder per class).")
    return main_process_first(accelerator, lambda: load_images(source))


def _decide_split(
    config: Config, run_dir: Path, table: ImageTable, accelerator: Accelerator
) -> tuple[Split, list[str]]:
    """The split that the main process decides for all, after a look at every image, and each image's digest."""
    asked = str(run_dir / SPLIT_FILE) if holds_run(run_dir) else config.data.split
    examined = cache(lambda: validate_all(table, range(len(table.files))))

    def decide() -> tuple[Split, list[str]]:
        split = decide_split(
            table, asked, seed=config.train.seed, on_bad_image=config.data.on_bad_image, examined=examined
        )
        if not holds_run(run_dir):
            split = subsample_for_debugging(split, table, config)
        tell(*describe_split(table, split))
        return split, [digest for digest, _ in examined()] if wants_cache(config.data, accelerator.device) else []

    return broadcast_from_main(accelerator, decide)


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
            tell(f"{config.name}: {report.summary()}")
            tell(f"{trained:,} parameters train" + (f"; {len(frozen)} tensors are frozen" if frozen else ""))
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
