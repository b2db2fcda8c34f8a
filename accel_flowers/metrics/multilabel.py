"""Pictures with several labels each: what happened to them → scores and thresholds. NumPy alone.

Every score follows from the table of all pictures' probabilities, so it is the same on any number of processes. A class is
said of a picture where its probability reaches the class's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from accel_flowers.core import registry
from accel_flowers.metrics.classification import ClassScores, Predictions, Scores, own_scores
from accel_flowers.metrics.confusion import Floats, Ints
from accel_flowers.metrics.intervals import Interval

NO_LABEL = "(no label)"
"""What pages and tables call a picture without any."""
USUAL = 0.5
"""Threshold of a class unless validation says better."""
_NUM_FOLDS = 10
_CELLS, _CELLS_AT_ONCE = 1_000_000_000, 5_000_000
"""Numbers of all resamples together, some ten seconds; and of a chunk of them, 40 MB."""
_NAMED = 8
"""Classes whose thresholds a line for people names."""


@dataclass(frozen=True)
class ClassScoresOfSets(ClassScores):
    """Of one class among several that a picture may have."""

    ap: float | None
    """Average precision, 0..1; None where no picture has the class."""
    threshold: float

    def as_columns(self) -> str:
        """Under `MultilabelScores.columns`, for a terminal."""
        ap = "     -" if self.ap is None else f"{self.ap:6.4f}"
        return f"{ap}  {super().as_columns()}  {self.threshold:9.4f}"


@dataclass(frozen=True)
class MultilabelScores(Scores):
    """Scores of a part whose pictures may have several labels, or none.

    `accuracy` is the share of pictures of which all labels are right and none is too many; there is no confusion matrix.
    """

    map: float = 0.0
    """Mean of the average precision over the classes that some picture has; it needs no thresholds."""
    micro_f1: float = 0.0
    """F1 of all answers of all classes together."""
    labels_per_image: float = 0.0
    """Mean number of labels of a picture."""
    cooccurrence: tuple[tuple[int, ...], ...] = ()
    """Pictures that have both classes, in the order of `per_class`; the diagonal counts those of each."""

    @property
    def exact_match(self) -> float:
        """`accuracy` by the name that it has here."""
        return self.accuracy

    @classmethod
    def from_summary(cls, part: str, scores: Mapping[str, Any]) -> MultilabelScores:
        """What `summarize` returned, as an object."""
        return cls(
            part=part,
            num_images=scores["num_images"],
            accuracy=scores["exact_match"],
            loss=scores["loss"],
            macro_f1=scores["macro_f1"],
            per_class={name: ClassScoresOfSets(**values) for name, values in scores["per_class"].items()},
            confusion_matrix=(),
            own={name: scores[name] for name in registry.registered("metric")},
            map=scores["map"],
            micro_f1=scores["micro_f1"],
            labels_per_image=scores["labels_per_image"],
            cooccurrence=tuple(map(tuple, scores["cooccurrence"])),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON: "part", what `summarize` returns and, where it is known, "seen"."""
        return {
            "part": self.part,
            "num_images": self.num_images,
            "map": self.map,
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "exact_match": self.accuracy,
            "loss": self.loss,
            "labels_per_image": self.labels_per_image,
            "per_class": {name: asdict(values) for name, values in self.per_class.items()},
            "cooccurrence": [list(row) for row in self.cooccurrence],
            **self.own,
            **({"seen": self.seen.as_json()} if self.seen else {}),
        }

    def columns(self) -> str:
        """Heading of the classes' scores, for a terminal."""
        return f"    AP  {super().columns()}  threshold"

    def baseline_in_words(self) -> str:
        """What the scores are to be held against: an answer that looks at no image."""
        shares = [each.count / self.num_images for each in self.per_class.values() if each.count]
        none = f"{sum(shares) / len(shares):.4f}" if shares else "0"
        return f"mAP of an answer that looks at no picture: {none} (the mean share of pictures with a class)"


@dataclass(frozen=True)
class MultilabelPredictions(Predictions):
    """What a model said of each picture of a part, in the part's order.

    Attributes:
        labels: bool [N, C].
        probabilities: of each class by itself, float32 [N, C].
        losses: binary cross-entropy of each picture, summed over classes, float32 [N].
        thresholds: from which probability on a class is said of a picture, C of them; None = 0.5 for all.
    """

    thresholds: tuple[float, ...] | None = field(default=None, kw_only=True)

    @property
    def cuts(self) -> Floats:
        """The thresholds, float64 [C]."""
        usual = np.full(self.probabilities.shape[1], USUAL)
        return usual if self.thresholds is None else np.asarray(self.thresholds, dtype=np.float64)

    @property
    def predicted(self) -> npt.NDArray[Any]:
        """Classes that are said of each picture, bool [N, C]."""
        return np.asarray(self.probabilities >= self.cuts)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether all labels of a picture are said, and no other, bool [N]."""
        return np.asarray((self.predicted == self.labels).all(axis=1))

    @property
    def loss_of_a_guess(self) -> float:
        """Of one that gives each class the probability 0.5."""
        return math.log(2) * self.probabilities.shape[1]

    def of_images(self, chosen: npt.NDArray[np.bool_]) -> MultilabelPredictions:
        """Those of some pictures alone."""
        rows = (self.labels[chosen], self.probabilities[chosen], self.losses[chosen])
        return MultilabelPredictions(*rows, thresholds=self.thresholds)

    def with_thresholds(self, thresholds: Sequence[float] | None) -> MultilabelPredictions:
        """The same probabilities, read with other thresholds; None = 0.5 for all."""
        return replace(self, thresholds=None if thresholds is None else tuple(thresholds))

    def fit(self) -> dict[str, Any]:
        """ "thresholds": of each class, with which these pictures are told best; see `fit_thresholds`."""
        return {"thresholds": tuple(fit_thresholds(self.probabilities, self.labels).tolist())}

    def describe_fit(self, class_names: Sequence[str]) -> list[str]:
        """A line on the thresholds, where validation chose some."""
        moved = {name: cut for name, cut in zip(class_names, self.cuts.tolist(), strict=True) if cut != USUAL}
        if not moved:
            return ["thresholds: 0.5 for every class; validation chose no other"]
        named = ", ".join(f"{name} {cut:.2f}" for name, cut in list(moved.items())[:_NAMED])
        more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
        return [
            f"thresholds chosen on validation: {named}{more}; 0.5 for the others. Its F1 and exact match below are told with "
            "them, and so optimistically biased"
        ]

    def describe(self, image: int, class_names: Sequence[str]) -> tuple[str, str, float]:
        """Labels, what was said, and the highest probability of one picture."""
        true, predicted = (
            ", ".join(class_names[label] for label in np.flatnonzero(row).tolist()) or NO_LABEL
            for row in (self.labels[image], self.predicted[image])
        )
        return true, predicted, float(self.probabilities[image].max())

    def summarize(self, class_names: Sequence[str]) -> dict[str, Any]:
        """All scores of the part.

        Returns:
            num_images, map, micro_f1, macro_f1 (over classes that occur or are said), exact_match, loss (mean over pictures of the
            binary cross-entropy summed over classes), labels_per_image, per_class (name → precision, recall, f1, count, ap,
            threshold), cooccurrence (pictures that have both classes; its diagonal counts each), and each registered metric.

        Raises:
            UserError: a registered metric that gives no number.
        """
        labels = np.asarray(self.labels, dtype=np.bool_)
        said = self.predicted
        hits, true, called = (each.sum(axis=0).astype(np.float64) for each in (labels & said, labels, said))
        precision, recall, f1 = _share(hits, called), _share(hits, true), _share(2 * hits, true + called)
        there = (true + called) > 0
        found = average_precisions(labels, self.probabilities)
        with_label = true > 0
        counts = labels.astype(np.int64)
        return {
            "num_images": len(labels),
            "map": float(found[with_label].mean()) if with_label.any() else 0.0,
            "micro_f1": float(_share(2 * hits.sum(), true.sum() + called.sum())),
            "macro_f1": float(f1[there].mean()) if there.any() else 0.0,
            "exact_match": float(self.right.mean()),
            "loss": float(self.losses.astype(np.float64).mean()),
            "labels_per_image": float(counts.sum(axis=1).mean()),
            "per_class": {
                name: {
                    "precision": float(precision[label]),
                    "recall": float(recall[label]),
                    "f1": float(f1[label]),
                    "count": int(true[label]),
                    "ap": float(found[label]) if with_label[label] else None,
                    "threshold": float(self.cuts[label]),
                }
                for label, name in enumerate(class_names)
            },
            "cooccurrence": cooccurrence(labels).tolist(),
            **own_scores(self),
        }

    @property
    def scores_class(self) -> type[Scores]:
        """What its scores are as an object."""
        return MultilabelScores


def _share(part: Any, whole: Any) -> Floats:
    """part / whole; 0 where there is nothing to divide by."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def average_precisions(labels: npt.NDArray[np.bool_], probabilities: Floats) -> Floats:
    """Of each class the sum over its thresholds of (recall gained there) · (precision there); equal probabilities are one threshold.

    That is scikit-learn's `average_precision_score`: nothing is interpolated.

    Args:
        labels: bool [N, C].
        probabilities: [N, C].

    Returns:
        float64 [C]; nan where no picture has the class.
    """
    found = np.full(labels.shape[1], np.nan)
    for label in range(labels.shape[1]):
        hits, called, _ = _cumulated(labels[:, label], probabilities[:, label])
        if len(hits) and hits[-1]:
            gained = np.diff(hits, prepend=0)
            found[label] = float((gained * hits / called).sum() / hits[-1])
    return found


def map_interval(
    labels: npt.NDArray[np.bool_], probabilities: Floats, *, num_resamples: int = 1000, seed: int = 0
) -> tuple[Interval, tuple[Interval | None, ...]]:
    """mAP, and the average precision of each class, where 95 of 100 resamples of the pictures have them.

    Pictures are resampled, not answers, so what stands on one picture goes together. Of many pictures and classes there are fewer
    resamples, 20 at least; of fewer than 100 the ends are 1.96 standard deviations of them away.

    Args:
        labels: bool [N, C].
        probabilities: [N, C].

    Returns:
        The interval of the mean, and one for each class; None for a class that no picture has.
    """
    num_images, num_classes = labels.shape
    num_resamples = int(np.clip(_CELLS // max(1, num_images * num_classes), 20, num_resamples))
    chance = np.random.default_rng(seed)
    values = average_precisions(labels, probabilities)
    resampled = np.empty((num_resamples, num_classes))
    at_once = max(1, _CELLS_AT_ONCE // max(1, num_images))
    for first in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - first)
        weights = chance.multinomial(num_images, np.full(num_images, 1 / num_images), size=count)
        for label in range(num_classes):
            resampled[first : first + count, label] = _weighted_precisions(
                labels[:, label], probabilities[:, label], weights
            )
    there: npt.NDArray[np.bool_] = np.asarray(labels.any(axis=0))
    if not there.any():
        return Interval(0.0, 0.0, 0.0), (None,) * num_classes
    known = np.isfinite(resampled)
    counts = known.sum(axis=1)
    means: Floats = np.where(known, resampled, 0.0).sum(axis=1)[counts > 0] / counts[counts > 0]
    of_each: list[Interval | None] = []
    for label in range(num_classes):
        own = resampled[known[:, label], label]
        of_each.append(_interval(float(values[label]), own) if there[label] else None)
    return _interval(float(values[there].mean()), means), tuple(of_each)


def _interval(value: float, resampled: Floats) -> Interval:
    if len(resampled) < 100:  # too few for the ends themselves
        half = 1.96 * float(resampled.std()) if len(resampled) else 0.0
        return Interval(value, max(0.0, value - half), min(1.0, value + half))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _weighted_precisions(labels: npt.NDArray[np.bool_], scores: Floats, weights: Ints) -> Floats:
    """Average precision of one class in each resample, float64 [R]; nan where it holds no picture with the class.

    Args:
        labels: bool [N].
        scores: [N].
        weights: how often each picture is in each resample, int64 [R, N].
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    places = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    counts = weights[:, order]
    called = counts.cumsum(axis=1)[:, places].astype(np.float64)
    hits = (counts * labels[order].astype(np.int64)).cumsum(axis=1)[:, places].astype(np.float64)
    gained = np.diff(hits, axis=1, prepend=0)
    return np.where(hits[:, -1] > 0, (gained * _share(hits, called)).sum(axis=1) / np.maximum(hits[:, -1], 1), np.nan)


def _cumulated(labels: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """At each different score, the highest first: how many with the class, and how many at all, have it or more; and the score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, dtype=np.bool_)
    places = np.flatnonzero(last)
    return labels[order].cumsum()[places].astype(np.float64), (places + 1).astype(np.float64), ordered[places]


def fit_thresholds(probabilities: Floats, labels: npt.NDArray[np.bool_]) -> Floats:
    """Of each class the threshold with the highest F1; to be fitted on pictures that trained nothing.

    A threshold fitted on few pictures tells of these pictures alone. So 0.5 stays unless, out of fold, the F1 of pictures
    that a threshold was not fitted on is higher by more than its standard error.

    Args:
        probabilities: [N, C].
        labels: bool [N, C].

    Returns:
        float64 [C], each within 0..1; 0.5 for a class that no picture has, or all have.
    """
    num_images = len(labels)
    fold_of = np.random.default_rng(0).permutation(num_images) % max(1, min(_NUM_FOLDS, num_images))
    fitted = np.full(labels.shape[1], USUAL)
    for label in range(labels.shape[1]):
        own, scores = labels[:, label], probabilities[:, label].astype(np.float64)
        if not own.any() or own.all():
            continue
        said = np.zeros(num_images, dtype=np.bool_)
        for fold in range(int(fold_of.max()) + 1):
            others = fold_of != fold
            said[~others] = scores[~others] >= _best_threshold(own[others], scores[others])
        if _is_no_chance(own, scores >= USUAL, said):
            fitted[label] = _best_threshold(own, scores)
    return fitted


def _is_no_chance(
    labels: npt.NDArray[np.bool_],
    usual: npt.NDArray[np.bool_],
    said: npt.NDArray[np.bool_],
    *,
    num_resamples: int = 500,
) -> bool:
    """Whether the F1 of `said` is above that of `usual` by more than its standard error, by resampled pictures.

    A resample of pictures is a draw from the multinomial distribution over the eight cells that they fall into.
    """
    cells = np.bincount(4 * labels + 2 * usual + said, minlength=8)
    draws = np.random.default_rng(0).multinomial(len(labels), cells / len(labels), size=num_resamples)
    with_class, by_usual, by_said = (np.array([cell >> bit & 1 for cell in range(8)]) for bit in (2, 1, 0))

    def f1(counts: Ints, says: Ints) -> Floats:
        return _share(2 * counts @ (with_class * says), counts @ with_class + counts @ says)

    gain = float(f1(cells, by_said) - f1(cells, by_usual))
    return gain > float((f1(draws, by_said) - f1(draws, by_usual)).std()) and gain > 0


def _best_threshold(labels: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Halfway between two neighbouring probabilities; of equally good ones the nearest to 0.5."""
    hits, called, values = _cumulated(labels, scores)
    if not len(hits) or not hits[-1]:
        return USUAL
    f1 = 2 * hits / (labels.sum() + called)
    cuts = (values + np.append(values[1:], 0.0)) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best[np.abs(cuts[best] - USUAL).argmin()]])


def cooccurrence(labels: npt.NDArray[np.bool_]) -> Ints:
    """Pictures that have both classes, int64 [C, C]; the diagonal counts those of each."""
    counts = labels.astype(np.float64)  # exact up to 2^53, and many times as fast as integers
    return np.asarray((counts.T @ counts).astype(np.int64))


def build_predictions(labels: npt.NDArray[Any], probabilities: Floats, losses: Floats) -> Predictions:
    """The predictions of a part, by the form of its labels: int64 [N] or bool [N, C]."""
    kind = MultilabelPredictions if labels.ndim == 2 else Predictions
    return kind(labels=labels, probabilities=probabilities, losses=losses)
