"""A network and a loader → what happened to each image, every image exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accel_flowers.core.backends import cudnn_heuristics
from accel_flowers.data.dataset import Batch
from accel_flowers.data.loader import each_batch
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.metrics.classification import Predictions
from accel_flowers.metrics.multilabel import build_predictions
from accel_flowers.models.answers import losses_of, probabilities_of

_PADDING = -1
"""Sample number of a row that stands for no image: it makes the processes' rounds and tables equally long."""


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

    All processes make equally many forward passes, as networks need whose weights are spread over the processes: one that
    has no batch left in the last round passes a black image whose answer is thrown away.

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
    references: list[Tensor] = []
    probabilities: list[Tensor] = []
    device, inputs, labels = accelerator.device, torch.empty(0), torch.empty(0)
    counts = accelerator.gather(torch.tensor([len(loader)], device=device))
    for number, batch in enumerate(_in_rounds(each_batch(loader), int(counts.max()))):
        if batch is not None:
            inputs, labels, samples = to_input(batch), batch["labels"], batch["samples"]
        if number == 0 and not counts.all():  # there are fewer batches than processes: the main one has one
            like = broadcast_from_main(accelerator, partial(_shapes, inputs, labels))
            if batch is None:
                inputs, labels = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in like)
        if batch is None:
            inputs, labels = torch.zeros_like(inputs[:1]), torch.zeros_like(labels[:1])
            samples = torch.full((1,), _PADDING, device=device)
        logits = network(inputs).float()
        # float64 holds sample numbers exactly, so that one table carries them, too
        tables.append(torch.stack([samples.double(), losses_of(logits, labels).double()], dim=1))
        references.append(labels if labels.ndim == 1 else labels.to(torch.uint8))
        probabilities.append(probabilities_of(logits, several=labels.ndim == 2))
        if after_round:
            after_round()
    table, given, spread = (
        accelerator.gather(accelerator.pad_across_processes(torch.cat(local), pad_index=padding)).cpu().numpy()
        for local, padding in ((tables, _PADDING), (references, 0), (probabilities, 0))
    )

    samples = table[:, 0].astype(np.int64)
    kept = samples != _PADDING
    check_every_image_once(samples[kept], num_images)
    order = np.argsort(samples[kept])
    given = given[kept][order]
    return build_predictions(
        labels=given.astype(np.bool_) if given.ndim == 2 else given,
        probabilities=spread[kept][order],
        losses=table[kept, 1].astype(np.float32)[order],
    )


def _shapes(*tensors: Tensor) -> list[tuple[list[int], torch.dtype]]:
    return [(list(tensor.shape), tensor.dtype) for tensor in tensors]


def _in_rounds(batches: Iterator[Batch], rounds: int) -> Iterator[Batch | None]:
    """The batches, and None for each round in which there is none."""
    given = 0
    for batch in batches:
        given += 1
        yield batch
    yield from [None] * (rounds - given)


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
