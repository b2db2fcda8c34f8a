"""What happened to each image → scores. NumPy and an `evaluate` module of our own; no torch, no processes.

Scores are computed once from the gathered images, so they are exact on any number of processes; so is a metric of the
user's own, which is a function of the same `Predictions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import in_sentence
from accel_flowers.metrics.calibration import fit_temperature
from accel_flowers.metrics.confusion import Floats, precision_recall_f1


@dataclass(frozen=True)
class Predictions:
    """What a model said of each image of a part, in the part's order.

    Images with several labels each have the subclass `MultilabelPredictions`: what differs between the two is a method here.

    Attributes:
        labels: int64 [N].
        probabilities: float32 [N, C].
        losses: cross-entropy of each image, float32 [N].
    """

    labels: npt.NDArray[Any]
    probabilities: Floats
    losses: Floats

    @property
    def predicted(self) -> npt.NDArray[Any]:
        """Most probable class of each image, int64 [N]."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the answer is right, bool [N]."""
        return np.asarray(self.predicted == self.labels)

    @property
    def loss_of_a_guess(self) -> float:
        """Mean loss where nothing is known of the images, in nats."""
        return math.log(self.probabilities.shape[1])

    def of_images(self, chosen: npt.NDArray[np.bool_]) -> Predictions:
        """Those of some images alone.

        Args:
            chosen: bool [N].
        """
        return Predictions(self.labels[chosen], self.probabilities[chosen], self.losses[chosen])

    def with_thresholds(self, thresholds: Sequence[float] | None) -> Predictions:
        """The same: the most probable class needs no threshold."""
        assert thresholds is None
        return self

    def fit(self) -> dict[str, Any]:
        """What a model serves its answers with, fitted on these images: "temperature", or None where they do not tell."""
        return {"temperature": fit_temperature(self.probabilities, self.labels)}

    def describe_fit(self, class_names: Sequence[str]) -> list[str]:
        """Lines for people on what was fitted, where these images are read with it."""
        del class_names
        return []

    def describe(self, image: int, class_names: Sequence[str]) -> tuple[str, str, float]:
        """Class, predicted class and its probability of one image."""
        predicted = int(self.predicted[image])
        return (
            class_names[int(self.labels[image])],
            class_names[predicted],
            float(self.probabilities[image, predicted]),
        )

    def summarize(self, class_names: Sequence[str]) -> dict[str, Any]:
        """All scores of a part.

        Returns:
            num_images, accuracy, loss (mean cross-entropy), macro_f1, per_class (name → precision, recall, f1, count),
            confusion_matrix (rows: true class), and each registered metric by its name; ready for JSON.

        Raises:
            UserError: a registered metric that gives no number.
        """
        from accel_flowers.metrics.label_metrics import LabelScores  # a second of import

        labels, predicted = self.labels, self.predicted
        num_classes = len(class_names)
        scores: dict[str, Any] = {"num_images": len(labels)}
        scores |= LabelScores(num_classes).compute(predictions=predicted, references=labels)
        precision, recall, f1 = precision_recall_f1(np.asarray(scores["confusion_matrix"]))
        counts = np.bincount(labels, minlength=num_classes)
        scores["loss"] = float(self.losses.astype(np.float64).mean())
        scores["per_class"] = {
            name: {
                "precision": float(precision[label]),
                "recall": float(recall[label]),
                "f1": float(f1[label]),
                "count": int(counts[label]),
            }
            for label, name in enumerate(class_names)
        }
        return scores | own_scores(self)

    @property
    def scores_class(self) -> type[Scores]:
        """What its scores are as an object."""
        return Scores


@dataclass(frozen=True)
class ClassScores:
    """Of one class."""

    precision: float
    recall: float
    f1: float
    count: int
    """Images of the class."""

    def as_columns(self) -> str:
        """Under `Scores.columns`, for a terminal."""
        return f"{self.precision:9.4f}  {self.recall:6.4f}  {self.f1:6.4f}  {self.count:8d}"


@dataclass(frozen=True)
class Seen:
    """How many of the images that were scored the model knows from its training.

    Attributes:
        train: images that trained it.
        val: images by which its epoch and its temperature were chosen.
        others: scores of all others; None where there is no other, or all are.
    """

    train: int
    val: int
    others: Scores | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"train": self.train, "val": self.val, "others": self.others.as_json() if self.others else None}


@dataclass(frozen=True)
class Scores:
    """Scores of a part."""

    part: str
    """"train", "val" or "test"; "all" where there are no parts."""
    num_images: int
    accuracy: float
    loss: float
    """Mean cross-entropy in nats."""
    macro_f1: float
    """Mean F1 over the classes that occur or are predicted."""
    per_class: Mapping[str, ClassScores]
    """By the class's name."""
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Counts; rows: true class, columns: predicted class, in the order of `per_class`."""
    own: Mapping[str, float]
    """Of the registered metrics, by their names ("my/kappa")."""
    seen: Seen | None = field(default=None, compare=False)  # the same scores, whatever is known of the images
    """What of the images the model knows; None where its folder does not record it, and for the scores of a run."""

    @classmethod
    def of(cls, part: str, predictions: Predictions, class_names: Sequence[str]) -> Scores:
        """Compute them.

        Args:
            part: what to call it.
            predictions: of its images.
            class_names: class of each label.

        Raises:
            UserError: a registered metric that gives no number.
        """
        return predictions.scores_class.from_summary(part, summarize(predictions, class_names))

    @classmethod
    def from_summary(cls, part: str, scores: Mapping[str, Any]) -> Scores:
        """What `summarize` returned, as an object."""
        return cls(
            part=part,
            num_images=scores["num_images"],
            accuracy=scores["accuracy"],
            loss=scores["loss"],
            macro_f1=scores["macro_f1"],
            per_class={name: ClassScores(**values) for name, values in scores["per_class"].items()},
            confusion_matrix=tuple(map(tuple, scores["confusion_matrix"])),
            own={name: scores[name] for name in registry.registered("metric")},
        )

    def columns(self) -> str:
        """Heading of the classes' scores, for a terminal."""
        return "precision  recall      F1  pictures"

    def baseline_in_words(self) -> str:
        """What the accuracy is to be held against: an answer that looks at no image."""
        largest = max(each.count for each in self.per_class.values())
        names = [name for name, each in self.per_class.items() if each.count == largest]
        always = in_sentence(names[0]) if len(names) == 1 else f"one of the {len(names)} largest classes"
        return f"always {always} would get {largest / self.num_images:.4f} of them right, guessing {1 / len(self.per_class):.4f}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON: "part", what `summarize` returns and, where it is known, "seen"."""
        return {
            "part": self.part,
            "num_images": self.num_images,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
            "loss": self.loss,
            "per_class": {name: asdict(values) for name, values in self.per_class.items()},
            **self.own,
            **({"seen": self.seen.as_json()} if self.seen else {}),
        }


def summarize(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """All scores of a part, ready for JSON; see `Predictions.summarize`."""
    return predictions.summarize(class_names)


HEADLINE = {
    "accuracy": "accuracy",
    "map": "mAP",
    "loss": "loss",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
}
"""Scores that are single numbers, in their order, with what people call them; a part has those of its kind."""


def in_short(scores: Mapping[str, Any], *, joint: str = ", ") -> str:
    """The scores that are single numbers, in words."""
    return joint.join(f"{words} {scores[name]:.4f}" for name, words in HEADLINE.items() if name in scores)


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """The scores that are single numbers, for curves and comparisons."""
    own = [name for name in scores if registry.is_own_name(name)]
    return {name: scores[name] for name in (*HEADLINE, *own) if name in scores}


def lower_is_better(name: str) -> bool:
    """Whether a metric falls when a model becomes better."""
    part = registry.find("metric", name)
    return name == "loss" if part is None else bool(part.options.get("lower_is_better", False))


def own_scores(predictions: Predictions) -> dict[str, float]:
    """Each registered metric by its name.

    Raises:
        UserError: one that gives no number.
    """
    return {name: _own_score(name, predictions) for name in registry.registered("metric")}


def _own_score(name: str, predictions: Predictions) -> float:
    part = registry.find("metric", name)
    assert part is not None
    score = part.make(predictions)
    try:
        return float(score)
    except (TypeError, ValueError):
        raise UserError(
            f"The metric '{name}' gave {str(score)[:100]!r}, a {type(score).__name__}: a metric is a function of Predictions "
            "that returns a number."
        ) from None
