"""`model.name: auto`: the network that a file of weights is for, or a good one for this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from accel_flowers.config.field_types import AUTO
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.core.registry import TIMM_PREFIX
from accel_flowers.models.backbone import is_inside
from accel_flowers.models.find import find_backbone
from accel_flowers.models.saved import SPEC_FILE, load_spec, model_folder
from accel_flowers.models.weights import read_weights

_FOR_A_GPU = ("timm/convnext_tiny.in12k_ft_in1k", "convnext_tiny")
_FOR_A_CPU = ("timm/tf_efficientnet_lite0", "resnet18")
"""The stronger first; timm's are passed over where it is not installed."""
_RECOGNISED = (
    "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_v2_s", "convnext_tiny",
    "convnext_small", "convnext_base", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf", "vit_b_16", "swin_t",
    "timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite1", "timm/tf_efficientnet_lite2", "timm/efficientnet_b0",
    "timm/mobilenetv3_large_100", "timm/resnet50", "timm/convnext_tiny", "timm/vit_small_patch16_224",
    "timm/vit_base_patch16_224",
)  # fmt: skip
"""Networks whose files of weights are recognised."""
_SURE = 0.75
"""Share of a backbone's tensors that a file must hold, in their shapes, to be taken for its weights, or for a part of them."""


def settle_model(config: Config) -> tuple[Config, list[str]]:
    """The configuration with a network's name, and a line that says why it is this one.

    Args:
        config: `model.name` may be "auto".

    Raises:
        UserError: no network that is known here is one for the file of weights.
    """
    if config.model.name != AUTO:
        return config, []
    name, why = _choose(config.model.weights)
    model = config.model.model_copy(update={"name": name})
    return config.model_copy(update={"model": model}), [f"model.name auto: {name}, {why}"]


def _choose(weights: str) -> tuple[str, str]:
    if weights in ("imagenet", "none"):
        # As `distributed.launch.computes_on_cpu`, which a look at photos must not import.
        on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        name = next(_that_can_be_built(_FOR_A_CPU if on_cpu else _FOR_A_GPU))
        return name, f"a good one for a {'CPU' if on_cpu else 'GPU'}"
    folder = model_folder(Path(weights).expanduser())
    if os.path.isfile(folder / SPEC_FILE):
        spec = load_spec(folder)
        if spec.backbones:
            raise UserError(
                f"model.name auto: {weights} holds {number_of(len(spec.backbones), 'network')} behind one head, which can be asked "
                "but not trained on. Name one network, and weights of its own."
            )
        return spec.architecture, f"for {weights} is its model"
    return recognise(read_weights(weights), source=weights), f"for the tensors of {weights} are its"


def recognise(state: Mapping[str, Tensor], *, source: str) -> str:
    """The network that tensors are of, by their names and shapes.

    Args:
        state: of a file of weights; the head is not looked at.
        source: of the tensors, for messages.

    Raises:
        UserError: of none that is known here.
    """
    shares: dict[str, float] = {}
    for name in _that_can_be_built(_RECOGNISED):
        shares[name] = _share_of(name, state)
        if shares[name] == 1.0:
            return name
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < _SURE:
        raise UserError(
            f"model.name auto: {source} holds the weights of no network that is recognised (nearest: {best}, of whose tensors "
            f"it has {shares[best]:.0%}). Name the network: --model.name resnet18, or any other of torchvision or timm."
        )
    return best


def _share_of(name: str, state: Mapping[str, Tensor]) -> float:
    """Of the floating-point tensors of a backbone without its head, how many the state has in their shape."""
    backbone = find_backbone(name)
    with init_empty_weights():
        network, _ = backbone.build(2)
    head = backbone.head(network)
    adapted = backbone.adapt_state(network, dict(state))
    own = network.state_dict()
    wanted = {
        key: tensor.shape for key, tensor in own.items() if tensor.is_floating_point() and not is_inside(key, [head])
    }
    found = sum(key in adapted and adapted[key].shape == shape for key, shape in wanted.items())
    # A small network is part of a large one of its family: what the file has beyond counts against it.
    beyond = sum(tensor.is_floating_point() and key not in own for key, tensor in adapted.items())
    return found / (len(wanted) + beyond)


def _that_can_be_built(names: Iterable[str]) -> Iterator[str]:
    has_timm = importlib.util.find_spec("timm") is not None
    return (name for name in names if has_timm or not name.startswith(TIMM_PREFIX))
