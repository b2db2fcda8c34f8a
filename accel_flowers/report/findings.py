"""Predictions → what a person wants to know: how good, how sure, which class is worst and why, what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_flowers.metrics.calibration import (
    ReliabilityBins,
    apply_out_of_fold,
    apply_temperature,
    chance_errors,
    negative_log_likelihood,
    reliability_bins,
)
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.confusion import Floats, Ints, confusion_matrix
from accel_flowers.metrics.intervals import ClassIntervals, Interval, accuracy_interval, class_intervals
from accel_flowers.metrics.predictions import OUT_OF_FOLD, PartPredictions, SavedPredictions

SURE = 0.9
"""From this confidence on an answer counts as sure in the sentence about calibration."""
ENOUGH = 0.05
"""Where chance alone moves how often a perfect model is right by more than these 5 points, the images are too few to call
probabilities true: a model that is 5 points too sure would look the same."""


@dataclass(frozen=True)
class Answer:
    """What the model said of one image: class names with probabilities."""

    part: str
    file: str
    label: str
    predicted: str
    predicted_index: int
    probability: float
    p_label: float
    runner_up: str
    p_runner_up: float
    loss: float
    exact: bool | None = None
    """Where an image may have several labels, whether all are said and no other; `label` and `predicted` are then words for people."""

    @property
    def margin(self) -> float:
        """How far the first choice is ahead of the second."""
        return self.probability - self.p_runner_up

    @property
    def right(self) -> bool:
        """Whether it agrees with the folder."""
        return self.label == self.predicted if self.exact is None else self.exact


@dataclass(frozen=True)
class ClassFindings:
    """One class: scores with intervals, and what it is confused with (class, images), most often first."""

    name: str
    num_images: int
    hits: int
    num_predicted: int
    precision: Interval
    recall: Interval
    f1: Interval
    lowest_f1: float
    taken_for: tuple[tuple[str, int], ...]
    mistaken: tuple[tuple[str, int], ...]
    """Other classes' images that were taken for this one."""

    @property
    def missed(self) -> int:
        """Images of this class that were taken for another."""
        return self.num_images - self.hits


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities of a part are true as `predict` serves them: with the model's temperature, where it has one.

    Attributes:
        served: bins of what is served; on validation, where the temperature was fitted, each image with that of the others.
        raw: bins of the network's own; None without a temperature, where these are served.
        temperature: of the model; None = none.
        by_chance: calibration error that 95 of 100 perfect models stay below on so many images.
        confidence, accuracy: means over all images.
        raw_confidence: mean of the network's own.
        loss, raw_loss: mean of -log p(true class) in nats, as served and of the network.
        gap_by_chance: distance between the two that 95 of 100 perfect models stay below.
        sure, sure_right, sure_expected: answers of at least `SURE`, how many were right, and how many should have been.
    """

    served: ReliabilityBins
    raw: ReliabilityBins | None
    temperature: float | None
    by_chance: float
    confidence: float
    raw_confidence: float
    accuracy: float
    loss: float
    raw_loss: float
    gap_by_chance: float
    sure: int
    sure_right: int
    sure_expected: float

    @property
    def trustworthy(self) -> bool:
        """Whether neither the error nor the gap of the means is larger than chance alone would make it.

        Bins of few images hide a small gap that all of them have.
        """
        # Few images can have few errors, of which one is often the limit itself, but for its last digit.
        within = self.served.error <= self.by_chance + 1e-9
        return within and abs(self.accuracy - self.confidence) <= self.gap_by_chance

    @property
    def enough(self) -> bool:
        """Whether there are images enough to tell."""
        return self.gap_by_chance <= ENOUGH


@dataclass(frozen=True)
class Baseline:
    """What no look at the images gets right.

    Attributes:
        share: of the images, by saying always the class that has the most of them.
        classes: that class; several where they have equally many.
        chance: one in so many classes.
        said: the class that the model says most often, and how often.
    """

    share: float
    classes: tuple[str, ...]
    chance: float
    said: tuple[str, int]


@dataclass(frozen=True)
class PartFindings:
    """The scores of one part."""

    part: str
    num_images: int
    right: int
    accuracy: Interval
    loss: float
    macro_f1: float
    matrix: Ints
    classes: tuple[ClassFindings, ...]
    calibration: Calibration
    baseline: Baseline
    learnt: bool
    """Whether the images are those that trained the network."""

    @property
    def worst(self) -> ClassFindings:
        """The class with the lowest F1, of several the first; classes without an image here do not count."""
        return self.all_worst[0]

    @property
    def all_worst(self) -> tuple[ClassFindings, ...]:
        """All classes with the lowest F1."""
        there = [each for each in self.classes if each.num_images]
        lowest = min(each.f1.value for each in there)
        return tuple(each for each in there if each.f1.value == lowest)

    @property
    def beats_baseline(self) -> bool:
        """Whether it is surely better than always saying one class: below that nothing it says of images means anything."""
        return self.accuracy.low > self.baseline.share


def find_part(
    predictions: SavedPredictions, part: str, *, temperature: float | None, learnt: bool = False
) -> PartFindings:
    """Score one part, with intervals.

    Args:
        predictions: what was said.
        part: "val" or "test".
        temperature: of the model, which was fitted on validation; None = none.
        learnt: whether the images are those that trained it.
    """
    names = predictions.class_names
    rows = predictions.parts[part]
    scores = summarize(rows, names)
    matrix = confusion_matrix(rows.labels, rows.predicted, len(names))
    right = int(np.trace(matrix))
    return PartFindings(
        part=part,
        num_images=len(rows.labels),
        right=right,
        accuracy=accuracy_interval(right, len(rows.labels)),
        loss=scores["loss"],
        macro_f1=scores["macro_f1"],
        matrix=matrix,
        classes=_find_classes(matrix, names, class_intervals(matrix)),
        calibration=_find_calibration(rows, _judged(rows, part, temperature), temperature),
        baseline=_find_baseline(matrix, names),
        learnt=learnt,
    )


def serve(rows: PartPredictions, temperature: float | None) -> Floats:
    """The probabilities that `predict` gives, [N, C]."""
    return rows.probabilities if temperature is None else apply_temperature(rows.probabilities, temperature)


def _judged(rows: PartPredictions, part: str, temperature: float | None) -> Floats:
    """What is served, but on the images that the temperature was fitted on with that of others."""
    if temperature is not None and part in ("val", OUT_OF_FOLD):
        return apply_out_of_fold(rows.probabilities, rows.labels)
    return serve(rows, temperature)


def _find_baseline(matrix: Ints, names: tuple[str, ...]) -> Baseline:
    totals, said = matrix.sum(axis=1), matrix.sum(axis=0)
    return Baseline(
        share=float(totals.max() / totals.sum()),
        classes=tuple(name for name, total in zip(names, totals, strict=True) if total == totals.max()),
        chance=1 / len(names),
        said=(names[int(said.argmax())], int(said.max())),
    )


def _find_classes(matrix: Ints, names: tuple[str, ...], intervals: ClassIntervals) -> tuple[ClassFindings, ...]:
    def others(counts: Ints, own: int) -> tuple[tuple[str, int], ...]:
        found = [(names[label], int(count)) for label, count in enumerate(counts) if label != own and count]
        return tuple(sorted(found, key=lambda pair: (-pair[1], pair[0])))

    return tuple(
        ClassFindings(
            name=name,
            num_images=int(matrix[label].sum()),
            hits=int(matrix[label, label]),
            num_predicted=int(matrix[:, label].sum()),
            precision=intervals.precision[label],
            recall=intervals.recall[label],
            f1=intervals.f1[label],
            lowest_f1=float(intervals.lowest_f1[label]),
            taken_for=others(matrix[label], label),
            mistaken=others(matrix[:, label], label),
        )
        for label, name in enumerate(names)
    )


def _find_calibration(rows: PartPredictions, judged: Floats, temperature: float | None) -> Calibration:
    confidence = np.asarray(judged, dtype=np.float64).max(axis=1)
    own = rows.probabilities.astype(np.float64)
    right = rows.predicted == rows.labels
    sure = confidence >= SURE
    return Calibration(
        served=reliability_bins(judged, rows.labels),
        raw=None if temperature is None else reliability_bins(own, rows.labels),
        temperature=temperature,
        by_chance=float(np.percentile(chance_errors(judged), 95)),
        confidence=float(confidence.mean()),
        raw_confidence=float(own.max(axis=1).mean()),
        accuracy=float(right.mean()),
        loss=negative_log_likelihood(judged, rows.labels),
        raw_loss=negative_log_likelihood(own, rows.labels),
        gap_by_chance=1.96 * float(np.sqrt((confidence * (1 - confidence)).sum())) / len(confidence),
        sure=int(sure.sum()),
        sure_right=int((sure & right).sum()),
        sure_expected=float(confidence[sure].sum()),
    )


def answers(predictions: SavedPredictions, part: str, *, temperature: float | None = None) -> list[Answer]:
    """What was said of each image of a part, in its order.

    Args:
        predictions: of the network.
        part: "val" or "test".
        temperature: of the model; None = the network's own probabilities and losses.
    """
    names, rows = predictions.class_names, predictions.parts[part]
    if predictions.several_labels:
        return [_answer_of_set(predictions, part, place) for place in range(len(rows.labels))]
    probabilities = serve(rows, temperature)
    order = np.argsort(-rows.probabilities, axis=1, kind="stable")
    own = probabilities[np.arange(len(rows.labels)), rows.labels]
    losses = rows.losses if temperature is None else -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return [
        Answer(
            part=part,
            file=file,
            label=names[rows.labels[place]],
            predicted=names[order[place, 0]],
            predicted_index=int(order[place, 0]),
            probability=float(probabilities[place, order[place, 0]]),
            p_label=float(own[place]),
            runner_up=names[order[place, 1]],
            p_runner_up=float(probabilities[place, order[place, 1]]),
            loss=float(losses[place]),
        )
        for place, file in enumerate(rows.files)
    ]


def _answer_of_set(predictions: SavedPredictions, part: str, place: int) -> Answer:
    """Of an image with several labels: all of them, and all that are said, in words; right where these are the same."""
    rows = predictions.parts[part]
    label, predicted, probability = rows.describe(place, predictions.class_names)
    first, second = np.argsort(-rows.probabilities[place], kind="stable")[:2].tolist()
    own = rows.probabilities[place][rows.labels[place]]
    return Answer(
        part=part,
        file=rows.files[place],
        label=label,
        predicted=predicted,
        predicted_index=first,
        probability=probability,
        p_label=float(own.min()) if len(own) else 1.0,
        runner_up=predictions.class_names[second],
        p_runner_up=float(rows.probabilities[place, second]),
        loss=float(rows.losses[place]),
        exact=bool(rows.right[place]),
    )


def worst_mistakes(found: list[Answer], count: int) -> list[Answer]:
    """Wrong answers, those first that gave the true class the least."""
    return sorted((each for each in found if not each.right), key=lambda each: (-each.loss, each.file))[:count]


def least_confident(found: list[Answer], count: int) -> list[Answer]:
    """Answers whose first choice is least ahead of the second, right or wrong; the closest first."""
    return sorted(found, key=lambda each: (each.margin, each.file))[:count]
