"""The moving average: its formula, its warm-up, what it averages and what it copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from accel_flowers.models.ema import Ema, decay_at
from accel_flowers.models.saved import load_model
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import metrics, tiny_config


@given(step=st.integers(1, 10**9), decay=st.floats(0.01, 0.99999))
def test_decay_rises_to_what_was_asked(step: int, decay: float) -> None:
    assert 0 < decay_at(step, decay) <= decay_at(step + 1, decay) <= decay
    assert decay_at(10**9, decay) == decay


def test_decay_forgets_the_first_weights_soon() -> None:
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(90, 0.999) == pytest.approx(0.91)


def test_average_is_the_sum_of_all_weights() -> None:
    """Against the definition, with weights and batch-norm statistics that change in every step."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(network, 0.5)
    network.train()
    expected = {name: tensor.clone().double() for name, tensor in network.state_dict().items()}
    for step in range(1, 8):
        network(torch.randn(5, 3))  # moves the running statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(step)
        decay = decay_at(step, 0.5)
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    averaged = ema.network.state_dict()
    for name, tensor in expected.items():
        if name == "1.num_batches_tracked":
            assert averaged[name] == 7
        else:
            torch.testing.assert_close(averaged[name].double(), tensor, rtol=1e-5, atol=1e-6)
    assert not torch.equal(averaged["0.weight"], network[0].weight)


def test_what_does_not_move_stays_bit_for_bit() -> None:
    network = nn.Linear(3, 4)
    ema = Ema(network, 0.9)
    for step in range(1, 20):
        ema.update(step)
    assert torch.equal(ema.network.weight, network.weight)  # type: ignore[arg-type]


@pytest.mark.usefixtures("every_checkpoint")
def test_in_a_run_every_step_is_taken_in(tmp_path: Path) -> None:
    """By the definition, from one checkpoint to the next; a checkpoint comes after each step."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    every = {"every_steps": 1, "keep_last": 100}
    train(tiny_config(photos, tmp_path / "run", ema={"decay": 0.9}, checkpoint=every, train={"epochs": 1}))
    averaged, weights = (
        [load_file(step / f"{name}.safetensors") for step in sorted((tmp_path / "run/checkpoints").glob("step-*"))]
        for name in ("averaged", "model")
    )
    assert len(averaged) == 4
    for step in range(2, 5):
        decay = decay_at(step, 0.9)
        for name, before in averaged[step - 2].items():
            expected = decay * before + (1 - decay) * weights[step - 1][name]
            torch.testing.assert_close(averaged[step - 1][name], expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(averaged[3][name], averaged[2][name]) for name in averaged[3])


def test_both_are_scored_and_the_averaged_is_kept(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    run_dir = tmp_path / "run"
    results = train(tiny_config(photos, run_dir, ema={"decay": 0.9}, train={"best_metric": "loss", "epochs": 3})).scores
    raw, averaged = metrics(run_dir, "val/loss"), metrics(run_dir, "val_ema/loss")
    assert len(raw) == len(averaged) == 3
    assert raw != averaged
    assert results["val"].loss == pytest.approx(min(averaged), abs=1e-7)
    kept = load_model(run_dir / "model").network.state_dict()
    best = load_file(run_dir / "checkpoints/best/averaged.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in best.items())
    assert any(
        not torch.equal(kept[name], tensor)
        for name, tensor in load_file(run_dir / "checkpoints/best/model.safetensors").items()
    )
