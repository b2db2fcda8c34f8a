"""Files of weights: read without running anything that they hold, compared with a network, copied into it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accel_flowers.core.errors import UserError, did_you_mean, error_text

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_OF_A_RUN = ("model.safetensors", "model/model.safetensors")
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile


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
            parts.append(f"at random: {shorten_list(self.at_random)}")
        if shapes := [f"{name} {there} for {here}" for name, there, here in self.mismatched if name not in self.head]:
            parts.append(f"other shapes: {shorten_list(shapes)}")
        if self.unexpected:
            parts.append(f"ignored: {shorten_list(self.unexpected)}")
        parts.append("head new" if self.head_is_new else "head loaded")
        return "; ".join(parts)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file without running anything that it holds.

    Args:
        path: The directory of a run, its model/ or one of its checkpoints; a `.safetensors` file, or a `.pth`, `.pt` or `.bin` file of `torch.save`, either the tensors by name or
            one of a training script that has them under "state_dict", "model_state_dict" or "model".

    Returns:
        CPU tensors by name in the file's dtypes; the prefixes of DistributedDataParallel and torch.compile are off.

    Raises:
        UserError: no such file, a folder, another kind of file, a damaged one, one that wants to run code, or one
            without tensors.
    """
    file = Path(path).expanduser()
    if os.path.isdir(file):  # unlike Path's methods, those of os.path answer for any name
        inside = next((file / name for name in _OF_A_RUN if os.path.isfile(file / name)), None)
        if inside is None:
            raise UserError(
                f"{path} is a folder; give the file of weights in it ({', '.join(_SUFFIXES)}), or the directory of a run."
            )
        file = inside
    if file.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"model.weights is imagenet, none or a file that ends in {', '.join(_SUFFIXES)}, not '{path}'."
            f"{did_you_mean(str(path), ['imagenet', 'none'])}"
        )
    if not os.path.isfile(file):
        raise UserError(
            f"There is no file of weights {path}: model.weights is the path of one, imagenet (a download) or none (random)."
        )
    content = _read(file)
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    state = tidy_state(content) if isinstance(content, Mapping) else {}
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise UserError(
            f"{path} holds tensors without plain values, for example {shorten_list(odd)}: weights are no such."
        )
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
        raise UserError(f"{file} is damaged or no file of weights: {error_text(error)}.") from None


def tidy_state(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors alone, under plain names: the prefixes of DistributedDataParallel and torch.compile are off."""
    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            name = str(key)
            while name.startswith(_WRAPPERS):
                name = name.partition(".")[2]
            state[name] = value
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Not sparse, nor on the meta device, nor a few bytes that claim to be a large tensor."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def compare(network: nn.Module, state: Mapping[str, Tensor], source: str, *, head: str = "") -> WeightsReport:
    """What of a state a network would take over; nothing is copied.

    Args:
        network: any.
        state: tensors by name.
        source: what messages call it.
        head: path of the network's head; the report says which tensors belong to it.

    Raises:
        UserError: integers where the network has floating-point numbers.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    common = [name for name in own if name in state]
    if integers := [name for name in common if not state[name].is_floating_point()]:
        raise UserError(
            f"{source} holds integers for {shorten_list(integers)}: weights of a quantised network do not fit."
        )
    same = {name for name in common if state[name].shape == own[name].shape}
    return WeightsReport(
        source=source,
        loaded=tuple(name for name in common if name in same),
        missing=tuple(name for name in own if name not in state),
        mismatched=tuple((n, tuple(state[n].shape), tuple(own[n].shape)) for n in common if n not in same),
        unexpected=tuple(name for name, tensor in state.items() if tensor.is_floating_point() and name not in own),
        head=tuple(name for name in own if head and name.startswith(f"{head}.")),
    )


def copy_matching(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what fits into the network, in the network's dtypes."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name in state and state[name].shape == tensor.shape:
                tensor.copy_(state[name])


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole state into a network; nothing changes unless all of it fits.

    Args:
        network: From `Backbone.build` with the same name and number of classes; its dropout is free.
        state: Tensors by name, as `clean_state_dict` or `read_weights` returns them.
        source: What the message calls them.

    Raises:
        UserError: naming the tensors that are missing, too many, or of another shape.
    """
    report = compare(network, state, source)
    shapes = [f"{name} {there} for {here}" for name, there, here in report.mismatched]
    lists = {"missing": report.missing, "too many": report.unexpected, "of another shape": shapes}
    if faults := [f"{what}: {shorten_list(names)}" for what, names in lists.items() if names]:
        raise UserError(f"{source} does not fit this {type(network).__name__}; {'; '.join(faults)}.")
    copy_matching(network, state)


def clean_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state for `safetensors.torch.save_file`: contiguous CPU tensors under plain names."""
    state = network.state_dict()
    return tidy_state({n: t.to("cpu", copy=True, memory_format=torch.contiguous_format) for n, t in state.items()})


def shorten_list(names: Sequence[str], shown: int = 3) -> str:
    more = f" (+{len(names) - shown})" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
