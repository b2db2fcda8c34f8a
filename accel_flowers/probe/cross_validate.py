"""Choosing and scoring on the same pictures, and honestly: each picture is scored by a head that neither learned from it nor was
chosen by it.

With K folds every pair of folds is left out once, and a head is fitted on the others for every way and strength. What is chosen
for fold k goes by what those heads that saw neither k nor m say of m, for all other m; then a head of the chosen way is fitted on
all folds but k, and scores k (nested cross-validation; each pair serves both of its folds, so K (K - 1) / 2 fits do instead of
K (K - 1)). For the final head, which learns from all, the choice goes by all pairs together; what it is worth on new pictures is
what the nested scores say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from accel_flowers.data.folds import subsample
from accel_flowers.data.sampler import permutation, random_key
from accel_flowers.metrics.confusion import Floats, Ints
from accel_flowers.probe.head import ROUGHLY, STRENGTHS, Features, Head, fit_heads, log_softmax

CURVE = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the training folds that the learning curve learns from, beside all of them."""
_CHOSEN_BY = 20_000
"""Pictures that a choice goes by; of more, so many are drawn: the best strength does not move for the rest."""
_FEWEST = 2000
_WORK = 4e9
"""Of features, classes, strengths and pictures that a fit of a choice may take together: some seconds a pass on a core."""


@dataclass(frozen=True)
class Way:
    """One way to see a picture, that a choice can fall on.

    Attributes:
        mirror: whether mirror images are learned from and asked, too.
        size: by what the own size of the networks is multiplied, or pixels; None = their own.
    """

    mirror: bool
    size: float | int | None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and by what."""

    way: Way
    strength: float
    loss: float
    """Mean cross-entropy in nats, cross-validated; optimistic, for it is the least of all that were tried."""


@dataclass(frozen=True)
class Validated:
    """What cross-validation says of one set of networks.

    Attributes:
        choice: for the final head.
        choices: of each fold, for the heads that scored it.
        logits: of every picture by a head that knows nothing of it, float64 [N, C].
        chosen_by: pictures that the choices went by.
        losses: way → mean cross-validated loss of its best strength, over all pairs.
    """

    choice: Choice
    choices: tuple[Choice, ...]
    logits: Floats
    chosen_by: int
    losses: Mapping[Way, float]

    @property
    def predicted(self) -> Ints:
        """int64 [N]."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)


def cross_validate(
    features: Mapping[Way, Features],
    labels: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    num_classes: int,
    *,
    seed: int,
    after_fit: Callable[[], None],
) -> Validated:
    """Choose among the ways and strengths, and score all pictures out of fold.

    Args:
        features: of each way.
        labels, folds: of all pictures, int64 [N].
        num_classes: C.
        seed: what a draw of pictures follows from, where there are very many.
        after_fit: called after each fit.
    """
    num_folds, num_images = int(folds.max()) + 1, len(labels)
    width = next(iter(features.values())).rows(0, np.zeros(1, dtype=np.int64)).shape[1]
    most = int(min(_CHOSEN_BY, max(_FEWEST, _WORK / (width * num_classes * len(STRENGTHS)))))
    drawn = np.zeros(num_images, dtype=bool)
    drawn[permutation(random_key(seed, "chosen by"), num_images)[:most]] = True
    losses = np.zeros((len(features), len(STRENGTHS), num_folds, num_folds))
    counts = np.bincount(folds[drawn], minlength=num_folds)
    for place, way in enumerate(features):
        for pair in combinations(range(num_folds), 2):
            learned = np.flatnonzero(drawn & ~np.isin(folds, pair))
            heads = fit_heads(features[way], learned, labels[learned], num_classes, STRENGTHS, tolerance=ROUGHLY)
            for fold, other in (pair, pair[::-1]):
                asked = np.flatnonzero(drawn & (folds == fold))
                for number, head in enumerate(heads):
                    losses[place, number, fold, other] = _loss(head, features[way], asked, labels[asked]).sum()
            after_fit()

    def choose(sums: Floats, count: float) -> Choice:
        place, number = np.unravel_index(int(sums.argmin()), sums.shape)
        return Choice(list(features)[place], STRENGTHS[number], float(sums.min() / count))

    logits = np.empty((num_images, num_classes))
    choices = []
    for fold in range(num_folds):
        # What was said of the other folds by heads that saw nothing of this one.
        choice = choose(losses[:, :, :, fold].sum(axis=2), counts.sum() - counts[fold])
        learned, asked = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        (head,) = fit_heads(features[choice.way], learned, labels[learned], num_classes, [choice.strength])
        logits[asked] = head.logits(features[choice.way], asked)
        choices.append(choice)
        after_fit()
    sums = losses.sum(axis=(2, 3))
    count = float(counts.sum() * (num_folds - 1))
    best = dict(zip(features, (sums.min(axis=1) / count).tolist(), strict=True))
    return Validated(choose(sums, count), tuple(choices), logits, int(drawn.sum()), best)


def learning_curve(
    features: Mapping[Way, Features],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    validated: Validated,
    num_classes: int,
    *,
    seed: int,
    after_fit: Callable[[], None],
) -> tuple[list[float], npt.NDArray[np.bool_]]:
    """What fewer pictures would have given: each picture scored by heads that learned from a share of the other folds.

    The strength for a share is chosen by the rest of those folds, the way is that of the whole.

    Returns:
        Pictures that were learned from, on average of the folds, rising; and whether each picture was then right,
        bool [sizes, N]. The last size is all of the other folds.
    """
    num_folds = len(validated.choices)
    sizes, right = [], []
    for share in CURVE:
        hits, learned_from = np.zeros(len(labels), dtype=bool), 0
        for fold, choice in enumerate(validated.choices):
            others, asked = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            drawn = subsample(labels[others], groups[others], share, seed=random_key(seed, "curve", fold))
            learned, rest = others[drawn], others[~drawn]
            rest = rest[permutation(random_key(seed, "curve", fold, "chosen by"), len(rest))[:_CHOSEN_BY]]
            heads = fit_heads(features[choice.way], learned, labels[learned], num_classes, STRENGTHS)
            head = min(heads, key=lambda head: float(_loss(head, features[choice.way], rest, labels[rest]).sum()))
            hits[asked] = head.logits(features[choice.way], asked).argmax(axis=1) == labels[asked]
            learned_from += len(learned)
            after_fit()
        sizes.append(learned_from / num_folds)
        right.append(hits)
    sizes.append(float(np.mean([(folds != fold).sum() for fold in range(num_folds)])))
    right.append(validated.predicted == labels)
    return sizes, np.stack(right)


def fit_final(
    features: Mapping[Way, Features], labels: npt.NDArray[np.int64], choice: Choice, num_classes: int
) -> Head:
    """The head that learns from all pictures."""
    (head,) = fit_heads(features[choice.way], np.arange(len(labels)), labels, num_classes, [choice.strength])
    return head


def num_fits(num_ways: int, num_folds: int, *, curve: bool) -> int:
    """How often `after_fit` is called."""
    return num_ways * num_folds * (num_folds - 1) // 2 + num_folds + (len(CURVE) * num_folds if curve else 0)


def _loss(head: Head, features: Features, pictures: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Floats:
    """Cross-entropy of each picture in nats."""
    return np.asarray(-log_softmax(head.logits(features, pictures))[np.arange(len(labels)), labels])


def spread_of(choices: Sequence[Choice]) -> str:
    """The strengths that were chosen for the folds, in words."""
    return ", ".join(f"{strength:g}" for strength in sorted({choice.strength for choice in choices}))
