"""How fast a recipe trains here, what holds it back, and what would change that: all of it measured on the spot.

The parts are the run's own: its loader, its transforms, its network in the launcher's precision, its step. Nothing of what is
learned is kept, and no run directory is written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.utils.data import DataLoader

from accel_flowers.config.schema import Config
from accel_flowers.config.several import settle_labels
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.machine import check_can_train
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.plural import number_of
from accel_flowers.data.cache import NoCache, open_cache
from accel_flowers.data.dataset import Batch, ImageDataset
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.placement.resident import loaded_pixels
from accel_flowers.data.sampler import BatchPlan, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import content_digest
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.data.workers import local_cores, workers_as_user_error
from accel_flowers.distributed.session import process_session
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.training.build import build_run, build_trial
from accel_flowers.training.debugging import stricter
from accel_flowers.training.memory import LargestBatch, can_run_out_of_memory, largest_micro_batch
from accel_flowers.training.precision import choose_precision
from accel_flowers.training.run import Run
from accel_flowers.training.scaling import Scaling, measure_scaling
from accel_flowers.training.step import InPrecision, TrainStep

_ENDLESS = 10**6
"""Epochs of a loader that no measurement comes to the end of."""
_WARM_UP = 3
"""Batches before the clock starts: libraries set themselves up, workers fill their queues."""
_ROUNDS = 2
"""All is measured so many times, in turn, and the best counts: other work on the machine only ever slows down."""
_IN_CACHE, _MOST_BYTES = 512, 2**31
"""Images that the cache is tried with, and what they may take, decoded."""
_MIN_SPEEDUP = 1.2
"""Loading is the bottleneck where it is not so many times as fast as computing: batches are not equally quick."""


@dataclass(frozen=True)
class Change:
    """Something else that was tried."""

    what: str
    """loading or computing, and what was changed: "loading, 2 workers"."""
    flag: str
    """What to type for it."""
    images_per_second: float
    ratio: float
    """To the same rate as it is now."""


@dataclass(frozen=True)
class Measured:
    """What a benchmark found; all rates in images a second of this process."""

    on: str
    loading: float
    computing: float
    both: float
    data_wait: float
    """Share of the time, 0..1, in which training waits for its images."""
    bottleneck: str
    """loading or computing"""
    changes: tuple[Change, ...]
    largest: LargestBatch | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "on": self.on,
            "images_per_second": {"loading": self.loading, "computing": self.computing, "both": self.both},
            "share_of_computing_alone": self.both / self.computing,
            "data_wait": self.data_wait,
            "bottleneck": self.bottleneck,
            "changes": [vars(change) for change in self.changes],
            "largest_micro_batch": self.largest.images if self.largest else None,
        }

    def in_words(self) -> str:
        """The table."""
        helping = [change for change in self.changes if change.what.startswith(self.bottleneck)]
        best = max(helping, key=lambda change: change.ratio, default=None)
        lines = [
            self.on,
            f"{'':<34}images/s",
            f"{'loading alone':<34}{self.loading:8.1f}",
            f"{'computing alone':<34}{self.computing:8.1f}",
            f"{'both':<34}{self.both:8.1f}   {self.both / self.computing:.0%} of computing alone; "
            f"waits for pictures {self.data_wait:.0%} of the time",
            f"The bottleneck is {self.bottleneck}: loading is {self.loading / self.computing:.2g} times as fast as computing.",
            "Tried besides:",
            *(
                f"  {change.what:<32}{change.images_per_second:8.1f}   x {change.ratio:.2f}   {change.flag}"
                for change in self.changes
            ),
        ]
        if best and best.ratio > 1.05:
            lines.append(f"What would help: {best.flag} ({best.what}, x {best.ratio:.2f}).")
        else:
            lines.append(f"Nothing that was tried makes {self.bottleneck} faster.")
        if self.largest:
            lines.append(self.largest.in_words())
        return "\n".join(lines)


def benchmark(config: Config, *, seconds: float = 3.0, owns_process: bool = False) -> Measured | Scaling:
    """Measure a recipe on this machine: one process's loading and computing, or what several processes compute together.

    Args:
        config: resolved; `data.path` is set.
        seconds: of each measurement.
        owns_process: as of `train`.

    Raises:
        UserError: a mistake in the configuration, the folder or the weights.
    """
    check_can_train()
    with process_session({}, owns_process=owns_process) as together, oom_as_user_error(), workers_as_user_error():
        config, _ = settle_preprocessing(settle_labels(config)[0])
        precision = choose_precision(config, together.processes, bare=owns_process)
        accelerator = together.build_accelerator(mixed_precision=precision)
        with (
            stricter(config.debug),
            fast_arithmetic(accelerator.device, deterministic=config.debug.deterministic),
            tempfile.TemporaryDirectory() as folder,
        ):
            if accelerator.num_processes > 1:
                step, size, num_classes = build_trial(config, accelerator)
                scaling = measure_scaling(step, config, size, num_classes, accelerator, seconds=seconds)
                return replace(scaling, largest=_find_largest(step, size, num_classes, config, accelerator))
            whole = config.train.model_copy(update={"head_epochs": 0.0, "unfreeze_every_epochs": None})
            config = config.model_copy(update={"train": whole})  # steps of the head alone are few and quick
            found = _measure(build_run(config, accelerator), seconds, Path(folder))
            if not can_run_out_of_memory(accelerator.device):
                return found
            clear_device_cache(garbage_collection=True)
            return replace(found, largest=_find_largest(*build_trial(config, accelerator), config, accelerator))


def _find_largest(
    step: TrainStep, size: tuple[int, int], num_classes: int, config: Config, accelerator: Accelerator
) -> LargestBatch | None:
    """The largest micro-batch for the run's step as `build_trial` makes it."""
    assert isinstance(step.model, InPrecision)
    plan = BatchPlan(1, 1, config.train.global_batch_size, accelerator.num_processes, config.train.micro_batch_size)
    return largest_micro_batch(
        replace(step, model=step.model.network), config.optim, size, num_classes, accelerator,
        first=plan.micro_batch, ema_decay=config.ema.decay or 0.0,
    )  # fmt: skip


def _measure(run: Run, seconds: float, folder: Path) -> Measured:
    device, num_workers = run.accelerator.device, run.loaders["train"].num_workers
    loader = _loader(run, run.parts["train"], num_workers)  # the run's own comes to an end
    set_training_mode(run.network)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0  # the same work, and numbers that stay numbers

    prepare = run.input_of("train")

    def learn(batch: Batch) -> None:
        run.train_step(run.as_at_its_end(batch))

    rate = partial(_rate, seconds=seconds, device=device)
    batch = next(each_batch(loader))
    other_loaders = {change: each_batch(other) for change, other in _other_loaders(run, folder).items()}
    best: dict[object, float] = {}
    waited = 1.0
    for _ in range(_ROUNDS):
        found = {"loading": rate(each_batch(loader), prepare)[0], "computing": rate(repeat(batch), learn)[0]}
        found["both"], share = rate(each_batch(loader), learn)
        if found["both"] > best.get("both", 0):
            waited = share
        tried = {change: rate(batches, prepare)[0] for change, batches in other_loaders.items()}
        tried |= {change: rate(repeat(other), act)[0] for change, (other, act) in _other_steps(run, batch).items()}
        for name, value in [*found.items(), *tried.items()]:
            best[name] = max(value, best.get(name, 0.0))
    on = (
        f"{run.config.model.name}, 1 x {device.type}, precision {run.accelerator.mixed_precision}, "
        f"{torch.get_num_threads()} threads, batches of {run.plan.micro_batch}, {num_workers} workers"
    )
    return Measured(
        on=on,
        loading=best["loading"],
        computing=best["computing"],
        both=best["both"],
        data_wait=waited,
        bottleneck="loading" if best["loading"] < _MIN_SPEEDUP * best["computing"] else "computing",
        changes=tuple(
            Change(what, flag, best[what, flag], best[what, flag] / best[what.split(",")[0]]) for what, flag in tried
        ),
    )


def _rate(
    batches: Iterator[Batch], use: Callable[[Batch], object], *, seconds: float, device: torch.device
) -> tuple[float, float]:
    """Images a second, and the share of the time that was spent waiting for batches."""
    for batch in islice(batches, _WARM_UP):
        use(batch)
    _wait_for(device)
    begun, waited, count = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        use(batch)
        count += len(batch["labels"])
        if time.perf_counter() - begun > seconds:
            break
    _wait_for(device)
    passed = time.perf_counter() - begun
    return count / passed, waited / passed


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _other_steps(run: Run, batch: Batch) -> dict[tuple[str, str], tuple[Batch, Callable[[Batch], object]]]:
    """Twice as many images in a forward pass, and bf16; those that the memory is enough for."""

    def learn(batch: Batch) -> None:
        run.train_step(run.as_at_its_end(batch))

    def learn_in_bf16(batch: Batch) -> None:
        with torch.autocast(run.accelerator.device.type, dtype=torch.bfloat16):
            learn(batch)

    size, plan = 2 * len(batch["labels"]), run.plan
    flag = f"--train.micro-batch-size {size}" if plan.accumulation > 1 else f"--train.global-batch-size {size}"
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    doubled: Batch = {**batch, **{name: torch.cat([value, value]) for name, value in tensors.items()}}  # type: ignore[typeddict-item]
    steps: dict[tuple[str, str], tuple[Batch, Callable[[Batch], object]]] = {
        (f"computing, batches of {size}", flag): (doubled, learn)
    }
    if run.accelerator.mixed_precision == "no":
        steps["computing, bf16", "accelerate launch --mixed_precision bf16"] = (batch, learn_in_bf16)
    for change, (other, act) in list(steps.items()):
        try:
            act(other)
        except (RuntimeError, MemoryError):
            del steps[change]
    return steps


def _other_loaders(run: Run, folder: Path) -> dict[tuple[str, str], DataLoader[Batch]]:
    """Other numbers of workers, and images that were decoded before."""
    now, parts = run.loaders["train"].num_workers, run.parts
    numbers = {0, 1, local_cores(1) - 1, local_cores(1)} - {now}
    loaders = {
        (f"loading, {number_of(workers, 'worker')}", f"--data.num-workers {workers}"): _loader(
            run, parts["train"], workers
        )
        for workers in sorted(number for number in numbers if 0 <= number <= 16)
    }
    if run.to_pixels["train"] is loaded_pixels and not parts["train"].is_decoded:
        with suppress(NoCache):
            cached = _loader(run, _some_decoded(run, folder), now)
            loaders["loading, decoded before", "--data.pixels-from cache"] = cached
    return loaders


def _some_decoded(run: Run, folder: Path) -> ImageDataset:
    """The first training images, from a cache that is made for them."""
    data = run.config.data
    assert data.path is not None
    table = load_images(data.path, **data.labels)
    some = set(run.parts["train"].files[:_IN_CACHE])
    contents = [content_digest(table.read(row)) if name in some else "" for row, name in enumerate(table.files)]
    decoded, _ = open_cache(folder / "decoded", table.files, contents, table.read, max_bytes=_MOST_BYTES)
    transform, _ = build_transform(data.preprocessing().train_transforms, field="data.train_transforms")
    split = Split(table.class_names, dict.fromkeys(some, "train"))
    return ImageDataset(table, "train", split, transform, seed=run.config.train.seed, decoded=decoded)


def _loader(run: Run, images: ImageDataset, num_workers: int) -> DataLoader[Batch]:
    stream = StreamBatchSampler(BatchPlan(len(images), _ENDLESS, run.plan.micro_batch), 0)
    pin_memory = run.accelerator.device.type != "cpu"
    loader: DataLoader[Batch] = run.accelerator.prepare(
        build_loader(images, stream, num_workers=num_workers, pin_memory=pin_memory)
    )
    return loader
