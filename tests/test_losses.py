"""Losses against cases made by hand; soft targets; a batch may be cut anyhow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from accel_flowers.config.effects import settings_without_effect
from accel_flowers.config.schema import LOSSES, Config, LossConfig
from accel_flowers.core.errors import UserError
from accel_flowers.training.losses import log_priors, soft_targets
from tests.test_tasks import LABELS, criterion, draw_batch, gradient

OPTIONS: dict[str, dict[str, Any]] = {"focal": {"gamma": 1.5}, "logit_adjusted": {"tau": 0.7}}


def test_soft_targets_by_hand() -> None:
    shares = soft_targets(torch.tensor([1]), 4, 0.2)
    torch.testing.assert_close(shares, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    assert float(soft_targets(torch.tensor([[0.3, 0.7]]), 2, 0.5).sum()) == pytest.approx(1)


def test_focal_by_hand() -> None:
    """p = 0.75: (1 - 0.75)² · -log 0.75; and of mixed targets each class by its share."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = criterion(name="focal", options={"gamma": 2}, num_classes=2, labels=torch.tensor([0, 1]))
    assert float(loss(logits, torch.tensor([0]))) == pytest.approx(0.25**2 * -math.log(0.75))
    mixed = 0.4 * 0.25**2 * -math.log(0.75) + 0.6 * 0.75**2 * -math.log(0.25)
    assert float(loss(logits, torch.tensor([[0.4, 0.6]]))) == pytest.approx(mixed)


def test_focal_of_gamma_0_is_cross_entropy_and_of_what_is_certain_finite() -> None:
    logits, labels = draw_batch()
    for more in ({}, {"class_weights": "balanced"}, {"label_smoothing": 0.1}):
        focal = criterion(name="focal", options={"gamma": 0}, **more)
        torch.testing.assert_close(focal(logits, labels), criterion(**more)(logits, labels))
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    criterion(name="focal", options={"gamma": 0.5})(certain, torch.tensor([0])).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_bce_by_hand_and_its_gradient_is_as_large_as_that_of_cross_entropy() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]], requires_grad=True)
    loss = criterion(name="bce")(logits, torch.tensor([0]))
    by_hand = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)
    assert float(loss.detach()) == pytest.approx(by_hand)
    loss.backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - torch.tensor([[1.0, 0.0, 0.0]]))


def test_with_class_weights_bce_answers_as_if_all_classes_had_as_many_images() -> None:
    """Images that show nothing, 9 of one class and 1 of the other: one score for all of them is best at even odds."""
    labels = torch.tensor([0] * 9 + [1])
    for weights, odds in (("balanced", [0.5, 0.5]), ("none", [0.9, 0.1])):
        logits = torch.tensor([odds]).logit().expand(10, 2).requires_grad_()
        loss = criterion(labels, num_classes=2, name="bce", class_weights=weights)
        (pull,) = torch.autograd.grad(loss(logits, labels), logits)
        torch.testing.assert_close(pull.sum(dim=0), torch.zeros(2))
    mixed = torch.tensor([[0.25, 0.75]])
    weighted, plain = (
        criterion(labels, num_classes=2, name="bce", class_weights=weights)(torch.zeros(1, 2), mixed)
        for weights in ("balanced", "none")
    )
    assert float(weighted / plain) == pytest.approx(0.25 * 10 / 18 + 0.75 * 10 / 2)


def test_logit_adjustment_by_hand() -> None:
    """Even scores, classes of 6, 3 and 1 images: what is said is the shares, so the rare class loses log 10."""
    loss = criterion(name="logit_adjusted")
    for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)):
        assert float(loss(torch.zeros(1, 3), torch.tensor([label]))) == pytest.approx(-math.log(share))
    assert float(criterion(name="logit_adjusted", options={"tau": 0})(torch.zeros(1, 3), torch.tensor([2]))) == (
        pytest.approx(math.log(3))
    )


def test_a_class_without_a_training_picture_makes_no_loss_infinite() -> None:
    priors = log_priors(torch.tensor([0, 0, 1]), 3)
    assert priors.isfinite().all()
    loss = criterion(torch.tensor([0, 0, 1]), name="logit_adjusted", label_smoothing=0.1)
    assert loss(torch.zeros(2, 3), torch.tensor([0, 1])).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_hard_targets_are_soft_ones_of_one_class(name: str) -> None:
    logits, labels = draw_batch()
    loss = criterion(name=name, options=OPTIONS.get(name, {}), label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, labels), loss(logits, functional.one_hot(labels, 3).float()))
    assert loss(logits.to(torch.bfloat16), labels).dtype == torch.float32


@pytest.mark.holds("No loss depends on how a batch is cut into micro-batches")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("pieces", [2, 12])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(name: str, pieces: int) -> None:
    weights = "none" if name == "logit_adjusted" else "balanced"
    loss = criterion(name=name, options=OPTIONS.get(name, {}), class_weights=weights)
    logits, labels = draw_batch()
    whole = gradient(loss, logits, labels)
    cut = [gradient(loss, logits, labels, rows) for rows in torch.arange(len(labels)).chunk(pieces)]
    torch.testing.assert_close(torch.stack(cut).mean(dim=0), whole)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("focal", {"gama": 2}, r"loss\.options: the loss 'focal' does not take \{'gama': 2\}: .*unexpected keyword"),
        ("focal", {"gamma": -1}, r"gamma is a number from 0 to 1000, not -1"),
        ("focal", {"gamma": "much"}, r"gamma is a number from 0 to 1000, not 'much'"),
        ("logit_adjusted", {"tau": True}, r"tau is a number from 0 to 1000, not True"),
        ("bce", {"gamma": 2}, r"the loss 'bce' does not take"),
    ],
)
def test_options_that_do_not_fit_are_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        criterion(LABELS, name=name, options=options)


def test_two_corrections_for_the_sizes_of_classes_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="take one of them"):
        LossConfig(name="logit_adjusted", class_weights="balanced")


def test_options_without_effect_are_told() -> None:
    def told(**loss: Any) -> list[str]:
        return settings_without_effect(Config.model_validate({"loss": loss}), {})

    assert told(options={"gamma": 2}) == [
        "without effect: loss.options {'gamma': 2}, because loss.name is cross_entropy, which takes none"
    ]
    assert told(task_options={"weight": 1}) == [
        "without effect: loss.task_options {'weight': 1}, because loss.task is classification, which takes none"
    ]
    assert told(name="focal", options={"gamma": 2}, label_smoothing=0.1) == []
    assert told(task="distillation", options={"teacher": "x"}) == [], "as earlier recipes say it"
