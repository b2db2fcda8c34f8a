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
from accel_flowers.metrics.average_precision import average_precisions
from accel_flowers.metrics.classification import ClassScores, Predictions, Scores, own_scores
from accel_flowers.metrics.confusion import Floats, Ints, shares
from accel_flowers.metrics.thresholds import USUAL, fit_thresholds

NO_LABEL = "(no label)"
"""What pages and tables call a picture without any."""
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
        precision, recall, f1 = shares(hits, called), shares(hits, true), shares(2 * hits, true + called)
        there = (true + called) > 0
        found = average_precisions(labels, self.probabilities)
        with_label = true > 0
        counts = labels.astype(np.int64)
        return {
            "num_images": len(labels),
            "map": float(found[with_label].mean()) if with_label.any() else 0.0,
            "micro_f1": float(shares(2 * hits.sum(), true.sum() + called.sum())),
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


def cooccurrence(labels: npt.NDArray[np.bool_]) -> Ints:
    """Pictures that have both classes, int64 [C, C]; the diagonal counts those of each."""
    counts = labels.astype(np.float64)  # exact up to 2^53, and many times as fast as integers
    return np.asarray((counts.T @ counts).astype(np.int64))


def build_predictions(labels: npt.NDArray[Any], probabilities: Floats, losses: Floats) -> Predictions:
    """The predictions of a part, by the form of its labels: int64 [N] or bool [N, C]."""
    kind = MultilabelPredictions if labels.ndim == 2 else Predictions
    return kind(labels=labels, probabilities=probabilities, losses=losses)
