"""A configuration → a `Run`: data, model and step, built, fitted to the memory and prepared by Accelerate.

What can be wrong with a configuration, weights or a launch is found here (with images: in `build_data.py`), before the
first step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from accel_flowers.config.schema import Config, DataConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.placement.choose import Part
from accel_flowers.data.placement.resident import in_halves
from accel_flowers.data.sampler import BalancedOrder, BatchPlan, StreamBatchSampler, random_key, shrunk_to
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.data.transforms.build_batch import build_batch_transform
from accel_flowers.distributed.collectives import (
    log_on_main,
    main_process_first,
)
from accel_flowers.distributed.ddp import disable_buffer_broadcast, rewrap, warm_up_ddp_buckets
from accel_flowers.models.backbone import check_input, wants_channels_last
from accel_flowers.models.depthwise import learn_depthwise_in_float32
from accel_flowers.models.ema import Ema
from accel_flowers.models.find import find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.layers import ends_of_stages, layers_of
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.spec import ModelSpec
from accel_flowers.training.build_data import (
    DataParts,
    Recipe,
    build_data,
    build_loaders,
    load_table,
    open_run_parts,
    read_transforms,
)
from accel_flowers.training.build_task import build_task
from accel_flowers.training.debugging import check_deterministic
from accel_flowers.training.graph import graphed
from accel_flowers.training.memory import can_run_out_of_memory, check_training_mode, fit_micro_batch
from accel_flowers.training.optim import build_optimizer, schedule_of
from accel_flowers.training.phases import build_phases
from accel_flowers.training.record import training_record
from accel_flowers.training.run import Run
from accel_flowers.training.sam import sharpness_aware
from accel_flowers.training.scaling import advice_on_batches, normalises_batches
from accel_flowers.training.state import TrainState
from accel_flowers.training.step import Engine, InPrecision, LocalEngine, TrainStep, loaded_whole
from accel_flowers.training.stretch import stretched
from accel_flowers.training.tasks import PlacedTask, Task, TaskContext

_log = logging.getLogger(__name__)


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
    table = load_table(config, accelerator)
    # The network and the plan come before the images are read one by one: their mistakes are quicker to find.
    plan = BatchPlan(1, 1, config.train.global_batch_size, accelerator.num_processes, config.train.micro_batch_size)
    sizes = {recipe.train_size, recipe.eval_size}
    network = _build_network(config, table.class_names, sizes, accelerator)
    check_deterministic(config, network, accelerator.device)
    smallest = _check_smaller_sizes(network, config, plan, recipe.train_size, len(table.class_names))
    check_training_mode(network, smallest, plan.micro_batch)
    data = build_data(config, table, accelerator, split_file=split_file)
    plan = _fit_to_images(plan, data, accelerator)
    model = place_model(network, config.data, accelerator)
    task = _build_task(config, data, recipe, accelerator, network, plan.micro_batch)
    if state.micro_batch_size:
        plan = replace(plan, micro_batch_size=min(state.micro_batch_size, plan.micro_batch))
    plan, trained_per_second = fit_memory(plan, model, task, config, recipe, len(table.class_names), accelerator)
    if plan.micro_batch_size != config.train.micro_batch_size:
        state.micro_batch_size = plan.micro_batch_size
    num_images, on_cpu = len(data.split.files_of("train")), accelerator.device.type == "cpu"
    advice = advice_on_batches(
        plan, config, num_images, on_cpu=on_cpu, has_batch_norm=normalises_batches(model.network)
    )
    log_on_main(accelerator, *([advice] if advice else []))
    config, told = stretched(config, num_images, plan.global_batch_size)
    log_on_main(accelerator, *told)
    # After the trial of the memory, which says what is left for images.
    opened = open_run_parts(config, data, recipe, accelerator)
    return prepare(config, accelerator, data, model, task, plan, opened, recipe, state, trained_per_second)


def _check_smaller_sizes(
    network: nn.Module, config: Config, plan: BatchPlan, whole: tuple[int, int], num_classes: int
) -> tuple[int, int]:
    """See that the network takes the pictures of all sizes that batch transforms make of whole ones; gives the smallest.

    Raises:
        UserError: it does not, or nothing is made smaller where something should be.
    """
    mix = build_batch_transform(
        config.data.batch_transforms, BatchContext(num_classes, config.train.seed, plan.micro_batch)
    )
    sizes = mix.smaller_sizes(whole) if mix else []
    if sizes and config.train.compile:
        raise UserError(
            "data.batch_transform: progressive_size goes without --train.compile, which makes a program for pictures of one size, and for "
            "another one makes a new one or fails: take one of the two."
        )
    for height, width in sizes:
        try:
            check_input(network, (3, height, width), num_classes=num_classes)
        except UserError as error:
            raise UserError(
                f"data.batch_transform: progressive_size would give {config.model.name} {height} x {width} pixels on the way to "
                f"{whole[0]} x {whole[1]}, which it does not take: give a larger from, take a network for any size, such as resnet18, or leave it out.\n{error}"
            ) from None
    return sizes[0] if sizes else whole


def _fit_to_images(plan: BatchPlan, data: DataParts, accelerator: Accelerator) -> BatchPlan:
    num_images = len(data.split.files_of("train"))
    fits = shrunk_to(plan, num_images)
    if fits != plan:
        log_on_main(
            accelerator,
            f"train.global_batch_size {plan.global_batch_size} is more than the {number_of(num_images, 'picture')} to train on: "
            f"{fits.global_batch_size} is taken",
        )
    return fits


def place_model(network: nn.Module, data: DataConfig, accelerator: Accelerator) -> ModelParts:
    """Move a network to its device, in the memory layout that is fastest there."""
    channels_last, preprocessing = wants_channels_last(network), data.preprocessing()
    network.to(accelerator.device)
    learn_depthwise_in_float32(network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return ModelParts(network, Normalizer(preprocessing.mean, preprocessing.std, channels_last=channels_last))


def fit_memory(
    plan: BatchPlan,
    model: ModelParts,
    task: Task | PlacedTask,
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
    step = blank_step(plan, model, task, config, num_classes, accelerator)
    fits, seconds = fit_micro_batch(
        step, config.optim, plan, recipe.train_size, num_classes, accelerator, ema_decay=config.ema.decay or 0.0
    )
    if fits < plan.micro_batch:
        log_on_main(
            accelerator, f"out of memory: {number_of(fits, 'picture')} in a forward pass instead of {plan.micro_batch}"
        )
        plan = replace(plan, micro_batch_size=fits)
    return plan, fits / seconds


def blank_step(
    plan: BatchPlan, model: ModelParts, task: Task | PlacedTask, config: Config, num_classes: int, engine: Engine
) -> TrainStep:
    """The run's step on images that a trial draws, before anything is prepared; it has no optimizer yet."""
    step = TrainStep(
        engine=engine,
        model=model.network,
        optimizer=None,
        task=task,
        load=loaded_whole,
        to_inputs=model.normalizer,
        mix=build_batch_transform(
            config.data.batch_transforms, BatchContext(num_classes, config.train.seed, plan.micro_batch)
        ),
        max_grad_norm=config.optim.max_grad_norm,
    )
    return sharpness_aware(step, config.optim.sam_rho)


def build_trial(config: Config, accelerator: Accelerator) -> tuple[TrainStep, tuple[int, int], int]:
    """What a benchmark of several processes needs of a run: its step, on one process and in the run's precision; collective.

    Returns:
        The step, height and width of its images, and the number of classes.

    Raises:
        UserError: as of `build_run`.
    """
    recipe = read_transforms(config)
    table = load_table(config, accelerator)
    network = _build_network(config, table.class_names, {recipe.train_size}, accelerator)
    data = build_data(config, table, accelerator)
    model = place_model(network, config.data, accelerator)
    num_classes, plan = len(table.class_names), BatchPlan(1, 1, config.train.global_batch_size)
    task = _build_task(config, data, recipe, accelerator, network, plan.micro_batch)
    step = blank_step(plan, model, task, config, num_classes, LocalEngine())
    return replace(step, model=InPrecision(model.network, accelerator.autocast)), recipe.train_size, num_classes


def prepare(
    config: Config,
    accelerator: Accelerator,
    data: DataParts,
    model: ModelParts,
    task: Task | PlacedTask,
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
    if state.num_steps:
        plan = plan.ending_at(state.num_steps)
    balanced = config.data.sampling == "balanced"
    order = BalancedOrder(parts["train"].labels.numpy(), config.train.seed) if balanced else None
    stream = StreamBatchSampler(plan, config.train.seed, balanced=order)
    layers = layers_of(network, find_backbone(config.model.name))
    if config.train.compile:
        network.compile()  # in place: the names of the weights stay what they are
    # The optimizer gets all that ever trains, DDP what trains where the run stands.
    trainer = build_optimizer(
        network, config.optim, layers=layers, apart=config.train.head_epochs > 0, scaled=accelerator.scaler is not None
    )
    ever_trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    phases = build_phases(network, list(layers.values()), config.train)
    phases.enter(plan.epoch_at(state.step - state.skipped_steps))
    wrapped, optimizer, *loaders = accelerator.prepare(
        network,
        trainer,
        *build_loaders(config, parts, stream, trained_per_second, accelerator),
    )
    ema = Ema(network, config.ema.decay) if config.ema.decay else None
    if ema:  # whose statistics the processes average is read from what trains: in the copy all that ever does
        for name, parameter in ema.network.named_parameters():
            parameter.requires_grad_(name in ever_trained)
    disable_buffer_broadcast(wrapped)
    # On a GPU as many as a step has, because cuDNN has autotuned this batch size already.
    few = 2 if device.type == "cpu" else plan.micro_batch
    black = torch.zeros((few, 3, *recipe.train_size), dtype=torch.uint8, device=device)
    inputs = normalizer(black)
    warm_up_ddp_buckets(wrapped, network, inputs)

    def wrap_anew(model: nn.Module) -> nn.Module:
        model = rewrap(model, accelerator)
        warm_up_ddp_buckets(model, network, inputs)
        return model

    # Not given to the constructor: it follows from the plan, and there an environment variable would beat it.
    accelerator.gradient_accumulation_steps = plan.accumulation
    class_names = data.split.class_names
    scale = accelerator.scaler.scale if accelerator.scaler else None
    load, finish = in_halves(to_pixels["train"])
    unmixed = TrainStep(
        engine=accelerator,
        model=network,
        optimizer=optimizer,
        task=task,
        load=load,
        to_inputs=lambda *loaded: normalizer(finish(*loaded)),
        max_grad_norm=config.optim.max_grad_norm,
    )

    def build_step(model: nn.Module, plan: BatchPlan) -> TrainStep:
        seed, size = config.train.seed, plan.micro_batch
        context = BatchContext(len(class_names), seed, size, plan.num_samples, plan.length, plan.global_batch_size)
        mix = build_batch_transform(config.data.batch_transforms, context)
        step = sharpness_aware(replace(unmixed, model=model, mix=mix), config.optim.sam_rho, scale)
        return graphed(step, config, device=device, plan=plan)

    return Run(
        config=config,
        accelerator=accelerator,
        split=data.split,
        network=network,
        optimizer=optimizer,
        train_step=build_step(wrapped, plan),
        loaders=dict(zip(parts, loaders, strict=True)),
        parts=parts,
        to_pixels=to_pixels,
        plan=plan,
        lr_at=schedule_of(config, plan),
        normalizer=normalizer,
        spec=_describe_model(config, data, accelerator),
        state=state,
        ema=ema,
        stream=stream,
        seen=data.seen,
        phases=phases,
        build_step=build_step,
        rewrap=wrap_anew,
    )


def _build_task(
    config: Config,
    data: DataParts,
    recipe: Recipe,
    accelerator: Accelerator,
    network: nn.Module,
    micro_batch: int,
) -> Task | PlacedTask:
    preprocessing = config.data.preprocessing()
    context = TaskContext(
        config=config.loss,
        labels=data.train_labels,
        class_names=data.split.class_names,
        device=accelerator.device,
        mean=preprocessing.mean,
        std=preprocessing.std,
        image_size=recipe.train_size,
        tell=partial(log_on_main, accelerator),
        autocast=accelerator.autocast,
        seed=config.train.seed,
        micro_batch=micro_batch,
        network=network,
        stages=ends_of_stages(network, find_backbone(config.model.name)),
    )
    task = build_task(context)
    if config.train.compile and isinstance(task, PlacedTask):
        raise UserError(
            f"loss.task: {config.loss.task} draws for each batch what it does inside the network, which a compiled one does not follow: "
            "leave --train.compile out."
        )
    return task


def _build_network(
    config: Config,
    class_names: Sequence[str],
    sizes: Iterable[tuple[int, int]],
    accelerator: Accelerator,
) -> nn.Module:
    """The network with its first weights, frozen as asked, checked against the images' sizes."""

    model = config.model

    def build() -> nn.Module:
        # The same seed on every process and whatever was drawn before: the new last layer starts the same anywhere.
        torch.manual_seed(random_key(config.train.seed, "first weights"))
        backbone = find_backbone(model.name)
        network, report = backbone.build(len(class_names), weights=model.weights, dropout=model.dropout)
        if config.optim.layer_decay is not None:
            layers_of(network, backbone, stages_for="--optim.layer-decay")
        if config.train.unfreeze_every_epochs is not None:
            layers_of(network, backbone, stages_for="--train.unfreeze-every-epochs")
        frozen = freeze(network, model.freeze, backbone)
        for height, width in sizes:
            check_input(network, (3, height, width), num_classes=len(class_names))
        if accelerator.is_main_process:
            trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
            _log.info(f"{model.name}: {report.summary()}")
            _log.info(
                f"{trained:,} parameters train" + (f"; {number_of(len(frozen), 'tensor')} frozen" if frozen else "")
            )
        return network

    return main_process_first(accelerator, build)


def _describe_model(config: Config, data: DataParts, accelerator: Accelerator) -> ModelSpec:
    preprocessing, table = config.data.preprocessing(), data.table
    return ModelSpec(
        architecture=config.model.name,
        dropout=config.model.dropout,
        class_names=table.class_names,
        several_labels=table.several_labels,
        transforms=preprocessing.eval_transforms,
        mean=preprocessing.mean,
        std=preprocessing.std,
        precision=accelerator.mixed_precision,
        eval_batch_size=config.train.eval_batch_size,
        training=training_record(config, table, data.split),
    )
