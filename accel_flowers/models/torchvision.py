"""Networks: torchvision's classifiers with a last layer for the user's classes, and their first weights.

Two words mean the same throughout. The *head* is the one last `Linear` (SqueezeNet: `Conv2d`) that makes the class
scores; the *backbone* is all the rest, so of VGG's three linear layers two belong to the backbone.

Not for: what is frozen (freezing.py), images, devices, precision, processes. Everything here acts on one plain `nn.Module` on the CPU (or the
meta device); whoever has wrapped a network for several processes unwraps it first.
"""

from __future__ import annotations

import http.client
import pickle
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from accel_flowers.core.errors import UserError, did_you_mean, error_text
from accel_flowers.models.backbone import head_name
from accel_flowers.models.weights import (
    WeightsReport,
    _adopt_image_size,
    _compare,
    _copy,
    _tidy,
    read_weights,
    shorten_list,
)

MODELS_PAGE = "https://docs.pytorch.org/vision/stable/models.html#classification"


# The auxiliary classifiers double the losses for little gain in fine-tuning. `transform_input` undoes the usual
# normalisation in favour of the one that these two were trained with; random weights do not mind, so it is always on
# and a network that is built again needs no memory of where its first weights came from.
_INCEPTION_ARGUMENTS = {"aux_logits": False, "init_weights": False, "transform_input": True}


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input, whose tensors keep the names and values of the plain layer.

    In a `Sequential` of both, `fc.weight` would become `fc.1.weight`; so a file of weights fits whether dropout is
    set or not, here and in plain torchvision.
    """

    def __init__(self, plain: nn.Linear, p: float) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight, self.bias, self.p = plain.weight, plain.bias, p

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, self.p, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


def model_names() -> list[str]:
    """Names of torchvision's classification models, sorted."""
    return list(models.list_models(module=models))


def build_network(
    name: str, num_classes: int, *, weights: str = "none", dropout: float | None = None
) -> tuple[nn.Module, WeightsReport]:
    """A classifier of torchvision for float images `[N, 3, H, W]` that returns scores `[N, num_classes]`.

    What stays at random is drawn from torch's global generator, whatever the weights: seed it before.

    Args:
        name: One of `model_names()`.
        num_classes: Outputs of the head.
        weights: "imagenet" (torchvision's default download), "none" (random) or the path of a `.safetensors`, `.pth`,
            `.pt` or `.bin` file with torchvision's tensor names. A part of them will do; a head of the same number
            of classes is loaded, another is not.
        dropout: Probability of dropout in front of the head; None leaves what the architecture has there.

    Returns:
        The network on the CPU in training mode with everything trainable, and what became of the weights. A vision
        transformer takes on the size of image that its weights were made for.

    Raises:
        UserError: unknown name, dropout outside [0, 1), no download, or a file that cannot be read or has nothing
            for this backbone.
    """
    if name not in (names := model_names()):
        raise UserError(
            f"There is no model '{name}'.{did_you_mean(name, names)} Every classification model of torchvision is "
            f"possible: {MODELS_PAGE} lists them."
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"model.dropout is a probability from 0 to below 1, not {dropout}.")
    # Reading comes before building, which takes seconds for the large ones: a wrong path is told at once.
    source, state = _download(name) if weights == "imagenet" else (weights, {})
    if weights not in ("imagenet", "none"):
        state = read_weights(weights)
    network = _random_network(name, num_classes, dropout)
    if weights == "none":
        return network, _compare(network, {}, source)
    _adopt_image_size(network, state)
    report = _compare(network, state, source)
    if set(report.loaded) <= set(report.head):
        raise UserError(
            f"{source} has nothing for the backbone of {name}. It holds {shorten_list(list(state))}; "
            f"{name} wants {shorten_list(report.at_random)}. Is model.name the network that these weights belong to?"
        )
    _copy(network, state)
    return network, report


def _random_network(name: str, num_classes: int, dropout: float | None) -> nn.Module:
    arguments = _INCEPTION_ARGUMENTS if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    if isinstance(network, models.MNASNet):
        # Its own method wants a version that .safetensors files, and so checkpoints of Accelerate, do not carry.
        network.__dict__["_load_from_state_dict"] = partial(nn.Module._load_from_state_dict, network)
    if dropout is not None:
        _set_dropout(network, dropout)
    return network


def _set_dropout(network: nn.Module, p: float) -> None:
    """Dropout right in front of the head: on the layer that stands there already, else inside the head."""
    name = head_name(network)
    leaves = [(path, module) for path, module in network.named_modules() if not any(module.children())]
    before = leaves[[path for path, _ in leaves].index(name) - 1][1]
    if isinstance(before, nn.Dropout):
        before.p = p
    elif p > 0:
        plain = network.get_submodule(name)
        assert isinstance(plain, nn.Linear)  # the one family with a convolution there has the dropout, too
        network.set_submodule(name, DropoutLinear(plain, p))


def _download(name: str) -> tuple[str, dict[str, Tensor]]:
    wanted = models.get_model_weights(name).DEFAULT
    place = Path(torch.hub.get_dir(), "checkpoints", wanted.url.rpartition("/")[2])
    try:
        with warnings.catch_warnings(action="ignore"):
            # A file that stands in the cache is not hashed again, so it gets no more trust than any other.
            state = wanted.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
    # RuntimeError is a wrong hash or a damaged file of the cache, like the two behind it.
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The ImageNet weights of {name} are not to be had: {error_text(error)}.\n"
            f"  wanted: {wanted.url}\n"
            f"  kept as: {place}{' (delete it if it is damaged)' if place.exists() else ''}\n"
            "Fetch that file on a machine with a network and put it there, or give a file of weights with "
            "`--model.weights PATH` (.safetensors or .pth), or start from random weights with `--model.weights none`."
        ) from None
    return str(wanted), _tidy(state)
