"""The name of a model → what builds it: a part of the user's own, else timm or torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import Backbone, check_input
from accel_flowers.models.timm import TimmBackbone
from accel_flowers.models.torchvision import TorchvisionBackbone
from accel_flowers.models.weights import WeightsReport


def find_backbone(name: str) -> Backbone:
    """What builds the network of a name.

    Args:
        name: "prefix/name" of a registered `Backbone` (its class, or one that was made) or of a registered function or
            module class `(num_classes, dropout=None) -> nn.Module`; "timm/" and a name of timm; else a name of torchvision.

    Raises:
        UserError: there is no such model; the message says what would bring it in.
    """
    part = registry.find("model", name)
    if part is None:
        if registry.is_own_name(name):
            raise UserError(f"model.name: {registry.unknown('model', name)}.")
        if name.startswith(registry.TIMM_PREFIX):
            return TimmBackbone(name)
        return TorchvisionBackbone(name)
    make: Any = part.make
    if inspect.isclass(make) and issubclass(make, Backbone):
        make = make()
    if not isinstance(make, Backbone):
        return FunctionBackbone(name, make)
    make.name = name
    return make


def build_network(
    name: str, num_classes: int, *, weights: str = "none", dropout: float | None = None
) -> tuple[nn.Module, WeightsReport]:
    """`find_backbone(name).build(...)` in one call."""
    return find_backbone(name).build(num_classes, dropout=dropout, weights=weights)


def takes_size(name: str, size: tuple[int, int]) -> bool:
    """Whether a network takes images of a height and width; chance is left alone.

    Raises:
        UserError: there is no such model.
    """
    with torch.random.fork_rng(devices=[]):
        network, _ = build_network(name, 2)
    try:
        check_input(network, (3, *size))
    except UserError:
        return False
    return True


class FunctionBackbone(Backbone):
    """A network that a plain function makes; its head is the last `Linear` or `Conv2d`.

    Args:
        name: as it was registered.
        make: `(num_classes, dropout=None) -> nn.Module`; without the second, a recipe cannot set model.dropout.
    """

    def __init__(self, name: str, make: Callable[..., nn.Module]) -> None:
        self.name = name
        self._make = make

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        """Call the function, and copy what fits of a file of weights."""
        if "dropout" in inspect.signature(self._make).parameters:
            network = self._make(num_classes, dropout=dropout)
        elif dropout is None:
            network = self._make(num_classes)
        else:
            raise UserError(
                f"model.dropout: {self.name} takes none: its function has no parameter `dropout`. Leave model.dropout "
                "out, or add the parameter."
            )
        if not isinstance(network, nn.Module):
            raise UserError(f"The model '{self.name}' made a {type(network).__name__}, which is no torch.nn.Module.")
        return network, self.first_weights(network, weights)
