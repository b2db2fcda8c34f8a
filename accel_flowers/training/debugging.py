"""Ways to find out what is wrong: less data, a profile, stricter arithmetic. Each is a flag of the section `debug`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from accel_flowers.config.schema import Config, DebugConfig
from accel_flowers.data.split import Split, subsample_split
from accel_flowers.data.table import ImageTable

CLOSE_TO_ZERO = 0.1
"""Share of the loss of a guess; of five classes it is a loss of 0.16, at which the right class has 85 %."""


def shorten(config: Config) -> Config:
    """The configuration as `debug.fast_dev_run` changes it."""
    if not config.debug.fast_dev_run:
        return config
    train = config.train.model_copy(update={"epochs": 1, "log_every_steps": 1})
    schedule = config.schedule.model_copy(update={"warmup_epochs": 0.0})
    return config.model_copy(update={"train": train, "schedule": schedule})


def subsample_for_debugging(split: Split, table: ImageTable, config: Config) -> Split:
    """The split with as many images as `debug` leaves."""
    debug, batch = config.debug, config.train.global_batch_size
    present = {part: len(split.files_of(part)) for part in sorted(set(split.parts.values()))}
    if debug.subset is not None:
        sizes = {part: max(1, round(debug.subset * size)) for part, size in present.items()}
        cause = f"left out by debug.subset {debug.subset:g}"
    elif debug.overfit_batches is not None:
        sizes = {part: debug.overfit_batches * batch if part == "train" else 0 for part in present}
        cause = f"left out by debug.overfit_batches {debug.overfit_batches}"
    elif debug.fast_dev_run:
        sizes = {part: 2 * batch if part == "train" else config.train.eval_batch_size for part in present}
        cause = "left out by debug.fast_dev_run"
    else:
        return split
    labels = dict(zip(table.files, table.labels.tolist(), strict=True))
    return subsample_split(split, labels, sizes, seed=config.train.seed, cause=cause, each_class=not debug.fast_dev_run)


def describe_overfitting(train_loss: float, eval_loss: float, num_classes: int) -> str:
    """Whether a network has learnt the few images that it was trained and scored on.

    Args:
        train_loss: the last of the training, in nats.
        eval_loss: of the same images in evaluation mode.
        num_classes: a guess has the loss log(num_classes).
    """
    close = CLOSE_TO_ZERO * math.log(num_classes)
    told = f"loss {train_loss:.4f} in training mode, {eval_loss:.4f} in evaluation mode, on the same pictures: "
    if train_loss > close:
        return (
            f"{told}not learnt yet (close to 0 would be {close:.2f} or less). More epochs, or another --optim.lr; if that does not "
            "help, something is wrong with the model, the loss or the labels."
        )
    if eval_loss > close:
        return (
            f"{told}learnt in training mode alone. Evaluation has no dropout and normalises with running averages, which "
            "so few steps have hardly moved: more epochs should bring it down; if they do not, look at what the network "
            "does differently in evaluation."
        )
    return f"{told}learnt."


@contextmanager
def stricter(debug: DebugConfig) -> Iterator[None]:
    """Anomaly detection and deterministic algorithms, as asked for, while the block lasts."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(debug.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
