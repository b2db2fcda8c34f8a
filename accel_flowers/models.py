"""Networks: torchvision's classifiers with a last layer for the user's classes, and their first weights.

Two words mean the same throughout. The *head* is the one last `Linear` (SqueezeNet: `Conv2d`) that makes the class
scores; the *backbone* is all the rest, so of VGG's three linear layers two belong to the backbone.

Not for: what is frozen (freezing.py), pictures, devices, precision, processes. Everything here acts on one plain `nn.Module` on the CPU (or the
meta device); whoever has wrapped a network for several processes unwraps it first.
"""

from __future__ import annotations

import http.client
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from accel_flowers.errors import UserError, did_you_mean

MODELS_PAGE = "https://docs.pytorch.org/vision/stable/models.html#classification"

_HEAD_ATTRIBUTES = ("fc", "classifier", "heads", "head")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Names that torchvision's own downloads still carry and its classes rename while loading (DenseNet, ViT).
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
# The auxiliary classifiers double the losses for little gain in fine-tuning. `transform_input` undoes the usual
# normalisation in favour of the one that these two were trained with; random weights do not mind, so it is always on
# and a network that is built again needs no memory of where its first weights came from.
_INCEPTION_ARGUMENTS = {"aux_logits": False, "init_weights": False, "transform_input": True}


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights. Counters and look-up tables (integer tensors) are not spoken of."""

    source: str
    """"none", or where the values came from."""
    loaded: tuple[str, ...] = ()
    """Names of the tensors that got values from the source."""
    missing: tuple[str, ...] = ()
    """Names of the network that the source lacks: these stay at random."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """(name, shape in the source, shape in the network): these stay at random, too."""
    unexpected: tuple[str, ...] = ()
    """Names of the source that the network lacks: ignored."""
    head: tuple[str, ...] = ()
    """Names of the head's tensors; each is also in one of the tuples above."""

    @property
    def head_is_new(self) -> bool:
        """Whether the head starts at random, as it does whenever the source knows another number of classes."""
        return not set(self.head) <= set(self.loaded)

    @property
    def at_random(self) -> tuple[str, ...]:
        """Names of the backbone's tensors that stay at random."""
        return tuple(n for n in (*self.missing, *(name for name, _, _ in self.mismatched)) if n not in self.head)

    def summary(self) -> str:
        """One line for the log."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        if self.source == "none":
            return f"all {total} tensors at random"
        parts = [f"loaded {len(self.loaded)} of {total} tensors from {self.source}"]
        if self.at_random:
            parts.append(f"at random: {_few(self.at_random)}")
        if shapes := [f"{name} {there} for {here}" for name, there, here in self.mismatched if name not in self.head]:
            parts.append(f"other shapes: {_few(shapes)}")
        if self.unexpected:
            parts.append(f"ignored: {_few(self.unexpected)}")
        parts.append("head new" if self.head_is_new else "head loaded")
        return "; ".join(parts)


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
    """A classifier of torchvision for float pictures `[N, 3, H, W]` that returns scores `[N, num_classes]`.

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
        transformer takes on the size of picture that its weights were made for.

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
    _adopt_picture_size(network, state)
    report = _compare(network, state, source)
    if set(report.loaded) <= set(report.head):
        raise UserError(
            f"{source} has nothing for the backbone of {name}. It holds {_few(list(state))}; "
            f"{name} wants {_few(report.at_random)}. Is model.name the network that these weights belong to?"
        )
    _copy(network, state)
    return network, report


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
            f"The ImageNet weights of {name} are not to be had: {_words(error)}.\n"
            f"  wanted: {wanted.url}\n"
            f"  kept as: {place}{' (delete it if it is damaged)' if place.exists() else ''}\n"
            "Fetch that file on a machine with a network and put it there, or give a file of weights with "
            "`--model.weights PATH` (.safetensors or .pth), or start from random weights with `--model.weights none`."
        ) from None
    return str(wanted), _tidy(state)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file without running anything that it holds.

    Args:
        path: A `.safetensors` file, or a `.pth`, `.pt` or `.bin` file of `torch.save`, either the tensors by name or
            one of a training script that has them under "state_dict", "model_state_dict" or "model".

    Returns:
        CPU tensors by name in the file's dtypes; the prefixes of DistributedDataParallel and torch.compile are off.

    Raises:
        UserError: no such file, a folder, another kind of file, a damaged one, one that wants to run code, or one
            without tensors.
    """
    file = Path(path).expanduser()
    if os.path.isdir(file):  # unlike Path's methods, those of os.path answer for any name
        raise UserError(f"{path} is a folder; give the file of weights in it ({', '.join(_SUFFIXES)}).")
    if file.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"model.weights is imagenet, none or a file that ends in {', '.join(_SUFFIXES)}, not '{path}'."
            f"{did_you_mean(str(path), ['imagenet', 'none'])}"
        )
    if not os.path.isfile(file):
        raise UserError(f"There is no file of weights {path}.")
    content = _read(file)
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    state = _tidy(content) if isinstance(content, Mapping) else {}
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise UserError(f"{path} holds tensors without plain values, for example {_few(odd)}: weights are no such.")
    if not state:
        raise UserError(f"{path} holds no tensors by name. Save them with `torch.save(model.state_dict(), PATH)`.")
    return state


def _read(file: Path) -> Any:
    try:
        if file.suffix.lower() == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings(action="ignore"):  # they announce what ends as an error anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} holds more than tensors ({found[1]}). Reading such a file can run any code, so it is not "
                "read. Where you trust it, save the tensors alone: `torch.save(model.state_dict(), PATH)`."
            ) from None
        raise UserError(f"{file} is damaged or no file of weights: {_words(error)}.") from None


def _tidy(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors alone, under the names that today's torchvision has for them."""
    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            name = str(key)
            while name.startswith(_WRAPPERS):
                name = name.partition(".")[2]
            for pattern, new in _OLD_NAMES:
                name = pattern.sub(new, name)
            state[name] = value
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Not sparse, nor on the meta device, nor a few bytes that claim to be a large tensor."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _adopt_picture_size(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a vision transformer as many positions as its weights have: these say for which size of picture it is."""
    positions = state.get("encoder.pos_embedding")
    if not isinstance(network, models.VisionTransformer) or positions is None or positions.dim() != 3:
        return
    own, side = network.encoder.pos_embedding, math.isqrt(max(positions.shape[1] - 1, 0))
    if positions.shape[1] == side**2 + 1 != own.shape[1] and positions.shape[2] == own.shape[2]:
        network.image_size, network.seq_length = side * network.patch_size, side**2 + 1
        network.encoder.pos_embedding = nn.Parameter(own.new_empty(positions.shape))


def _compare(network: nn.Module, state: Mapping[str, Tensor], source: str) -> WeightsReport:
    own = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    common = [name for name in own if name in state]
    if integers := [name for name in common if not state[name].is_floating_point()]:
        raise UserError(f"{source} holds integers for {_few(integers)}: weights of a quantised network do not fit.")
    same = {name for name in common if state[name].shape == own[name].shape}
    return WeightsReport(
        source=source,
        loaded=tuple(name for name in common if name in same),
        missing=tuple(name for name in own if name not in state),
        mismatched=tuple((n, tuple(state[n].shape), tuple(own[n].shape)) for n in common if n not in same),
        unexpected=tuple(
            name
            for name, tensor in state.items()
            if tensor.is_floating_point() and name not in own and not name.startswith(_AUXILIARY)
        ),
        head=tuple(name for name in own if name.rpartition(".")[0] == head_name(network)),
    )


def _copy(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what fits into the network, in the network's dtypes."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name in state and state[name].shape == tensor.shape:
                tensor.copy_(state[name])


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole state into a network; nothing changes unless all of it fits.

    Args:
        network: From `build_network` with the same name and number of classes; its dropout is free.
        state: Tensors by name, as `clean_state_dict` or `read_weights` returns them.
        source: What the message calls them.

    Raises:
        UserError: naming the tensors that are missing, too many, or of another shape.
    """
    _adopt_picture_size(network, state)
    report = _compare(network, state, source)
    shapes = [f"{name} {there} for {here}" for name, there, here in report.mismatched]
    lists = {"missing": report.missing, "too many": report.unexpected, "of another shape": shapes}
    if faults := [f"{what}: {_few(names)}" for what, names in lists.items() if names]:
        raise UserError(f"{source} does not fit this {type(network).__name__}; {'; '.join(faults)}.")
    _copy(network, state)


def clean_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state for `safetensors.torch.save_file`: contiguous CPU tensors under plain names."""
    state = network.state_dict()
    return _tidy({n: t.to("cpu", copy=True, memory_format=torch.contiguous_format) for n, t in state.items()})


def check_input(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Run one black picture through the network to see that it takes the size; modes and weights stay as they are.

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
            f"{_words(error)}. The size comes from data.train_transforms and data.eval_transforms."
        ) from None
    finally:
        for module, training in modes:
            module.training = training


def wants_channels_last(network: nn.Module) -> bool:
    """Whether the channels-last memory format speeds the network up: a convolution beyond the patch embedding."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 1


def _few(names: Sequence[str], shown: int = 3) -> str:
    more = f" (+{len(names) - shown})" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _words(error: Exception) -> str:
    """The gist of an error. Unpickling has no words for users; torch's even advise to run what the file holds."""
    if isinstance(error, (pickle.UnpicklingError, EOFError, LookupError, UnicodeDecodeError)):
        return "its pickle is not one of tensors"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
