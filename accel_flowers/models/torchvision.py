"""Networks: torchvision's classifiers with a last layer for the user's classes, and their first weights.

What is special about one of its families stands here, and nowhere else.

Not for: what is frozen (freezing.py), images, devices, precision, processes. Everything here acts on one plain `nn.Module`
on the CPU (or the meta device); whoever has wrapped a network for several processes unwraps it first.
"""

from __future__ import annotations

import http.client
import math
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from accel_flowers.core.errors import UserError, did_you_mean, error_text
from accel_flowers.core.files import refused
from accel_flowers.models.backbone import Backbone, Preprocessing, stages_without
from accel_flowers.models.timm_names import from_timm, timm_form
from accel_flowers.models.weights import WeightsReport, read_weights, tidy_state

MODELS_PAGE = "https://docs.pytorch.org/vision/stable/models.html#classification"


# The auxiliary classifiers double the losses for little gain in fine-tuning. `transform_input` undoes the usual
# normalisation in favour of the one that these two were trained with; random weights do not mind, so it is always on
# and a network that is built again needs no memory of where its first weights came from.
_INCEPTION_ARGUMENTS = {"aux_logits": False, "init_weights": False, "transform_input": True}

_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
"""Names that torchvision's own downloads still carry and its classes rename while loading (DenseNet, ViT)."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Tensors of the Inceptions' auxiliary classifiers, which are not built."""


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


class TorchvisionBackbone(Backbone):
    """A classification model of torchvision.

    Args:
        name: one of `model_names()`.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, name: str) -> None:
        if name not in (names := model_names()):
            raise UserError(
                f"There is no model '{name}'.{did_you_mean(name, names)} Every classification model of torchvision is "
                f"possible: {MODELS_PAGE} lists them."
            )
        self.name = name

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        """See `Backbone.build`. A vision transformer takes on the size of image that its weights were made for.

        Args:
            num_classes: outputs of the head.
            dropout: probability of dropout in front of the head; None leaves what the architecture has there.
            weights: "imagenet" (torchvision's default download), "none" (random) or a file with torchvision's names.

        Raises:
            UserError: dropout outside [0, 1), no download, or a file that cannot be read or has nothing for this
                backbone.
        """
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"model.dropout is a probability from 0 to below 1, not {dropout}.")
        # Reading comes before building, which takes seconds for the large ones: a wrong path is told at once.
        source, state = weights, None
        if weights == "imagenet":
            source, state = _download(self.name)
        elif weights != "none":
            state = read_weights(weights)
        network = self._build_at_random(num_classes, dropout)
        return network, self.first_weights(network, source, state)

    def stages(self, network: nn.Module) -> list[tuple[str, ...]]:
        """Without the family's whole classifier, which may have more layers than the head (VGG)."""
        return stages_without(network, self.head(network).partition(".")[0])

    def preprocessing(self) -> Preprocessing:
        """Of the default download. The Inceptions take the usual mean and deviation, too: they convert it themselves."""
        seen = models.get_model_weights(self.name).DEFAULT.transforms()
        height, width = (*seen.crop_size, *seen.crop_size)[:2]
        return Preprocessing(
            mean=tuple(seen.mean),
            std=tuple(seen.std),
            size=(height, width),
            resize=seen.resize_size[0],
            interpolation=seen.interpolation.value,
        )

    def adapt_state(self, network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names and old ones become today's, auxiliary classifiers go, and a vision transformer gets as many positions
        as its weights have: these say for which size of image it is."""
        form = timm_form(self.name)
        if form is not None:
            state = from_timm(state, form, network.state_dict())
        adapted = {_todays_name(name): tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY)}
        _adopt_image_size(network, adapted)
        return adapted

    def _build_at_random(self, num_classes: int, dropout: float | None) -> nn.Module:
        arguments = _INCEPTION_ARGUMENTS if self.name in ("googlenet", "inception_v3") else {}
        network: nn.Module = models.get_model(self.name, weights=None, num_classes=num_classes, **arguments)
        if isinstance(network, models.MNASNet):
            # Its own method wants a version that .safetensors files, and so checkpoints of Accelerate, do not carry.
            network.__dict__["_load_from_state_dict"] = partial(nn.Module._load_from_state_dict, network)
        if dropout is not None:
            _set_dropout(network, self.head(network), dropout)
        return network


def _todays_name(name: str) -> str:
    for pattern, new in _OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def _adopt_image_size(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    positions = state.get("encoder.pos_embedding")
    if not isinstance(network, models.VisionTransformer) or positions is None or positions.dim() != 3:
        return
    own, side = network.encoder.pos_embedding, math.isqrt(max(positions.shape[1] - 1, 0))
    if positions.shape[1] == side**2 + 1 != own.shape[1] and positions.shape[2] == own.shape[2]:
        network.image_size, network.seq_length = side * network.patch_size, side**2 + 1
        network.encoder.pos_embedding = nn.Parameter(own.new_empty(positions.shape))


def _set_dropout(network: nn.Module, head: str, p: float) -> None:
    """Dropout right in front of the head: on the layer that stands there already, else inside the head."""
    leaves = [(path, module) for path, module in network.named_modules() if not any(module.children())]
    before = leaves[[path for path, _ in leaves].index(head) - 1][1]
    if isinstance(before, nn.Dropout):
        before.p = p
    elif p > 0:
        plain = network.get_submodule(head)
        assert isinstance(plain, nn.Linear)  # the one family with a convolution there has the dropout, too
        network.set_submodule(head, DropoutLinear(plain, p))


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
            f"  kept as: {place}{' (delete it if it is damaged)' if place.exists() else ''}"
            f"{' (TORCH_HOME names another place)' if refused(error) else ''}\n"
            "Fetch that file on a machine with a network and put it there, or give a file of weights with "
            "`--model.weights PATH` (.safetensors or .pth), or start from random weights with `--model.weights none`."
        ) from None
    return str(wanted), tidy_state(state)
