"""A head and its frozen backbones → `model/`, as every run writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accel_flowers.models.joined import MEAN, STD, JoinedBackbone, JoinedNetwork
from accel_flowers.models.saved import save_model
from accel_flowers.models.seen import short_digests
from accel_flowers.models.spec import ModelSpec, TrainingRecord
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.probe.backbones import Frozen, Sight
from accel_flowers.probe.features import BATCH_SIZE
from accel_flowers.probe.head import Head


def save_probe(
    directory: Path,
    frozen: Sequence[Frozen],
    sight: Sight,
    head: Head,
    class_names: Sequence[str],
    *,
    mirror: bool,
    temperature: float | None,
    scores: dict[str, Any],
    digests: Sequence[str],
    training: TrainingRecord,
) -> None:
    """Write the whole network with its new last layer.

    Args:
        directory: the folder.
        frozen: the backbones, in the order of the head's features.
        sight: what they see of a picture.
        head: over their features.
        class_names: of its scores.
        mirror: whether it is asked about mirror images, too.
        temperature: that calibrates it; None = none.
        scores: what is known of it, for people.
        digests: of the pictures that the head learned from.
        training: which pictures these are.

    Raises:
        UserError: it cannot be written.
    """
    joined = len(frozen) > 1
    network = _with_head(frozen, sight, head, joined=joined)
    part = sight.parts[0]
    spec = ModelSpec(
        architecture=sight.name,
        backbones=sight.parts if joined else (),
        class_names=tuple(class_names),
        transforms=sight.transforms,
        mean=MEAN if joined else part.mean,
        std=STD if joined else part.std,
        eval_batch_size=BATCH_SIZE,
        temperature=temperature,
        tta="mirror" if mirror else "none",
        scores=scores,
        training=training,
    )
    seen = {"train": short_digests(digests), "val": np.empty(0, dtype=np.int64)}
    save_model(directory, clean_state_dict(network), spec, seen=seen)


def _with_head(frozen: Sequence[Frozen], sight: Sight, head: Head, *, joined: bool) -> nn.Module:
    if joined:
        parts = [each.features(part) for each, part in zip(frozen, sight.parts, strict=True)]
        network: nn.Module = JoinedNetwork(parts, head.weight.shape[1], len(head.bias))
        layer = network.get_submodule(JoinedBackbone(sight.parts).head(network))
    else:
        network = frozen[0].network
        layer = network.get_submodule(frozen[0].backbone.head(network))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight).reshape(layer.weight.shape))  # type: ignore[operator, arg-type]
        layer.bias.copy_(torch.from_numpy(head.bias))  # type: ignore[operator]
    return network
