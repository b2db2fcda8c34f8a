"""What a run ends with: which weights and which views of an image, chosen on validation; every function is collective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.core.plural import number_of
from accel_flowers.metrics.classification import lower_is_better
from accel_flowers.models.saved import WEIGHTS
from accel_flowers.models.views import MeanOfViews
from accel_flowers.tracking.scored import Scored
from accel_flowers.training.checkpoint import AVERAGED, put_weights
from accel_flowers.training.run import Session
from accel_flowers.training.state import rank

Score = Callable[[nn.Module], Scored]
"""A network, or one with views → what it makes of the validation part."""


@dataclass(frozen=True)
class Choice:
    """What is scored, saved and served; the weights are in the network that was given."""

    epochs: tuple[int, ...]
    """Whose weights are averaged, best first; one where none are."""
    tta: Tta
    val: Scored
    """With these weights and views."""
    told: tuple[str, ...]
    """Lines for people, where anything was chosen."""


def choose(session: Session, network: nn.Module, score: Score) -> Choice:
    """Take the best epoch's weights, or a mean of several epochs', and the views with which they do best.

    Args:
        session: after its last step.
        network: unwrapped; left with the chosen weights.
        score: scores the validation part.
    """
    state, config = session.run.state, session.run.config
    session.checkpoints.load_weights(network, state.best_step, _file_of(session))
    val, told = score(network), list[str]()
    epochs: tuple[int, ...] = (state.best_epoch,)
    if len(state.ranked) > 1:
        before = val
        epochs, val = _greedy_soup(session, network, score, val)
        told.append(_describe_soup(epochs, len(state.ranked), before, val))
    tta: Tta = "none"
    for candidate in _views_to_try(config.model.tta):
        found = score(MeanOfViews(network, candidate))
        if config.model.tta != "auto" or found.scores["loss"] < val.scores["loss"]:
            told.append(f"test-time augmentation {candidate}: {_loss_and_accuracy(val, found)}")
            tta, val = candidate, found
    if config.model.tta == "auto" and tta == "none":
        told.append("test-time augmentation: none, for no views lower the validation loss")
    return Choice(epochs, tta, val, tuple(told))


def mean_of(weights: dict[str, Tensor], others: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Take one more state into a mean of `count` states; integers, such as batch norm's counters, are those of the mean.

    Returns:
        (count · weights + others) / (count + 1), in the dtype of `weights`.
    """
    return {
        name: torch.lerp(tensor.float(), others[name].float(), 1 / (count + 1)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _greedy_soup(session: Session, network: nn.Module, score: Score, val: Scored) -> tuple[tuple[int, ...], Scored]:
    """Average the weights of the best epochs, best first, each only where validation does not get worse with it.

    Greedy soup of Wortsman et al. 2022 (arXiv 2203.05482), over the epochs of one run.
    """
    best, *others = session.run.state.ranked
    metric = session.run.config.train.best_metric
    mean = session.checkpoints.read_weights(best.step, _file_of(session))
    members = [best.epoch]
    for epoch in others:
        more = mean_of(mean, session.checkpoints.read_weights(epoch.step, _file_of(session)), len(members))
        put_weights(network, more, source="The mean of epochs")
        found = score(network)
        if is_no_worse(found.scores, val.scores, metric):
            mean, val = more, found
            members.append(epoch.epoch)
    put_weights(network, mean, source="The mean of epochs")
    return tuple(members), val


def is_no_worse(found: Mapping[str, Any], before: Mapping[str, Any], metric: str) -> bool:
    """Whether scores are, by the metric that names the best epoch; where it is the same, by the loss."""
    now, then = (
        rank(scores[metric], scores["loss"], lower_is_better=lower_is_better(metric)) for scores in (found, before)
    )
    return now <= then


def _views_to_try(asked: Tta | str) -> tuple[Tta, ...]:
    match asked:
        case "auto":
            return ("mirror", "mirror_zoom")
        case "mirror" | "mirror_zoom":
            return (asked,)
    return ()


def _file_of(session: Session) -> str:
    return AVERAGED if session.run.ema else WEIGHTS


def _loss_and_accuracy(before: Scored, after: Scored) -> str:
    told = [f"{name} {before.scores[name]:.4f} → {after.scores[name]:.4f}" for name in ("loss", "accuracy")]
    return "validation " + ", ".join(told)


def _describe_soup(epochs: tuple[int, ...], tried: int, before: Scored, after: Scored) -> str:
    if len(epochs) == 1:
        return (
            f"soup: epoch {epochs[0]} alone, for no mean with one of {number_of(tried - 1, 'other epoch')} does better"
        )
    named = ", ".join(str(epoch) for epoch in epochs)
    return f"soup: the mean of epochs {named}: {_loss_and_accuracy(before, after)}"
