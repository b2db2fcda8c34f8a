"""What only training mode refuses is found before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accel_flowers.core.errors import UserError
from accel_flowers.models.find import build_network
from accel_flowers.training.memory import check_training_mode
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import tiny_config


@pytest.mark.holds("What only training mode refuses is tried before the first step")
def test_a_batch_norm_with_one_value_a_channel_is_told(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=6)
    config = tiny_config(photos, tmp_path / "run", model={"name": "resnet18"}, train={"micro_batch_size": 1})
    with pytest.raises(UserError, match=r"(?s)1 picture of 32 x 32 pixels.*--train.micro-batch-size 2"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_two_values_are_enough_and_the_trial_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network, _ = build_network("resnet18", 3)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    check_training_mode(network, (32, 32), 2)
    check_training_mode(network, (64, 64), 1)
    with pytest.raises(UserError):
        check_training_mode(network, (32, 32), 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.training
