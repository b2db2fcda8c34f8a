"""A network and a loader → what happened to each picture, every picture exactly once on any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from accel_flowers.data.batches import Batch, Pictures, build_loader, each_batch
from accel_flowers.data.folder import ImageTable, load_images
from accel_flowers.data.inspect import check_readable
from accel_flowers.data.order import EveryOnce
from accel_flowers.data.split import PARTS, Split, load_split
from accel_flowers.data.workers import local_cores, plan_workers
from accel_flowers.debugging import fast_arithmetic, ways_by_rule
from accel_flowers.errors import UserError
from accel_flowers.metrics import Predictions, summarize
from accel_flowers.models import wants_channels_last
from accel_flowers.processes import (
    build_accelerator,
    computes_on_cpu,
    decided_by_main,
    launched_precision,
    main_first,
    num_local_processes,
)
from accel_flowers.saved_model import load_card, load_model

_PADDING = -1
"""Sample number of a row that only makes the processes' tables equally long."""


@ways_by_rule()
@torch.inference_mode()
def predict_loader(
    network: nn.Module,
    loader: DataLoader[Batch],
    to_input: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    *,
    num_images: int,
    after_round: Callable[[], None] | None = None,
) -> Predictions:
    """Run a network in evaluation mode over a prepared loader; collective.

    Args:
        network: unwrapped (its forward runs in the precision that Accelerate gave it); left in evaluation mode.
        loader: over the whole part, prepared by Accelerate.
        to_input: batch → what the network takes.
        accelerator: the processes among which the batches were dealt out.
        num_images: pictures of the part.
        after_round: called whenever each process has had a batch, equally often on all of them; may raise.

    Returns:
        The same predictions on every process, in the part's order.

    Raises:
        RuntimeError: a picture was missed or counted twice; the message says which.
    """
    network.eval()
    tables: list[Tensor] = []
    probabilities: list[Tensor] = []
    rounds = _num_rounds(len(loader), accelerator)
    for batch in each_batch(loader):
        logits = network(to_input(batch)).float()
        losses = functional.cross_entropy(logits, batch["labels"], reduction="none")
        # float64 holds sample numbers and labels exactly, so that one table carries everything
        tables.append(torch.stack([batch["samples"].double(), batch["labels"].double(), losses.double()], dim=1))
        probabilities.append(logits.softmax(dim=1))
        if after_round:
            after_round()
    for _ in range(rounds - len(tables)):  # this process had no batch in the last round
        if after_round:
            after_round()
    num_classes = _agreed_width(probabilities, accelerator)
    device = accelerator.device
    local = torch.cat(tables) if tables else torch.empty(0, 3, dtype=torch.float64, device=device)
    local_probabilities = torch.cat(probabilities) if probabilities else torch.empty(0, num_classes, device=device)
    table = accelerator.gather(accelerator.pad_across_processes(local, pad_index=_PADDING)).cpu().numpy()
    spread = accelerator.gather(accelerator.pad_across_processes(local_probabilities)).cpu().numpy()

    samples = table[:, 0].astype(np.int64)
    kept = samples != _PADDING
    check_every_image_once(samples[kept], num_images)
    order = np.argsort(samples[kept])
    return Predictions(
        labels=table[kept, 1].astype(np.int64)[order],
        probabilities=spread[kept][order],
        losses=table[kept, 2].astype(np.float32)[order],
    )


def _num_rounds(num_batches: int, accelerator: Accelerator) -> int:
    """Batches of the process that has most of them."""
    return int(accelerator.gather(torch.tensor([num_batches], device=accelerator.device)).max())


def _agreed_width(probabilities: list[Tensor], accelerator: Accelerator) -> int:
    """The number of classes, also on a process that was dealt no batch."""
    width = torch.tensor([probabilities[0].shape[1] if probabilities else 0], device=accelerator.device)
    return int(accelerator.gather(width).max())


def check_every_image_once(samples: np.ndarray, num_images: int) -> None:
    """Compare what was seen with 0 … N - 1.

    Raises:
        RuntimeError: naming samples that are missing or doubled.
    """
    counts = np.bincount(samples, minlength=num_images)
    missing = np.flatnonzero(counts[:num_images] == 0)
    doubled = np.flatnonzero(counts[:num_images] > 1)
    beyond = np.flatnonzero(counts[num_images:]) + num_images
    if len(missing) or len(doubled) or len(beyond):
        raise RuntimeError(
            f"Evaluation did not see each of {num_images} pictures once: missing {missing[:20].tolist()}, "
            f"seen more than once {doubled[:20].tolist()}, beyond the end {beyond[:20].tolist()}."
        )


def evaluate_folder(
    model_dir: Path,
    source: str,
    *,
    split_file: Path | None = None,
    part: str | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Score a saved model on a folder, in the precision and batches that its own scores were made with; collective.

    Args:
        model_dir: a run's `model/`.
        source: folder with one sub-folder per class (of the model's classes), zip or hub dataset.
        split_file: a run's split.json; only its files of `part` are scored.
        part: "train", "val" or "test"; None = test, or all pictures where the folder has no parts.
        num_workers: loader processes; None = choose.

    Returns:
        The part ("all" where there are no parts), and what `summarize` returns; the same on every process.

    Raises:
        UserError: a mistake in the model folder, the pictures or the launch.
    """
    card = load_card(model_dir)
    accelerator = build_accelerator(mixed_precision=_available_precision(card.precision))
    saved = main_first(accelerator, lambda: load_model(model_dir))
    table = main_first(accelerator, lambda: _with_labels_of_model(load_images(source), card.class_names))
    wanted, split = decided_by_main(accelerator, lambda: _choose_part(table, split_file, part))

    network = saved.network
    channels_last = wants_channels_last(network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    pictures = Pictures(table, wanted, split, saved.transform, seed=0)
    loader = build_loader(
        pictures,
        EveryOnce(len(pictures), card.eval_batch_size),
        num_workers=num_workers
        if num_workers is not None
        else plan_workers(local_cores(num_local_processes(accelerator)), on_cpu=accelerator.device.type == "cpu"),
        pin_memory=accelerator.device.type == "cuda",
    )
    accelerator.prepare_model(network, evaluation_mode=True)
    with fast_arithmetic(accelerator.device):  # as in training
        predictions = predict_loader(
            network,
            accelerator.prepare(loader),
            lambda batch: saved.normalizer(batch["pixels"]),
            accelerator,
            num_images=len(pictures),
        )
    whole = split_file is None and table.given_parts is None
    return {"part": "all" if whole else wanted, **summarize(predictions, card.class_names)}


def _available_precision(recorded: str) -> str | None:
    """The launcher's precision where there is a launcher; else the recorded one where this device has it.

    On a CPU the launcher's bf16 means, as in training, bf16 or float32, whichever suits the network: the recorded one.
    """
    on_cpu = computes_on_cpu()
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return "no" if on_cpu and (launched_precision(), recorded) == ("bf16", "no") else None
    return "no" if recorded == "fp16" and on_cpu else recorded


def _with_labels_of_model(table: ImageTable, class_names: tuple[str, ...]) -> ImageTable:
    """Classes are matched by name: a folder that lacks one, or sorts them differently, is scored rightly."""
    unknown = sorted(set(table.class_names) - set(class_names))
    if unknown:
        raise UserError(
            f"'{table.source}' has classes that the model does not know: {', '.join(unknown)}. "
            f"The model knows {', '.join(class_names)}; folders must be named so."
        )
    to_model = np.array([class_names.index(name) for name in table.class_names], dtype=np.int64)
    return replace(table, labels=to_model[table.labels], class_names=class_names)


def _choose_part(table: ImageTable, split_file: Path | None, part: str | None) -> tuple[str, Split]:
    if part not in (None, *PARTS):
        raise UserError(f"--part '{part}' is not allowed; take one of {', '.join(PARTS)}.")
    if split_file is not None:
        split = load_split(split_file)
        wanted = part or ("test" if split.files_of("test") else "val")
        missing = sorted(set(split.files_of(wanted)) - set(table.files))
        if missing:
            raise UserError(
                f"{len(missing)} files that {split_file} puts into {wanted} are not in '{table.source}', "
                f"for example '{missing[0]}'. Give the folder that the split was made from."
            )
    else:
        if part is not None and table.given_parts is None:
            raise UserError(
                f"'{table.source}' has no parts, so there is no '{part}' to score: give the run's split with "
                "--split RUN_DIR/split.json, or leave --part out to score all pictures."
            )
        given = table.given_parts or ("test",) * len(table.files)
        split = Split(table.class_names, dict(zip(table.files, given, strict=True)))
        wanted = part or ("test" if "test" in given else "val")
    files = split.files_of(wanted)
    if not files:
        raise UserError(f"There is no picture in the part '{wanted}' of '{split_file or table.source}'.")
    check_readable(table, files)
    return wanted, split
