"""What each of two processes does in the tests of sharded state; an assertion that fails is its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from accel_flowers.distributed.launch import start_processes
from accel_flowers.distributed.state import (
    is_sharded,
    load_whole_optimizer_state,
    load_whole_state,
    whole_optimizer_state,
    whole_state,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """Two groups, so that a parameter's place is not its place in the network."""
    parameters = dict(model.named_parameters())
    biases = [parameter for key, parameter in parameters.items() if key.endswith("bias")]
    weights = [parameter for key, parameter in parameters.items() if not key.endswith("bias")]
    groups = [{"params": biases, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.01) if name == "adamw" else torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """The same samples on both processes, so that shards learn what one whole network learns."""
    for number in numbers:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def same(left: Any, right: Any, place: str = "") -> None:
    """Equal to the last bit, whatever holds it."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            same(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), place
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            same(one, other, f"{place}.{number}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), f"{place}: {left} {right}"
    else:
        assert left == right, place


def main(words: Sequence[str]) -> None:
    """From shards to a whole, and from a whole to shards."""
    (name,) = words
    rank = start_processes().process_index
    plain = network()
    plainly = optimizer_of(plain, name)
    steps(plain, plainly, range(3))

    sharded = network()
    for layer in (sharded[0], sharded[3]):
        fully_shard(layer)
    fully_shard(sharded)
    optimizer = optimizer_of(sharded, name)
    assert is_sharded(sharded)
    assert not is_sharded(plain)
    assert sum(parameter.to_local().numel() for parameter in sharded.parameters()) < sum(
        map(torch.numel, plain.parameters())
    )
    steps(sharded, optimizer, range(3))
    state, trained = whole_state(sharded), whole_optimizer_state(sharded, optimizer)
    if rank:
        assert (state, trained) == ({}, {}), "the main process writes"
    else:
        same(state, whole_state(plain))
        same(trained["state"], whole_optimizer_state(plain, plainly)["state"])
        for group, own in zip(trained["param_groups"], plainly.state_dict()["param_groups"], strict=True):
            assert group["params"] == own["params"]
            assert group["weight_decay"] == own["weight_decay"]

    # A run that began in one piece goes on in shards, and the other way.
    whole, at = whole_state(plain), whole_optimizer_state(plain, plainly)
    steps(plain, plainly, range(3, 5))
    again = network()
    for layer in (again[0], again[3]):
        fully_shard(layer)
    fully_shard(again)
    going_on = optimizer_of(again, name)
    load_whole_state(again, whole)
    load_whole_optimizer_state(again, going_on, at)
    steps(again, going_on, range(3, 5))
    state = whole_state(again)
    if rank == 0:
        same(state, whole_state(plain))
        back = network()
        back.load_state_dict(state)
        assert all(map(torch.equal, back.state_dict().values(), plain.state_dict().values()))
    torch.distributed.barrier()
