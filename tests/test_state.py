"""A state on the disk is the same whether each process holds all of the weights or a shard of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from accel_flowers.distributed.state import load_whole_optimizer_state, whole_optimizer_state, whole_state
from tests.ranks import Ranks


@pytest.mark.multiprocess
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_shards_and_a_whole_are_one_state(optimizer: str, tmp_path: Path) -> None:
    with Ranks(tmp_path, [optimizer], [optimizer], entry="tests.shards:main") as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()


def test_no_later_step_changes_it() -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    taken: list[tuple[dict[str, torch.Tensor], dict[str, object]]] = []
    for _ in range(3):
        network(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        taken.append((whole_state(network), whole_optimizer_state(network, optimizer)))
    weights = [state["weight"] for state, _ in taken]
    momenta = [state["state"][0]["momentum_buffer"] for _, state in taken]  # type: ignore[index]
    for three in (weights, momenta):
        assert not torch.equal(three[0], three[1])
        assert not torch.equal(three[1], three[2])
    load_whole_optimizer_state(network, optimizer, taken[0][1])
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], momenta[0])
