"""A linear head on frozen features: multinomial logistic regression, for many strengths of its penalty at once.

For a strength C the sum of the cross-entropies times C plus half the squared weights is least, as scikit-learn has it; the features
are brought to mean 0 and deviation 1 first, and that is folded into the head that comes out. All strengths are fitted together,
by L-BFGS with a step of its own for each: a pass over the features serves all of them, which takes a quarter of the time that one
after the other takes. scikit-learn fits one at a time, and wants the features in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accel_flowers.metrics.confusion import Floats

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""C of the penalties that are tried, the strongest penalty first."""
TOLERANCE = 1e-4
"""Largest entry of the gradient of the mean loss at which a fit is done: scikit-learn's own."""
ROUGHLY = 1e-3
"""The same where fits are only compared: of 855 photos it takes three quarters of the time, and the loss of the best strength
moves by 0.001."""
_MOST_ROUNDS = 300
_HISTORY = 10
_SUFFICIENT = 1e-4
"""Share of the decrease that the gradient promises which a step must bring (Armijo)."""
_MOST_NUMBERS = 4_000_000
"""Of the weights of all strengths that are fitted together; bounds the memory of the fit (20 copies are kept)."""
_ROWS_IN_MEMORY = 2**28
"""Numbers of features that a fit keeps in memory (1 GiB); of more it reads them anew each time."""
_ROWS_AT_ONCE = 2**22
"""Numbers of features in one piece of these."""


class Features(Protocol):
    """Features of pictures, in one or two views of each."""

    @property
    def num_views(self) -> int:
        """How many views."""
        ...

    def rows(self, view: int, pictures: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [n, D]."""
        ...


@dataclass(frozen=True)
class Head:
    """A linear layer.

    Attributes:
        weight: float64 [C, D].
        bias: float64 [C].
    """

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def logits(self, features: Features, pictures: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The mean of the scores over all views of each picture, float64 [n, C]."""
        scores = np.empty((len(pictures), len(self.bias)))
        step = max(1, _ROWS_AT_ONCE // self.weight.shape[1])
        weight = self.weight.T.astype(np.float32)
        for first in range(0, len(pictures), step):
            some = pictures[first : first + step]
            mean = sum(features.rows(view, some) for view in range(features.num_views)) / features.num_views
            scores[first : first + step] = mean @ weight + self.bias
        return scores


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities, float64 [n, C]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def fit_heads(
    features: Features,
    pictures: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    num_classes: int,
    strengths: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
) -> list[Head]:
    """Fit a head for each strength, on all views of some pictures; a picture counts once, however many views it has.

    Args:
        features: of all pictures.
        pictures: the numbers of those that are learned from, int64 [n].
        labels: class of each of these, int64 [n].
        num_classes: C of the head.
        strengths: see the module.
        tolerance: of the fit.
    """
    problem = _Problem(features, pictures, labels, num_classes)
    at_once = max(1, _MOST_NUMBERS // problem.num_weights)
    heads: list[Head] = []
    for first in range(0, len(strengths), at_once):
        some = torch.tensor(strengths[first : first + at_once], dtype=torch.float32)
        heads += [problem.folded(weights) for weights in _minimise(problem, 1 / (some * len(pictures)), tolerance)]
    return heads


class _Problem:
    """Mean loss and gradient of weights float32 [P, D + 1, C], whose last row is the bias, over standardised features."""

    def __init__(
        self, features: Features, pictures: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int
    ) -> None:
        self._features, self._pictures, self._num_classes = features, pictures, num_classes
        self._labels = torch.from_numpy(labels)
        width = features.rows(0, pictures[:1]).shape[1]
        self.num_weights = (width + 1) * num_classes
        total = len(pictures) * features.num_views * width
        self._step = max(1, _ROWS_AT_ONCE // width)
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self.mean, self.deviation = self._moments(width)
        if total <= _ROWS_IN_MEMORY:
            self._kept = list(self._pieces())

    def _moments(self, width: int) -> tuple[Tensor, Tensor]:
        sums, squares, count = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64), 0
        for rows, _ in self._raw():
            exact = rows.double()
            sums += exact.sum(dim=0)
            squares += exact.square().sum(dim=0)
            count += len(rows)
        mean = sums / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        # What is the same in all pictures says nothing; its deviation is rounding.
        flat = deviation <= 1e-6 * mean.abs().clamp_min(1e-12)
        return mean, torch.where(flat, torch.ones_like(deviation), deviation)

    def _raw(self) -> Iterator[tuple[Tensor, Tensor]]:
        for view in range(self._features.num_views):
            for first in range(0, len(self._pictures), self._step):
                piece = slice(first, first + self._step)
                yield torch.from_numpy(self._features.rows(view, self._pictures[piece])), self._labels[piece]

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised features float32 [n, D], and labels."""
        mean, scale = self.mean.float(), (1 / self.deviation).float()
        for rows, labels in self._raw():
            yield (rows - mean) * scale, labels

    def __call__(self, weights: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Loss with its penalty, float64 [P], and its gradient, float32 [P, D + 1, C]."""
        number = len(weights)
        matrix = weights[:, :-1].permute(1, 0, 2).reshape(-1, number * self._num_classes)
        bias = weights[:, -1].reshape(-1)
        losses = torch.zeros(number, dtype=torch.float64)
        gradient = torch.zeros_like(weights)
        count = 0
        for rows, labels in self._kept if self._kept is not None else self._pieces():
            scores = torch.addmm(bias, rows, matrix).view(-1, number, self._num_classes)
            own = labels.view(-1, 1, 1).expand(-1, number, 1)
            logs = scores.log_softmax(dim=2)
            losses -= logs.gather(2, own).double().sum(dim=(0, 2))
            errors = logs.exp_().scatter_add_(2, own, torch.full_like(own, -1, dtype=torch.float32)).view(len(rows), -1)
            gradient[:, :-1] += (rows.T @ errors).view(-1, number, self._num_classes).permute(1, 0, 2)
            gradient[:, -1] += errors.sum(dim=0).view(number, self._num_classes)
            count += len(rows)
        gradient /= count
        gradient[:, :-1] += penalties.view(-1, 1, 1) * weights[:, :-1]
        squares = weights[:, :-1].double().square().sum(dim=(1, 2))
        return losses / count + penalties.double() * squares / 2, gradient

    def folded(self, weights: Tensor) -> Head:
        """The head over features as they are."""
        scaled = weights[:-1].double().T / self.deviation
        return Head(scaled.numpy(), (weights[-1].double() - scaled @ self.mean).numpy())

    def start(self, number: int) -> Tensor:
        """Weights of 0, float32 [P, D + 1, C]."""
        return torch.zeros(number, self.num_weights // self._num_classes, self._num_classes)


@torch.inference_mode()
def _minimise(problem: _Problem, penalties: Tensor, tolerance: float) -> Tensor:
    """L-BFGS of several convex problems side by side, each with its own history and step; float32 [P, D + 1, C]."""
    weights = problem.start(len(penalties))
    best = weights.clone()
    at = torch.arange(len(penalties))  # the problems that go on, by their place in `best`
    losses, gradient = problem(weights, penalties)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(_MOST_ROUNDS):
        direction = _direction(gradient, history)
        slope = (gradient.double() * direction.double()).sum(dim=(1, 2))
        lengths = torch.ones(len(at)) if history else 1 / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        new_weights, new_losses, new_gradient, moved = weights.clone(), losses.clone(), gradient.clone(), torch.zeros(len(at), dtype=torch.bool)  # fmt: skip
        waiting = torch.arange(len(at))
        for _ in range(20):
            tried = weights[waiting] + lengths[waiting].view(-1, 1, 1) * direction[waiting]
            its_losses, its_gradient = problem(tried, penalties[waiting])
            good = its_losses <= losses[waiting] + _SUFFICIENT * lengths[waiting].double() * slope[waiting]
            accepted = waiting[good]
            new_weights[accepted], new_losses[accepted], new_gradient[accepted] = (
                tried[good],
                its_losses[good],
                its_gradient[good],
            )
            moved[accepted] = True
            waiting = waiting[~good]
            if not len(waiting):
                break
            lengths[waiting] *= 0.5
        change, bend = new_weights - weights, new_gradient - gradient
        weights, losses, gradient = new_weights, new_losses, new_gradient
        best[at] = weights
        # Where no step is any better, float32 tells no more.
        goes_on = moved & (gradient.flatten(1).abs().amax(dim=1) > tolerance)
        if not goes_on.any():
            break
        inner = (change.double() * bend.double()).sum(dim=(1, 2)).clamp_min(1e-30)
        history = [*history[-_HISTORY + 1 :], (change, bend, (1 / inner).float())]
        history = [(s[goes_on], y[goes_on], rho[goes_on]) for s, y, rho in history]
        at, weights, losses, gradient, penalties = (
            each[goes_on] for each in (at, weights, losses, gradient, penalties)
        )
    return best


def _direction(gradient: Tensor, history: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Minus the gradient times what the last steps tell of the inverse Hessian (Nocedal's two loops), for each problem."""
    turned = gradient.clone()
    factors = []
    for change, bend, rho in reversed(history):
        factor = rho * (change * turned).sum(dim=(1, 2))
        turned -= factor.view(-1, 1, 1) * bend
        factors.append(factor)
    if history:
        change, bend, _ = history[-1]
        scale = (change * bend).sum(dim=(1, 2)) / bend.square().sum(dim=(1, 2)).clamp_min(1e-30)
        turned *= scale.view(-1, 1, 1)
    for (change, bend, rho), factor in zip(history, reversed(factors), strict=True):
        turned += change * (factor - rho * (bend * turned).sum(dim=(1, 2))).view(-1, 1, 1)
    return -turned
