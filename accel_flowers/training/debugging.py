"""Ways to find out what is wrong: less data, a profile, stricter arithmetic. Each is a flag of the section `debug`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from accel_flowers.config.schema import Config, DebugConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data.label_sets import strata
from accel_flowers.data.split import Split, subsample_split
from accel_flowers.data.table import ImageTable

CLOSE_TO_ZERO = 0.1
"""Share of the loss of a guess; of five classes it is a loss of 0.16, at which the right class has 85 %."""


def shorten(config: Config) -> Config:
    """The configuration as `debug.fast_dev_run` changes it."""
    if not config.debug.fast_dev_run:
        return config
    head_epochs = 0.5 if config.train.head_epochs else 0.0  # one step of the head, one of all
    train = config.train.model_copy(
        update={"epochs": 1, "log_every_steps": 1, "head_epochs": head_epochs, "minutes": None, "min_steps": None}
    )
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
    labels = dict(zip(table.files, strata(table.labels).tolist(), strict=True))
    return subsample_split(split, labels, sizes, seed=config.train.seed, cause=cause, each_class=not debug.fast_dev_run)


def describe_overfitting(train_loss: float | None, eval_loss: float, guess: float) -> str:
    """Whether a network has learnt the few images that it was trained and scored on.

    Args:
        train_loss: the last of the training, in nats; None where it is no plain cross-entropy, whose best is not 0.
        eval_loss: of the same images in evaluation mode.
        guess: loss of a guess.
    """
    close = CLOSE_TO_ZERO * guess
    told = f"loss {train_loss:.4f} in training mode, " if train_loss is not None else "cross-entropy "
    told += f"{eval_loss:.4f} in evaluation mode, on the same pictures: "
    if (eval_loss if train_loss is None else train_loss) > close:
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


_NOT_DETERMINISTIC = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool3d,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)
"""Layers whose gradient CUDA sums in any order, from the list in `torch.use_deterministic_algorithms`."""


def layers_not_deterministic(network: nn.Module) -> list[str]:
    """Kinds of a network's layers through which no training on a GPU goes deterministically; those behind all that is
    trained are not asked for, nor is a pooling to one place, which torch computes as a mean."""
    found, learns = set(), False
    for module in network.modules():  # in the order in which layers were made, which is that of the forward pass
        learns |= any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        to_one = isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
        if learns and isinstance(module, _NOT_DETERMINISTIC) and not to_one:
            found.add(type(module).__name__)
    return sorted(found)


def check_deterministic(config: Config, network: nn.Module, device: torch.device) -> None:
    """See that a network can be trained as `debug.deterministic` wants it, before anything is computed.

    Raises:
        UserError: it cannot on such a device.
    """
    layers = layers_not_deterministic(network) if config.debug.deterministic and device.type == "cuda" else []
    if layers:
        raise UserError(
            f"{config.model.name} cannot be trained deterministically on a GPU, because of its {' and '.join(layers)}.\n"
            "Leave --debug.deterministic out, train the last layer alone (--model.freeze backbone), or take another\n"
            "--model.name: of torchvision's only alexnet and the eight of vgg are so."
        )


@contextmanager
def stricter(debug: DebugConfig) -> Iterator[None]:
    """Anomaly detection and deterministic algorithms, as asked for, while the block lasts.

    Raises:
        UserError: something on the way has no deterministic algorithm; with torch's words.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(debug.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        words = str(error).partition(", but you set")[0]
        raise UserError(
            f"{words} on this device: leave --debug.deterministic out, or take another --model.name."
        ) from None
    finally:
        torch.use_deterministic_algorithms(deterministic)
