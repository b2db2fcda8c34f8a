"""A network and a loader → what happened to each image, every image exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from accel_flowers.core.backends import cudnn_heuristics
from accel_flowers.data.dataset import Batch
from accel_flowers.data.loader import each_batch
from accel_flowers.metrics.classification import Predictions

_PADDING = -1
"""Sample number of a row that only makes the processes' tables equally long."""


@cudnn_heuristics()
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
        num_images: images of the part.
        after_round: called whenever each process has had a batch, equally often on all of them; may raise.

    Returns:
        The same predictions on every process, in the part's order.

    Raises:
        RuntimeError: an image was missed or counted twice; the message says which.
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
