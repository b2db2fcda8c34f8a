"""The training run: from a configuration to a run directory. The loop at the heart of it is `_Run.loop`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accel_flowers.checkpoint import BEST, Checkpoints, TrainState
from accel_flowers.config import Config, DataConfig, config_to_dict
from accel_flowers.data.batches import Batch, Pictures, build_loader, choose_num_workers
from accel_flowers.data.folder import ImageTable, load_images
from accel_flowers.data.inspect import decide_split, describe_split
from accel_flowers.data.order import EveryOnce, StepPlan, TrainStream, random_key
from accel_flowers.data.split import PARTS, Split, save_split
from accel_flowers.data.transforms import Normalizer, PictureTransform, build_transform, check_repeatable
from accel_flowers.errors import UserError
from accel_flowers.evaluate import predict_loader
from accel_flowers.freezing import freeze, set_training_mode
from accel_flowers.metrics import headline, summarize
from accel_flowers.models import build_network, check_input, wants_channels_last
from accel_flowers.objectives import build_objective
from accel_flowers.optim import build_lr_schedule, build_optimizer, set_lr
from accel_flowers.processes import average_buffers, build_accelerator, decided_by_main, main_first
from accel_flowers.progress import Progress, tell
from accel_flowers.run_dir import MODEL_DIR, SPLIT_FILE, begin_run, check_run_dir, holds_run, read_run_id
from accel_flowers.saved_model import ModelCard, save_model, update_scores
from accel_flowers.tracking import (
    METRICS_FILE,
    JsonlTracker,
    forget_after,
    prefixed,
    start_trackers,
    tracker_names,
    write_summary,
)


def train(config: Config) -> dict[str, Any]:
    """Train, keep the best, score the test part once.

    Args:
        config: resolved; `run_dir` and `data.path` are set.

    Returns:
        Part → scores: of the best epoch on "val" and, where there is such a part, on "test".

    Raises:
        UserError: a mistake in the configuration, the folder, the weights or the launch, found before the first step.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    trackers = [JsonlTracker(run_dir / METRICS_FILE), *tracker_names(config.tracking)]
    accelerator = build_accelerator(trackers=trackers, run_dir=run_dir)
    decided_by_main(accelerator, lambda: check_run_dir(run_dir, config))
    transforms = _build_transforms(config.data)
    table, split = _load_pictures(config, run_dir, accelerator)
    run = _Run.prepare(config, run_dir, accelerator, transforms, table, split)
    run.begin(config, split)
    try:
        run.loop()
        return run.finish()
    finally:
        run.progress.close()
        accelerator.end_training()


@dataclass(frozen=True)
class _Transforms:
    """Part → what happens to its pictures, and the sizes (height, width) that come out."""

    of: dict[str, PictureTransform]
    sizes: frozenset[tuple[int, int]]


def _build_transforms(data: DataConfig) -> _Transforms:
    """Mistakes in a recipe's lists are found before any picture is read."""
    for_training, train_size = build_transform(data.train_transforms, field="data.train_transforms")
    for_evaluation, eval_size = build_transform(data.eval_transforms, field="data.eval_transforms")
    check_repeatable(for_evaluation, field="data.eval_transforms")
    parts = {"train": for_training, "val": for_evaluation, "test": for_evaluation}
    return _Transforms(parts, frozenset({train_size, eval_size}))


def _load_pictures(config: Config, run_dir: Path, accelerator: Accelerator) -> tuple[ImageTable, Split]:
    """The rows, and the split that the main process decided for all."""
    source = config.data.path
    if source is None:
        raise UserError("Which pictures? Add --data.path DIR (a folder with one sub-folder per class).")
    table = main_first(accelerator, lambda: load_images(source))
    resumed = run_dir / SPLIT_FILE if holds_run(run_dir) else None

    def decide() -> Split:
        split = decide_split(
            table,
            str(resumed or config.data.split),
            seed=config.train.seed,
            on_bad_image=config.data.on_bad_image,
        )
        tell(*describe_split(table, split))
        return split

    return table, decided_by_main(accelerator, decide)


@dataclass
class _Run:
    """Everything that the loop works with, built and prepared."""

    config: Config
    run_dir: Path
    accelerator: Accelerator
    network: nn.Module
    """The plain network: its state has plain names, its forward runs in the launcher's precision."""
    model: nn.Module
    """The same network as Accelerate wrapped it for the processes."""
    optimizer: Any
    loaders: dict[str, DataLoader[Batch]]
    sizes: dict[str, int]
    plan: StepPlan
    objective: Any
    lr_at: Any
    normalizer: Normalizer
    card: ModelCard
    checkpoints: Checkpoints
    state: TrainState
    progress: Progress

    @classmethod
    def prepare(
        cls,
        config: Config,
        run_dir: Path,
        accelerator: Accelerator,
        transforms: _Transforms,
        table: ImageTable,
        split: Split,
    ) -> _Run:
        """Build all parts, and restore them where the run directory holds a checkpoint."""
        seed, device = config.train.seed, accelerator.device
        parts = {
            part: Pictures(table, part, split, transforms.of[part], seed=seed) for part in PARTS if split.files_of(part)
        }
        network = _build_network(config, split.class_names, transforms.sizes, accelerator)
        plan = StepPlan(
            num_samples=len(parts["train"]),
            epochs=config.train.epochs,
            global_batch_size=config.train.global_batch_size,
            num_processes=accelerator.num_processes,
            micro_batch_size=config.train.micro_batch_size,
        )
        checkpoints = Checkpoints(run_dir, accelerator)
        state = decided_by_main(accelerator, checkpoints.load_state) or TrainState()
        if state.step:
            checkpoints.load_weights(network, "last")

        num_workers = choose_num_workers(config.data.num_workers, accelerator.num_processes)
        batches = {
            part: TrainStream(plan, seed, start_step=state.step)
            if part == "train"
            else EveryOnce(len(pictures), config.train.eval_batch_size)
            for part, pictures in parts.items()
        }
        loaders = {
            part: build_loader(pictures, batches[part], num_workers=num_workers, pin_memory=device.type == "cuda")
            for part, pictures in parts.items()
        }
        channels_last = wants_channels_last(network)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if config.train.compile:
            network.compile()  # in place: the names of the weights stay what they are
        model, optimizer, *prepared = accelerator.prepare(
            network, build_optimizer(network, config.optim), *loaders.values()
        )
        if state.step:
            checkpoints.load_optimizer(optimizer)
        # Set here and not in the constructor: it follows from the plan, and an environment variable would beat it there.
        accelerator.gradient_accumulation_steps = plan.accumulation
        return cls(
            config=config,
            run_dir=run_dir,
            accelerator=accelerator,
            network=network,
            model=model,
            optimizer=optimizer,
            loaders=dict(zip(loaders, prepared, strict=True)),
            sizes={part: len(pictures) for part, pictures in parts.items()},
            plan=plan,
            objective=build_objective(config.loss, parts["train"].labels, len(split.class_names), device),
            lr_at=build_lr_schedule(config.schedule, lr=config.optim.lr, epochs=config.train.epochs),
            normalizer=Normalizer(config.data.mean, config.data.std, channels_last=channels_last),
            card=ModelCard(
                architecture=config.model.name,
                dropout=config.model.dropout,
                class_names=split.class_names,
                transforms=config.data.eval_transforms,
                mean=config.data.mean,
                std=config.data.std,
                precision=accelerator.mixed_precision,
                eval_batch_size=config.train.eval_batch_size,
            ),
            checkpoints=checkpoints,
            state=state,
            progress=Progress(plan.num_steps, state.step, enabled=accelerator.is_main_process),
        )

    def begin(self, config: Config, split: Split) -> None:
        """Write what the run directory holds from the start, open the trackers, say what comes."""
        accelerator, plan = self.accelerator, self.plan

        def write() -> str:
            if not holds_run(self.run_dir):
                begin_run(
                    self.run_dir,
                    config,
                    num_processes=accelerator.num_processes,
                    precision=accelerator.mixed_precision,
                    device=str(accelerator.device),
                )
                save_split(split, self.run_dir / SPLIT_FILE)
            forget_after(self.run_dir / METRICS_FILE, self.state.step)
            return read_run_id(self.run_dir)

        run_id = decided_by_main(accelerator, write)
        start_trackers(accelerator, config.tracking, config_to_dict(config), run_dir=self.run_dir, run_id=run_id)
        self.progress.line(
            f"{accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}; a step = "
            f"{plan.global_batch_size} pictures = {plan.accumulation} x {plan.micro_batch} on each of "
            f"{accelerator.num_processes}; {plan.num_steps} steps in {plan.epochs} epochs"
            + (f"; going on after step {self.state.step}" if self.state.step else "")
        )

    def loop(self) -> None:
        """The whole training: one pass over the stream of micro-batches, from the step where the run stands."""
        accelerator, config, plan, state = self.accelerator, self.config, self.plan, self.state
        set_training_mode(self.network)
        meter = _Meter(accelerator)
        if self._out_of_patience():
            return
        for batch in self.loaders["train"]:
            lr = self.lr_at(plan.epoch_at(state.step))
            set_lr(self.optimizer, lr)
            _seed_dropout(config.train.seed, batch["micro_batch"])
            with accelerator.accumulate(self.model):
                loss = self.objective(self.model(self.normalizer(batch["pixels"])), batch["labels"])
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.optim.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(self.network.parameters(), config.optim.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            meter.add(loss.detach())
            if not accelerator.sync_gradients:
                continue

            # An optimizer step is done.
            state.step += 1
            epoch_ends = plan.epochs_completed_at(state.step) > plan.epochs_completed_at(state.step - 1)
            if epoch_ends or state.step % config.train.log_every_steps == 0:
                self._log_step(meter, lr)
            if epoch_ends:
                self._end_epoch()
                if self._out_of_patience():
                    self.progress.line(f"no gain in {state.epochs_without_gain} epochs: stopping early")
                    break
                set_training_mode(self.network)
                meter = _Meter(accelerator)

    def _log_step(self, meter: _Meter, lr: float) -> None:
        loss, images_per_second = meter.read(self.plan)
        step = self.state.step
        self.accelerator.log(
            {
                "epoch": self.plan.epoch_at(step),
                "train/loss": loss,
                "lr": lr,
                "speed/images_per_second": images_per_second,
            },
            step=step,
        )
        self.progress.step(step, loss=loss, lr=lr, images_per_second=images_per_second)

    def _end_epoch(self) -> None:
        """Score the validation part, save, and remember whether this is the best so far; collective."""
        state, metric = self.state, self.config.train.best_metric
        epoch = self.plan.epochs_completed_at(state.step)
        average_buffers(self.network, self.accelerator)
        scores = self._score("val")
        value = scores[metric]
        is_best = state.best_value is None or (
            value < state.best_value if metric == "loss" else value > state.best_value
        )
        state.epochs_without_gain += 1
        if is_best:
            state.best_value, state.best_epoch, state.best_step, state.epochs_without_gain = value, epoch, state.step, 0
        self.accelerator.log(
            {"epoch": self.plan.epoch_at(state.step), **prefixed("val", headline(scores))}, step=state.step
        )
        self.checkpoints.save(self.network, self.optimizer, state, is_best=is_best)
        if is_best and self.accelerator.is_main_process:
            where = {"epoch": epoch, "step": state.step}
            card = self.card.model_copy(update={"scores": {"val": {**scores, **where}}})
            save_model(self.run_dir / MODEL_DIR, self.network, card)
        self.progress.line(
            f"epoch {epoch}/{self.plan.epochs}  val accuracy {scores['accuracy']:.4f}  loss {scores['loss']:.4f}  "
            f"macro F1 {scores['macro_f1']:.4f}" + ("  best so far" if is_best else "")
        )

    def _score(self, part: str) -> dict[str, Any]:
        predictions = predict_loader(
            self.network, self.loaders[part], self.normalizer, self.accelerator, num_images=self.sizes[part]
        )
        return summarize(predictions, self.card.class_names)

    def _out_of_patience(self) -> bool:
        patience = self.config.train.early_stopping_epochs
        return patience is not None and self.state.epochs_without_gain >= patience

    def finish(self) -> dict[str, Any]:
        """Score the best weights: validation again, and the test part for the first and only time; collective."""
        self.checkpoints.load_weights(self.network, BEST)
        state, metric = self.state, self.config.train.best_metric
        results: dict[str, Any] = {part: self._score(part) for part in ("val", "test") if part in self.loaders}
        for part, scores in results.items():
            if part == "test":
                self.accelerator.log(prefixed("test", headline(scores)), step=state.step)
        where = {"epoch": state.best_epoch, "step": state.best_step}
        if self.accelerator.is_main_process:
            update_scores(self.run_dir / MODEL_DIR, {part: {**scores, **where} for part, scores in results.items()})
        best = {f"best/{metric}": state.best_value, "best/epoch": state.best_epoch, "best/step": state.best_step}
        write_summary(self.accelerator, best)
        self.progress.line(
            f"best epoch {state.best_epoch}: validation accuracy {results['val']['accuracy']:.4f} "
            f"(the best of {self.plan.epochs_completed_at(state.step)} looks, so it flatters)"
        )
        if "test" in results:
            scores = results["test"]
            self.progress.line(
                f"test, looked at once: accuracy {scores['accuracy']:.4f}  loss {scores['loss']:.4f}  "
                f"macro F1 {scores['macro_f1']:.4f}  on {scores['num_images']} pictures"
            )
        self.progress.line(f"model: {self.run_dir / MODEL_DIR}")
        return results


def _build_network(
    config: Config, class_names: Sequence[str], sizes: Iterable[tuple[int, int]], accelerator: Accelerator
) -> nn.Module:
    """The network with its first weights, frozen as asked, checked against the pictures' size."""

    def build() -> nn.Module:
        # The same seed on every process and whatever was drawn before: the new last layer starts the same anywhere.
        torch.manual_seed(random_key(config.train.seed, "first weights"))
        network, report = build_network(
            config.model.name, len(class_names), weights=config.model.weights, dropout=config.model.dropout
        )
        frozen = freeze(network, config.model.freeze)
        for height, width in sizes:
            check_input(network, (3, height, width))
        if accelerator.is_main_process:
            trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
            tell(f"{config.model.name}: {report.summary()}")
            tell(f"{trained:,} parameters train" + (f"; {len(frozen)} tensors are frozen" if frozen else ""))
        return network

    return main_first(accelerator, build)


def _seed_dropout(seed: int, micro_batch: int) -> None:
    """Chance inside the network follows from the micro-batch, not from the process or from what came before."""
    key = random_key(seed, "dropout", micro_batch)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(key)


class _Meter:
    """Mean loss over all processes and pictures a second, since the last reading."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._begun = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Take in the loss of one micro-batch of this process; does not wait for the device."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def read(self, plan: StepPlan) -> tuple[float, float]:
        """Mean loss, images/s; collective, and waits for the device."""
        assert self._sum is not None
        mean = float(self._accelerator.reduce(self._sum / self._count, reduction="mean"))
        images = self._count * plan.micro_batch * plan.num_processes
        speed = images / max(time.perf_counter() - self._begun, math.ulp(1.0))
        self._reset()
        return mean, speed
