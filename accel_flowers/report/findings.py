"""Predictions → what a person wants to know: how good, how sure, which class is worst and why, what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_flowers.metrics.calibration import (
    ReliabilityBins,
    apply_temperature,
    chance_errors,
    fit_temperature,
    reliability_bins,
)
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.confusion import Ints, confusion_matrix
from accel_flowers.metrics.intervals import ClassIntervals, Interval, accuracy_interval, class_intervals
from accel_flowers.metrics.predictions import PartPredictions, SavedPredictions

SURE = 0.9
"""From this confidence on an answer counts as sure in the sentence about calibration."""


@dataclass(frozen=True)
class Answer:
    """What the model said of one image: class names with probabilities; `margin` is to the runner-up."""

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

    @property
    def right(self) -> bool:
        """Whether it agrees with the folder."""
        return self.label == self.predicted


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
    """Whether the probabilities of a part are true, as they are and with the temperature.

    Attributes:
        raw, tempered: bins before and after; `tempered` is None without a temperature.
        temperature: fitted on validation; None where that was not possible.
        by_chance: calibration error that 95 of 100 perfect models stay below on so many images.
        confidence, accuracy: means over all images.
        gap_by_chance: distance between the two that 95 of 100 perfect models stay below.
        sure, sure_right, sure_expected: answers of at least `SURE`, how many were right, and how many should have been.
    """

    raw: ReliabilityBins
    tempered: ReliabilityBins | None
    temperature: float | None
    by_chance: float
    confidence: float
    accuracy: float
    gap_by_chance: float
    sure: int
    sure_right: int
    sure_expected: float

    @property
    def trustworthy(self) -> bool:
        """Whether neither the error nor the gap of the means is larger than chance alone would make it.

        Bins of few images hide a small gap that all of them have.
        """
        return self.raw.error <= self.by_chance and abs(self.accuracy - self.confidence) <= self.gap_by_chance


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

    @property
    def worst(self) -> ClassFindings:
        """The class with the lowest F1; classes without an image here do not count."""
        return min((each for each in self.classes if each.num_images), key=lambda each: each.f1.value)


def find_part(predictions: SavedPredictions, part: str, *, temperature: float | None) -> PartFindings:
    """Score one part, with intervals.

    Args:
        predictions: what was said.
        part: "val" or "test".
        temperature: fitted on validation.
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
        calibration=_find_calibration(rows, temperature),
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


def _find_calibration(rows: PartPredictions, temperature: float | None) -> Calibration:
    confidence = rows.probabilities.astype(np.float64).max(axis=1)
    right = rows.predicted == rows.labels
    sure = confidence >= SURE
    tempered = None
    if temperature is not None:
        tempered = reliability_bins(apply_temperature(rows.probabilities, temperature), rows.labels)
    return Calibration(
        raw=reliability_bins(rows.probabilities, rows.labels),
        tempered=tempered,
        temperature=temperature,
        by_chance=float(np.percentile(chance_errors(rows.probabilities), 95)),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
        gap_by_chance=1.96 * float(np.sqrt((confidence * (1 - confidence)).sum())) / len(confidence),
        sure=int(sure.sum()),
        sure_right=int((sure & right).sum()),
        sure_expected=float(confidence[sure].sum()),
    )


def find_temperature(predictions: SavedPredictions, recorded: float | None) -> float | None:
    """The model's own, or fitted now from its validation images."""
    if recorded is not None or "val" not in predictions.parts:
        return recorded
    return fit_temperature(predictions.parts["val"].probabilities, predictions.parts["val"].labels)


def answers(predictions: SavedPredictions, part: str) -> list[Answer]:
    """What was said of each image of a part, in its order."""
    names, rows = predictions.class_names, predictions.parts[part]
    order = np.argsort(-rows.probabilities, axis=1, kind="stable")
    return [
        Answer(
            part=part,
            file=file,
            label=names[rows.labels[place]],
            predicted=names[order[place, 0]],
            predicted_index=int(order[place, 0]),
            probability=float(rows.probabilities[place, order[place, 0]]),
            p_label=float(rows.probabilities[place, rows.labels[place]]),
            runner_up=names[order[place, 1]],
            p_runner_up=float(rows.probabilities[place, order[place, 1]]),
            loss=float(rows.losses[place]),
        )
        for place, file in enumerate(rows.files)
    ]


def worst_mistakes(found: list[Answer], count: int) -> list[Answer]:
    """Wrong answers, those first that gave the true class the least."""
    return sorted((each for each in found if not each.right), key=lambda each: (-each.loss, each.file))[:count]


def least_confident(found: list[Answer], count: int) -> list[Answer]:
    """Answers whose first choice is hardly ahead of the second, right or wrong."""
    return sorted(found, key=lambda each: (each.probability - each.p_runner_up, each.file))[:count]
