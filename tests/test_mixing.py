"""Mixup and CutMix: the pixels that are mixed and the targets agree, and chance follows from the place alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.data.transforms.build_batch import build_batch_transform
from accel_flowers.data.transforms.mixing import PairMixing
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import metrics, tiny_config

CONTEXT = BatchContext(num_classes=3, seed=5, micro_batch=8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=8)


def one_hot_images(labels: torch.Tensor, height: int = 24, width: int = 16) -> torch.Tensor:
    """Images whose channel k is 1 where their class is k: what is mixed of whom can be read from the pixels."""
    return torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(-1, -1, height, width).contiguous()


@pytest.mark.holds("Mixing follows from the place in the stream")
@settings(deadline=None, max_examples=30)
@given(first=st.integers(0, 10**6).map(lambda place: 2 * place), mixup=st.sampled_from([0.0, 0.2, 1.0]),
       cutmix=st.sampled_from([0.0, 1.0]), chance=st.sampled_from([0.3, 1.0]))  # fmt: skip
def test_targets_are_the_shares_of_the_pixels(first: int, mixup: float, cutmix: float, chance: float) -> None:
    if mixup == cutmix == 0:
        return
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0, 0])
    inputs = one_hot_images(labels)
    mixed, targets = PairMixing(CONTEXT, mixup=mixup, cutmix=cutmix, chance=chance)(inputs, labels, first)
    assert mixed.shape == inputs.shape
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), targets, atol=1e-5, rtol=0)


@pytest.mark.holds("Mixing follows from the place in the stream")
@pytest.mark.parametrize(
    "spec", [{"mixup": {"alpha": 0.4}}, "cutmix", {"mixup_or_cutmix": {"mixup": 0.2, "cutmix": 1.0}}]
)
def test_a_pair_is_mixed_alike_in_any_micro_batch(spec: str | dict[str, object]) -> None:
    torch.manual_seed(0)
    labels, inputs = torch.arange(8) % 3, torch.rand(8, 3, 20, 20)
    whole = build_batch_transform([spec], CONTEXT)
    parts = build_batch_transform([spec], BatchContext(3, 5, 2))
    assert whole is not None
    assert parts is not None
    mixed, targets = whole(inputs, labels, 16)
    for start in range(0, 8, 2):
        piece, of_piece = parts(inputs[start : start + 2], labels[start : start + 2], 16 + start)
        assert torch.equal(piece, mixed[start : start + 2])
        assert torch.equal(of_piece, targets[start : start + 2])
    other = whole(inputs, labels, 24)[0]
    assert not torch.equal(other, mixed), "another place, another chance"
    assert torch.equal(inputs, inputs.clone()), "what came in stays"


def test_shares_are_beta_distributed() -> None:
    mixing = PairMixing(CONTEXT, mixup=0.4)
    shares = np.array([mixing.draw(place, 8, 8).share for place in range(0, 8000, 2)])
    wanted = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
    for power in (1, 2):
        assert abs((shares**power).mean() - (wanted**power).mean()) < 0.02


def test_chance_and_last_epochs() -> None:
    some = PairMixing(CONTEXT, mixup=1.0, chance=0.25)
    mixed = [some.draw(place, 8, 8).share < 1 for place in range(0, 8000, 2)]
    assert 0.22 < np.mean(mixed) < 0.28
    run = BatchContext(3, 5, 8, num_images=100, epochs=4)
    ending = PairMixing(run, cutmix=1.0, off_epochs=1)
    assert all(ending.draw(place, 64, 64).share == 1 for place in range(300, 400, 2))
    assert np.mean([ending.draw(place, 64, 64).share < 1 for place in range(0, 300, 2)]) > 0.9


@pytest.mark.parametrize(
    ("spec", "micro_batch", "words"),
    [
        ("mixup", 7, "even --train.micro-batch-size"),
        ({"mixup": {"alpha": 0}}, 8, "alpha is above 0"),
        ({"mixup": {"alpha": -1}}, 8, "alpha is above 0"),
        ({"cutmix": {"chance": 2}}, 8, "chance is from 0 to 1"),
        ({"cutmix": {"off_epochs": -1}}, 8, "off_epochs is 0 or more"),
        ({"cutmix": {"beta": 1}}, 8, "does not take"),
        ("mixupp", 8, "Did you mean 'mixup'"),
    ],
)
def test_mistakes_are_told(spec: str | dict[str, object], micro_batch: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_batch_transform([spec], BatchContext(3, 5, micro_batch))


@pytest.mark.holds("Mixing follows from the place in the stream")
def test_losses_do_not_depend_on_the_micro_batch(photos: Path, tmp_path: Path) -> None:
    """A run with both, and the same in smaller pieces."""
    losses = []
    for micro_batch in (8, 2):
        config = tiny_config(
            photos, tmp_path / str(micro_batch),
            data={"batch_transform": {"mixup_or_cutmix": {"mixup": 0.2, "cutmix": 1.0, "off_epochs": 1}}},
            model={"dropout": 0.0}, train={"micro_batch_size": micro_batch, "log_every_steps": 1}, tracking={"report": False},
        )  # fmt: skip
        train(config)
        losses.append(metrics(tmp_path / str(micro_batch), "train/loss"))
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4, rtol=0)
