"""The whole state of a network and its optimizer, however its weights are spread over the processes, and back.

What is on the disk is the same for one process, for copies of the network on each, and for shards: whole tensors under
plain names, and an optimizer's state by the place of each parameter, as `Optimizer.state_dict` numbers them. So a run
goes on from either in any other. Gathering and scattering are torch's own (`torch.distributed.checkpoint.state_dict`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(network: nn.Module) -> bool:
    """Whether each process holds only a part of the weights, as under FSDP2."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, whole and contiguous, on the CPU, that no later step changes; collective.

    Args:
        network: unwrapped; sharded or not. Buffers are each process's own, never sharded: average them before.

    Returns:
        Name → tensor. Where the network is sharded, on the main process alone; elsewhere nothing.
    """
    state: dict[str, Any] = (
        get_model_state_dict(network, options=_WHOLE) if is_sharded(network) else network.state_dict()
    )
    return {name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in state.items()}


def whole_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of an optimizer's state, whole and on the CPU, as `Optimizer.state_dict` lays it out; collective.

    Args:
        network: whose parameters it steps.
        optimizer: prepared or not.

    Returns:
        Where the network is sharded, on the main process alone; elsewhere nothing.
    """
    if not is_sharded(network):
        copied: dict[str, Any] = _copied(optimizer.state_dict())
        return copied
    optimizer = getattr(optimizer, "optimizer", optimizer)  # what Accelerate wrapped
    named: dict[str, Any] = get_optimizer_state_dict(network, optimizer, options=_WHOLE)
    if not named:
        return {}
    place_of = _places(network, optimizer)
    groups = [{**group, "params": [place_of[name] for name in group["params"]]} for group in named["param_groups"]]
    state = {place_of[name]: each for name, each in named["state"].items()}
    whole: dict[str, Any] = _copied({"state": dict(sorted(state.items())), "param_groups": groups})
    return whole


def load_whole_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a whole state into a sharded network: each process takes its part; collective.

    Args:
        network: sharded.
        state: of `whole_state`, on every process.

    Raises:
        RuntimeError: names or shapes that are not the network's.
    """
    set_model_state_dict(network, dict(state), options=StateDictOptions(full_state_dict=True, strict=True))


def load_whole_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put a whole state into the optimizer of a network, sharded or not; collective.

    Args:
        network: whose parameters it steps.
        optimizer: prepared or not.
        state: of `whole_optimizer_state`, on every process; a step is as far as it was.
    """
    if not is_sharded(network):
        optimizer.load_state_dict(dict(state))
        return
    optimizer = getattr(optimizer, "optimizer", optimizer)
    name_of = {place: name for name, place in _places(network, optimizer).items()}
    named: Any = {
        "state": {name_of[place]: each for place, each in state["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[place] for place in group["params"]]} for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(network, optimizer, named, options=StateDictOptions(full_state_dict=True))


def _places(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Name of each parameter that is stepped → its number in `Optimizer.state_dict`."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[id(parameter)]: place for place, parameter in enumerate(stepped)}


def _copied(value: Any) -> Any:
    """In memory of its own, where no step changes it."""
    if isinstance(value, Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return copy.deepcopy(value)
