"""What is asked of any network: its head, its memory layout, the images that it can take."""

from __future__ import annotations

import torch
from torch import nn

from accel_flowers.core.errors import UserError, error_text

_HEAD_ATTRIBUTES = ("fc", "classifier", "heads", "head")


def head_name(network: nn.Module) -> str:
    """Path of the head inside the network, such as "fc", "classifier.6" or "heads.head"."""
    for attribute in _HEAD_ATTRIBUTES:
        part = getattr(network, attribute, None)
        if isinstance(part, nn.Module):
            return [n for n, m in part.named_modules(prefix=attribute) if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    raise ValueError(f"{type(network).__name__} has none of the heads of torchvision: {', '.join(_HEAD_ATTRIBUTES)}")


def head_module(network: nn.Module) -> nn.Module:
    """The head: the last `Linear` or `Conv2d`, which makes the class scores."""
    return network.get_submodule(head_name(network))


def check_input(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Run one black image through the network to see that it takes the size; modes and weights stay as they are.

    Args:
        network: From `build_network`.
        image_shape: Channels, height and width of what the transforms make.

    Raises:
        UserError: with the size and the network's own words.
    """
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters())
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros((1, *image_shape), dtype=like.dtype, device=like.device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, height, width = image_shape
        raise UserError(
            f"{type(network).__name__} does not take pictures of {height} x {width} pixels and {channels} channels: "
            f"{error_text(error)}. The size comes from data.train_transforms and data.eval_transforms."
        ) from None
    finally:
        for module, training in modes:
            module.training = training


def wants_channels_last(network: nn.Module) -> bool:
    """Whether the channels-last memory format speeds the network up: a convolution beyond the patch embedding."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 1
