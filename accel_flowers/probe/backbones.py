"""The frozen backbones of a probe: which they are, what their weights are, what each of them sees of a picture."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.models.auto import settle_model
from accel_flowers.models.backbone import Backbone, Preprocessing, is_inside
from accel_flowers.models.find import find_backbone
from accel_flowers.models.joined import (
    FeatureNetwork,
    check_linear_head,
    head_width,
    joined_name,
    without_head,
)
from accel_flowers.models.spec import JoinedPart

_RULE = "1: float32, the input of the head"
"""Of which features are kept; another rule makes others."""
LARGER = 4 / 3
"""By which a picture is enlarged where that is tried: 300 pixels for a network of 224."""


@dataclass(frozen=True)
class Frozen:
    """A backbone with its weights.

    Attributes:
        name: as in a recipe's model.name.
        weights: what was given: "imagenet", "none" or a file.
        backbone: what builds it.
        network: with its weights and its head, in evaluation mode, on the CPU.
        loaded: what became of the weights, in words.
        label: what people call it among others: its name, and where several have that its weights.
    """

    name: str
    weights: str
    backbone: Backbone
    network: nn.Module
    loaded: str
    label: str

    @cached_property
    def width(self) -> int:
        """Features of an image."""
        return head_width(self.network, self.backbone)

    @cached_property
    def digest(self) -> str:
        """Of all tensors but the head's."""
        digest = hashlib.blake2b(digest_size=16)
        head = self.backbone.head(self.network)
        for name, tensor in sorted(self.network.state_dict().items()):
            if not is_inside(name, [head]):
                plain = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
                digest.update(
                    plain.view(torch.uint8).numpy() if plain.dim() else plain.view(1).view(torch.uint8).numpy()
                )
        return digest.hexdigest()

    @cached_property
    def _headless(self) -> nn.Module:
        return without_head(copy.deepcopy(self.network), self.backbone)

    def features(self, part: JoinedPart) -> FeatureNetwork:
        """A copy of the network without its head; the same tensors for every part."""
        return FeatureNetwork(self._headless, part).eval()


@dataclass(frozen=True)
class Sight:
    """What several networks together see of a picture: one picture for all, of which each takes its own size.

    Attributes:
        transforms: upright RGB image → the picture for all, as a recipe's data.eval_transforms.
        parts: what each network makes of it.
    """

    transforms: tuple[TransformSpec, ...]
    parts: tuple[JoinedPart, ...]

    @property
    def name(self) -> str:
        """Of the networks together."""
        return joined_name([part.name for part in self.parts])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture for all."""
        return max((part.size for part in self.parts), key=min)


def load_frozen(name: str, weights: str, *, num_classes: int, seed: int) -> tuple[Frozen, list[str]]:
    """Build a network with its weights.

    Args:
        name: as in model.name; may be "auto".
        weights: "imagenet", "none" or a file.
        num_classes: of its new head.
        seed: what the weights are drawn from where they are random.

    Returns:
        The network, and what is to be told of it.

    Raises:
        UserError: no such network; weights that cannot be had.
    """
    try:
        config = Config.model_validate({"model": {"name": name, "weights": weights}})
        config, told = settle_model(config)
        name = config.model.name
        backbone = find_backbone(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, report = backbone.build(num_classes, weights=weights)
    except UserError as error:
        raise UserError(_with_our_flags(str(error))) from None
    told = [_with_our_flags(line) for line in told]
    if weights == "none":
        told.append(f"{name}: its weights are random, so its features know nothing of pictures")
    elif report.at_random:
        told.append(f"{name}: {report.summary()}")
    return Frozen(name, weights, backbone, network.eval(), report.summary(), name), told


def _with_our_flags(text: str) -> str:
    """A message of the networks', which speaks of a recipe's fields, with the flags that this command has."""
    for recipes, ours in (("--model.name", "--backbones"), ("--model.weights", "--weights"), ("model.name", "--backbones"), ("model.weights", "--weights")):  # fmt: skip
        text = text.replace(recipes, ours)
    return text


def sight_of(frozen: Sequence[Frozen], size: int | float | None) -> Sight:
    """What networks together see.

    Args:
        frozen: the networks.
        size: None = each its own; a float enlarges each own size so many times; an int is the side for all, in pixels.
    """
    seen = [(each.name, each.backbone.preprocessing()) for each in frozen]
    parts = tuple(JoinedPart(name=name, size=_sized(own, size), mean=own.mean, std=own.std) for name, own in seen)
    largest = max(range(len(parts)), key=lambda place: min(parts[place].size))
    own, (height, width) = seen[largest][1], parts[largest].size
    resize: dict[str, Any] = {"size": round(own.resize * min(height, width) / min(own.size))}
    if own.interpolation != "bilinear":
        resize["interpolation"] = own.interpolation
    crop = height if height == width else [height, width]
    return Sight(({"Resize": resize}, {"CenterCrop": {"size": crop}}), parts)


def _sized(own: Preprocessing, size: int | float | None) -> tuple[int, int]:
    if size is None:
        return own.size
    if isinstance(size, int):
        return size, size
    return own.enlarged(size).size


def check_sight(frozen: Frozen, size: tuple[int, int]) -> None:
    """See that a network takes pictures of a size, and that its head can be replaced.

    Raises:
        UserError: one of the two is not so; the message says which, and of what size or network.
    """
    try:
        check_linear_head(frozen.network, frozen.backbone, size)
    except UserError as error:
        message = str(error).replace(
            "The size comes from data.train_transforms and data.eval_transforms.",
            "Leave --size out: then it is the network's own.",
        )
        raise UserError(message) from None


def space_key(frozen: Frozen, sight: Sight, part: JoinedPart, *, mirrored: bool) -> str:
    """The name of all features that a network makes in one way; of a picture there is one row of them.

    Args:
        frozen: the network.
        sight: how the picture for all is made.
        part: what the network makes of it.
        mirrored: whether of the mirror image.
    """
    facts = (_RULE, frozen.name, frozen.digest, repr(sight.transforms), part.model_dump_json(), mirrored)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
