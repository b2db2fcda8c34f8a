"""Backbones without their heads: what makes features of images; and several of them behind one head, as one network.

A picture comes once, at the size that the largest of the networks wants, in 0..1; each network resizes it to its own size,
normalises it as its weights are used to, and gives its features, over which one linear layer makes the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import Backbone, Preprocessing, check_input
from accel_flowers.models.find import find_backbone
from accel_flowers.models.spec import JoinedPart
from accel_flowers.models.weights import WeightsReport, compare

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""What the whole is normalised with: nothing is, as each part does it for itself."""
_PROBED = 3
"""Images by which it is seen that a head is the last layer."""


class FeatureNetwork(nn.Module):
    """A network without its head.

    Args:
        network: whose head is gone (see `without_head`).
        part: what it gets.
    """

    mean: Tensor
    """float32 [1, 3, 1, 1]"""
    std: Tensor
    """float32 [1, 3, 1, 1]"""

    def __init__(self, network: nn.Module, part: JoinedPart) -> None:
        super().__init__()
        self.network, self.size = network, part.size
        self.register_buffer("mean", torch.tensor(part.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(part.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in 0..1, of any size → float32 [B, D]."""
        if tuple(images.shape[-2:]) != self.size:
            images = functional.resize(images, list(self.size), antialias=True)
        features: Tensor = self.network((images - self.mean) / self.std)
        return features.flatten(1)


class JoinedNetwork(nn.Module):
    """Several feature networks behind one linear head.

    Args:
        parts: the networks.
        width: features of all of them together.
        num_classes: scores.
    """

    def __init__(self, parts: Sequence[FeatureNetwork], width: int, num_classes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in 0..1 → scores, float32 [B, C]."""
        scores: Tensor = self.head(torch.cat([part(images) for part in self.parts], dim=1))
        return scores


class JoinedBackbone(Backbone):
    """What builds a `JoinedNetwork`; its weights come from a saved model, or part by part from whoever made it.

    Args:
        parts: the networks, in the order of their features.
    """

    def __init__(self, parts: Sequence[JoinedPart]) -> None:
        self.parts = tuple(parts)
        self.name = joined_name([part.name for part in parts])

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        """See `Backbone.build`.

        Raises:
            UserError: weights or dropout, neither of which it takes; a part that cannot be built.
        """
        if weights != "none" or dropout is not None:
            raise UserError(
                f"{self.name}: several networks behind one head take no weights and no dropout of a recipe."
            )
        parts, width = [], 0
        for part in self.parts:
            backbone = find_backbone(part.name)
            network, _ = backbone.build(2)
            width += head_width(network, backbone)
            parts.append(FeatureNetwork(without_head(network, backbone), part))
        joined = JoinedNetwork(parts, width, num_classes)
        return joined, compare(joined, {}, weights, head="head")

    def head(self, network: nn.Module) -> str:  # noqa: ARG002 - it is the same for all
        """The one linear layer."""
        return "head"

    def preprocessing(self) -> Preprocessing:
        """Of the largest part; each normalises for itself."""
        largest = max(self.parts, key=lambda part: min(part.size))
        return Preprocessing(mean=MEAN, std=STD, size=largest.size, resize=min(largest.size))

    def adapt_state(self, network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each part's tensors as its own backbone adapts them."""
        assert isinstance(network, JoinedNetwork)
        adapted = {name: tensor for name, tensor in state.items() if not name.startswith("parts.")}
        for number, (part, inner) in enumerate(zip(self.parts, network.parts, strict=True)):
            prefix = f"parts.{number}.network."
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            assert isinstance(inner, FeatureNetwork)
            own = find_backbone(part.name).adapt_state(inner.network, own)
            adapted |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
        return adapted


def joined_name(names: Sequence[str]) -> str:
    """What people call several networks behind one head."""
    return " + ".join(names)


def head_width(network: nn.Module, backbone: Backbone) -> int:
    """Features that a network's head takes.

    Raises:
        UserError: the head is of a kind of its own.
    """
    head = network.get_submodule(backbone.head(network))
    if isinstance(head, nn.Linear) and head.bias is not None:
        return head.in_features
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.groups == 1 and head.bias is not None:
        return head.in_channels
    raise UserError(_no_linear_head(backbone))


def without_head(network: nn.Module, backbone: Backbone) -> nn.Module:
    """The network, whose head is replaced by nothing at all: it gives its features; the network is changed."""
    network.set_submodule(backbone.head(network), nn.Identity())
    return network


def check_linear_head(network: nn.Module, backbone: Backbone, size: tuple[int, int]) -> None:
    """See that the scores are what the head gives, of features that are one row an image: only then can another linear
    layer stand in its place.

    Args:
        network: in evaluation mode.
        backbone: says where the head is.
        size: height and width of an image.

    Raises:
        UserError: the network does not take the size; or something comes behind its head (SqueezeNet).
    """
    check_input(network, (3, *size))
    head_width(network, backbone)
    given: list[Tensor] = []
    head = network.get_submodule(backbone.head(network))
    hook = head.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    try:
        with torch.inference_mode():
            images = torch.linspace(-1, 1, _PROBED * 3 * size[0] * size[1]).view(_PROBED, 3, *size)
            scores = network(images)
    finally:
        hook.remove()
    if len(given) != 1 or given[0].flatten(1).shape != scores.shape or not torch.equal(given[0].flatten(1), scores):
        raise UserError(_no_linear_head(backbone))


def _no_linear_head(backbone: Backbone) -> str:
    return (
        f"{backbone.name} has no plain last layer over one row of features an image, so no other can stand in its place: "
        "take a network that has, such as resnet18, mobilenet_v2, convnext_tiny or timm/tf_efficientnet_lite0."
    )
