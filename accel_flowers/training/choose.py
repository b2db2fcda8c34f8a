"""What a run ends with: which weights and which views of an image, chosen on validation; every function is collective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.core.plural import number_of
from accel_flowers.metrics.classification import HEADLINE, headline, lower_is_better
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
    start: float = 0.0
    """Share of the weights from before fine-tuning in these."""


def choose(session: Session, network: nn.Module, score: Score) -> Choice:
    """Take the best epoch's weights, or a mean of several epochs', or of these and the first ones, and the views with which they do
    best.

    Args:
        session: after its last step.
        network: unwrapped; left with the chosen weights.
        score: scores the validation part.
    """
    state, config = session.run.state, session.run.config
    weights = session.checkpoints.read_weights(state.best_step, _file_of(session))
    put_weights(network, weights, source="The best epoch's checkpoint")
    val, told = score(network), list[str]()
    epochs: tuple[int, ...] = (state.best_epoch,)
    if len(state.ranked) > 1:
        before = val
        epochs, weights, val = _greedy_soup(session, network, score, weights, val)
        told.append(_describe_soup(epochs, len(state.ranked), before, val))
    start = 0.0
    if config.soup.start is not None:
        before = val
        start, val = _mix_with_start(session, network, score, weights, val)
        told.append(_describe_start(start, config.soup.start, state.start_step, before, val))
    tta: Tta = "none"
    for candidate in _views_to_try(config.model.tta):
        found = score(MeanOfViews(network, candidate))
        if config.model.tta != "auto" or found.scores["loss"] < val.scores["loss"]:
            told.append(f"test-time augmentation {candidate}: {_loss_and_headline(val, found)}")
            tta, val = candidate, found
    if config.model.tta == "auto" and tta == "none":
        told.append("test-time augmentation: none, for no views lower the validation loss")
    return Choice(epochs, tta, val, tuple(told), start)


def mean_of(weights: dict[str, Tensor], others: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Take one more state into a mean of `count` states.

    Returns:
        (count · weights + others) / (count + 1), as `between` does it.
    """
    return between(weights, others, 1 / (count + 1))


def between(weights: dict[str, Tensor], others: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """A state on the line between two; integers, such as batch norm's counters, are those of the first.

    Returns:
        (1 - share) · weights + share · others, in the dtype of `weights`.
    """
    return {
        name: torch.lerp(tensor.float(), others[name].float(), share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _greedy_soup(
    session: Session, network: nn.Module, score: Score, mean: dict[str, Tensor], val: Scored
) -> tuple[tuple[int, ...], dict[str, Tensor], Scored]:
    """Average the weights of the best epochs, best first, each only where validation does not get worse with it.

    Greedy soup of Wortsman et al. 2022 (arXiv 2203.05482), over the epochs of one run.

    Args:
        session: after its last step.
        network: left with the mean.
        score: scores the validation part.
        mean: the best epoch's weights.
        val: their scores.

    Returns:
        The epochs in the mean, the mean, and its scores.
    """
    best, *others = session.run.state.ranked
    metric = session.run.config.train.best_metric
    members = [best.epoch]
    for epoch in others:
        more = mean_of(mean, session.checkpoints.read_weights(epoch.step, _file_of(session)), len(members))
        put_weights(network, more, source="The mean of epochs")
        found = score(network)
        if is_no_worse(found.scores, val.scores, metric):
            mean, val = more, found
            members.append(epoch.epoch)
    put_weights(network, mean, source="The mean of epochs")
    return tuple(members), mean, val


SHARES_TO_TRY = (0.1, 0.2, 0.3, 0.5)
"""Of the first weights, for `soup.start: auto`: the paper's default is a half; these first weights know less than the paper's, so
smaller shares, too."""


def _mix_with_start(
    session: Session, network: nn.Module, score: Score, weights: dict[str, Tensor], val: Scored
) -> tuple[float, Scored]:
    """Mix weights with those from before fine-tuning, by a share that is given or that validation is best with.

    WiSE-FT of Wortsman et al. 2021 (arXiv 2109.01903); their first weights know the classes from text, these from the head's
    epochs (a linear probe).

    Returns:
        The share, 0 where nothing is mixed, and what validation makes of it.
    """
    asked, at = session.run.config.soup.start, session.run.state.start_step
    if at is None:
        return 0.0, val
    first = session.checkpoints.read_weights(at, _file_of(session))
    best, metric = (0.0, val), session.run.config.train.best_metric
    for share in SHARES_TO_TRY if asked == "auto" else (float(asked or 0),):
        put_weights(network, between(weights, first, share), source="The mean with the first weights")
        found = score(network)
        better = is_no_worse(found.scores, val.scores, metric) and found.scores["loss"] < best[1].scores["loss"]
        if asked != "auto" or better:
            best = share, found
    put_weights(network, between(weights, first, best[0]), source="The mean with the first weights")
    return best


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


def _loss_and_headline(before: Scored, after: Scored) -> str:
    first = next(iter(headline(before.scores)))  # accuracy, or what stands in its place
    told = [f"{HEADLINE[name]} {before.scores[name]:.4f} → {after.scores[name]:.4f}" for name in ("loss", first)]
    return "validation " + ", ".join(told)


def _describe_soup(epochs: tuple[int, ...], tried: int, before: Scored, after: Scored) -> str:
    if len(epochs) == 1:
        return (
            f"soup: epoch {epochs[0]} alone, for no mean with one of {number_of(tried - 1, 'other epoch')} does better"
        )
    named = ", ".join(str(epoch) for epoch in epochs)
    return f"soup: the mean of epochs {named}: {_loss_and_headline(before, after)}"


def _describe_start(share: float, asked: float | Literal["auto"], at: int | None, before: Scored, after: Scored) -> str:
    if at is None:
        return "soup: no weights from before fine-tuning are mixed in, for the run ended in its head's epochs"
    if not share:
        tried = ", ".join(f"{each:g}" for each in SHARES_TO_TRY)
        return f"soup: no weights from before fine-tuning are mixed in, for none of the shares {tried} lowers the validation loss"
    how = " (auto)" if asked == "auto" else ""
    return f"soup: {share:g}{how} of the weights from before fine-tuning, of step {at}: {_loss_and_headline(before, after)}"
