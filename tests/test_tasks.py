"""The training loss against torch's and against a case made by hand; class weights do not see micro-batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from accel_flowers.config.schema import LossConfig
from accel_flowers.training.losses import Criterion, balanced_weights, build_criterion

LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])
CPU = torch.device("cpu")


def criterion(labels: Tensor = LABELS, num_classes: int = 3, **options: Any) -> Criterion:
    return build_criterion(LossConfig(**options), labels, num_classes, CPU)


def draw_batch(size: int = 12, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(size, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (size,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_unweighted_it_is_torchs_cross_entropy(smoothing: float) -> None:
    logits, labels = draw_batch()
    loss = criterion(label_smoothing=smoothing)(logits, labels)
    assert loss.shape == ()
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_it_is_computed_in_float32() -> None:
    logits, labels = draw_batch()
    half = logits.to(torch.bfloat16)
    loss = criterion()(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.cross_entropy(half.float(), labels))


def test_balanced_weights_by_hand() -> None:
    # 10 images, 3 classes: a class weighs 10 / 3, shared by its images.
    torch.testing.assert_close(balanced_weights(LABELS, 3), torch.tensor([10 / 18, 10 / 9, 10 / 3]))


def test_balanced_loss_by_hand() -> None:
    # Even odds: every image loses log 3; smoothing spreads over classes that lose the same, but by their weights.
    logits = torch.zeros(2, 3)
    loss = criterion(class_weights="balanced")(logits, torch.tensor([0, 2]))
    assert float(loss) == pytest.approx(math.log(3) * (10 / 18 + 10 / 3) / 2)


@settings(max_examples=50)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_classes_weigh_the_same_and_one_on_the_mean(labels: list[int]) -> None:
    given_labels = torch.tensor(labels)
    weights = balanced_weights(given_labels, 5)
    assert weights.shape == (5,)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert float(weights[given_labels].mean()) == pytest.approx(1, rel=1e-5)
    shares = [float(weights[label]) * labels.count(label) for label in set(labels)]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced"}, {"class_weights": "balanced", "label_smoothing": 0.1}],
                         ids=["plain", "balanced", "balanced and smooth"])  # fmt: skip
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(options: dict[str, Any], pieces: int) -> None:
    loss = criterion(**options)
    logits, labels = draw_batch()
    whole = gradient(loss, logits, labels)
    cut = [gradient(loss, logits, labels, rows) for rows in torch.arange(len(labels)).chunk(pieces)]
    torch.testing.assert_close(torch.stack(cut).mean(dim=0), whole)


def test_torchs_weighted_mean_would_depend_on_it() -> None:
    """That the property above can fail: what the objective does not do."""
    logits, labels = draw_batch()

    def weighted_mean(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, weight=balanced_weights(LABELS, 3))

    cut = torch.stack([gradient(weighted_mean, logits, labels, rows) for rows in torch.arange(12).chunk(4)])
    assert not torch.allclose(cut.mean(dim=0), gradient(weighted_mean, logits, labels), rtol=1e-3)


def gradient(loss: Criterion, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """With respect to the weights of a linear layer that made the logits, so that images share parameters."""
    features = torch.linspace(-1, 1, 12 * 4).view(12, 4)
    weight = torch.zeros(4, 3, requires_grad=True)
    rows = torch.arange(12) if rows is None else rows
    loss((logits + features @ weight)[rows], labels[rows]).backward()
    assert weight.grad is not None
    return weight.grad
