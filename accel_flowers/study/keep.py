"""Several models of one architecture → one `model/`: a network whose scores are the mean of theirs, or the mean of their weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.find import find_backbone
from accel_flowers.models.joined import (
    MEAN,
    STD,
    FeatureNetwork,
    JoinedNetwork,
    check_linear_head,
    head_width,
    joined_name,
    without_head,
)
from accel_flowers.models.saved import SavedModel, load_model, save_model
from accel_flowers.models.seen import Digests, load_seen
from accel_flowers.models.spec import JoinedPart, ModelSpec, TrainingRecord
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.training.choose import mean_of

Kept = Literal["none", "ensemble", "soup"]
"""What of several runs becomes one `model/`: nothing; one network of all of theirs, whose scores are averaged; or their mean weights."""


def save_together(directory: Path, folders: Sequence[Path], *, keep: Kept, scores: dict[str, Any]) -> str:
    """Write one model of several.

    Args:
        directory: of the new one.
        folders: `model/` of each run; the same architecture, classes and transforms.
        keep: "ensemble": scores are averaged, each model answers; "soup": weights are averaged, one model answers.
        scores: what is known of it.

    Returns:
        What it is, in words.

    Raises:
        UserError: models that differ, or whose head is no linear layer; the disk refuses.
    """
    models = [load_model(folder) for folder in folders]
    first = models[0]
    for folder, model in zip(folders, models, strict=True):
        if (model.spec.architecture, model.spec.class_names, model.spec.transforms) != (
            first.spec.architecture, first.spec.class_names, first.spec.transforms,
        ):  # fmt: skip
            raise UserError(f"'{folder}' is not of the same architecture, classes and transforms as '{folders[0]}'.")
    ttas = Counter(model.spec.tta for model in models)
    temperatures = [model.spec.temperature for model in models]
    known = [each for each in temperatures if each is not None]
    shared: dict[str, Any] = {
        "tta": max(ttas, key=lambda tta: (ttas[tta], tta == "none")),
        "temperature": math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(models) else None,
        "scores": scores,
        "training": _learned_together(first.spec.training),
    }
    spec, state = (_soup if keep == "soup" else _ensemble)(models, shared)
    save_model(directory, state, spec, seen=_seen_by(folders))
    what = "the mean of the weights" if keep == "soup" else "the mean of the scores"
    return f"model: {directory}, {what} of {number_of(len(models), 'run')}; no picture is left that could score it"


def _learned_together(record: TrainingRecord | None) -> TrainingRecord | None:
    """All images, for each of them is known to one of the models; the settings are those of the runs, not of the whole."""
    if record is None:
        return None
    counts: Counter[str] = Counter()
    for images in record.images.values():
        counts.update(images)
    return TrainingRecord(source=record.source, images={"train": dict(counts)})


def _soup(models: Sequence[SavedModel], shared: dict[str, Any]) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    mean = clean_state_dict(models[0].network)
    for count, model in enumerate(models[1:], start=1):
        mean = mean_of(mean, clean_state_dict(model.network), count)
    return models[0].spec.model_copy(update=shared), mean


def _ensemble(models: Sequence[SavedModel], shared: dict[str, Any]) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """The mean of linear heads over features side by side is one linear head over all of them."""
    spec = models[0].spec
    backbone = find_backbone(spec.architecture)
    _, size = build_transform(spec.transforms, field="transforms")
    part = JoinedPart(name=spec.architecture, size=size, mean=spec.mean, std=spec.std)
    check_linear_head(models[0].network, backbone, size)
    width = head_width(models[0].network, backbone)
    weights, biases, parts = [], [], []
    for model in models:
        head = model.network.get_submodule(backbone.head(model.network))
        weights.append(head.weight.detach().flatten(1) / len(models))  # type: ignore[operator]
        biases.append(head.bias.detach() / len(models))  # type: ignore[operator]
        parts.append(FeatureNetwork(without_head(model.network, backbone), part))
    joined = JoinedNetwork(parts, width * len(parts), len(spec.class_names))
    with torch.no_grad():
        joined.head.weight.copy_(torch.cat(weights, dim=1))
        joined.head.bias.copy_(torch.stack(biases).sum(dim=0))
    together = {
        "architecture": joined_name([spec.architecture] * len(parts)),
        "backbones": (part,) * len(parts),
        "dropout": None,
        "mean": MEAN,
        "std": STD,
    }
    return spec.model_copy(update={**together, **shared}), clean_state_dict(joined)


def _seen_by(folders: Sequence[Path]) -> dict[str, Digests] | None:
    """Images that any of the models has seen: learned from by one, they are no test of the whole."""
    seen = [each for each in map(load_seen, folders) if each is not None]
    if len(seen) < len(folders):
        return None
    learned = np.unique(np.concatenate([each["train"] for each in seen]))
    chosen = np.unique(np.concatenate([each["val"] for each in seen]))
    return {"train": learned, "val": np.setdiff1d(chosen, learned)}
