"""Pictures with several labels: predictions → what a person wants to know of them. Findings alone; the page is `draw_sets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from accel_flowers.metrics.average_precision import map_interval
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.confusion import Ints
from accel_flowers.metrics.intervals import Interval, accuracy_interval
from accel_flowers.metrics.predictions import MultilabelPartPredictions, SavedPredictions


@dataclass(frozen=True)
class SetClass:
    """One class.

    Attributes:
        ap: average precision; None where no picture has the class.
        precision, recall, f1: of what is said from `threshold` on.
        num_images: pictures with it.
        missed, extra: pictures with it of which it is not said, and without it of which it is.
    """

    name: str
    num_images: int
    ap: Interval | None
    precision: float
    recall: float
    f1: float
    threshold: float
    missed: int
    extra: int


@dataclass(frozen=True)
class SetFindings:
    """The scores of one part.

    Attributes:
        exact: share of the pictures of which all labels are right and none is too many.
        map: mean average precision.
        baseline: mAP of an answer that looks at no picture: the mean share of pictures with a class.
        labels_per_image, said_per_image: mean number of labels, and of classes that are said.
        pairs: pictures that have both classes, int64 [C, C].
        learnt: whether the pictures are those that trained the network.
    """

    part: str
    num_images: int
    right: int
    exact: Interval
    map: Interval
    baseline: float
    micro_f1: float
    macro_f1: float
    loss: float
    labels_per_image: float
    said_per_image: float
    classes: tuple[SetClass, ...]
    pairs: Ints
    learnt: bool

    @property
    def beats_baseline(self) -> bool:
        """Whether it is surely better than an answer that looks at no picture."""
        return self.map.low > self.baseline

    @property
    def worst(self) -> SetClass:
        """The class with the lowest average precision, of several the first; one that no picture has does not count."""
        return min((each for each in self.classes if each.ap), key=lambda each: each.ap.value if each.ap else 1.0)


@dataclass(frozen=True)
class SetMistake:
    """One class of one picture that was told wrongly.

    Attributes:
        part, file: of the picture.
        name, label: the class, and its number.
        probability, threshold: of the class.
        missing: whether the picture has it and it was not said; else it was said and the picture has it not.
        labels: all labels of the picture.
        said: all classes that were said of it.
    """

    part: str
    file: str
    name: str
    label: int
    probability: float
    threshold: float
    missing: bool
    labels: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def odds(self) -> float:
        """How far from its threshold the probability is, as a share of the way that there is on that side, 0..1."""
        way = self.threshold if self.missing else 1 - self.threshold
        return abs(self.probability - self.threshold) / way if way > 0 else 0.0


def find_sets(predictions: SavedPredictions, part: str, *, learnt: bool = False) -> SetFindings:
    """Score one part, with intervals.

    Args:
        predictions: what was said.
        part: "val" or "test".
        learnt: whether its pictures are those that trained the network.
    """
    names, rows = predictions.class_names, rows_of(predictions, part)
    scores = summarize(rows, names)
    mean, of_each = map_interval(rows.labels, rows.probabilities)
    wrong = rows.predicted != rows.labels
    there = rows.labels.any(axis=0)
    right = int(rows.right.sum())
    return SetFindings(
        part=part,
        num_images=len(rows.labels),
        right=right,
        exact=accuracy_interval(right, len(rows.labels)),
        map=mean,
        baseline=float(rows.labels[:, there].mean()) if there.any() else 0.0,
        micro_f1=scores["micro_f1"],
        macro_f1=scores["macro_f1"],
        loss=scores["loss"],
        labels_per_image=scores["labels_per_image"],
        said_per_image=float(rows.predicted.sum(axis=1).mean()),
        classes=tuple(
            SetClass(
                name=name,
                num_images=row["count"],
                ap=of_each[label],
                precision=row["precision"],
                recall=row["recall"],
                f1=row["f1"],
                threshold=row["threshold"],
                missed=int((wrong[:, label] & rows.labels[:, label]).sum()),
                extra=int((wrong[:, label] & ~rows.labels[:, label]).sum()),
            )
            for label, (name, row) in enumerate(scores["per_class"].items())
        ),
        pairs=np.asarray(scores["cooccurrence"], dtype=np.int64),
        learnt=learnt,
    )


def rows_of(predictions: SavedPredictions, part: str) -> MultilabelPartPredictions:
    """The predictions of a part whose pictures may have several labels."""
    rows = predictions.parts[part]
    assert isinstance(rows, MultilabelPartPredictions)
    return rows


def find_mistakes(predictions: SavedPredictions, part: str) -> list[SetMistake]:
    """Every class that was told wrongly of a picture, those first whose probability is farthest from its threshold."""
    rows = rows_of(predictions, part)
    wrong = zip(*(places.tolist() for places in np.nonzero(rows.predicted != rows.labels)), strict=True)
    found = [_mistake(predictions, part, row, label) for row, label in wrong]
    return sorted(found, key=lambda each: (-each.odds, each.file, each.label))


def _mistake(predictions: SavedPredictions, part: str, row: int, label: int) -> SetMistake:
    rows, names = rows_of(predictions, part), predictions.class_names

    def named(chosen: Sequence[int]) -> tuple[str, ...]:
        return tuple(names[each] for each in chosen)

    return SetMistake(
        part=part,
        file=rows.files[row],
        name=names[label],
        label=label,
        probability=float(rows.probabilities[row, label]),
        threshold=float(rows.cuts[label]),
        missing=bool(rows.labels[row, label]),
        labels=named(np.flatnonzero(rows.labels[row]).tolist()),
        said=named(np.flatnonzero(rows.predicted[row]).tolist()),
    )


def find_doubtful_labels(predictions: SavedPredictions) -> list[SetMistake]:
    """Labels that look wrong, missing ones and ones too many, the most doubtful first.

    Confident learning (Northcutt et al. 2021) as cleanlab does it, for each class by itself: a picture is named where the model is as
    sure of the other answer as it is, on average, of the pictures that have that answer as their label.
    """
    return sorted(_doubtful(predictions), key=lambda each: (-each.odds, each.file, each.label))


def _doubtful(predictions: SavedPredictions) -> Iterator[SetMistake]:
    from cleanlab.filter import find_label_issues  # seconds of import

    where = [(part, row) for part, rows in predictions.parts.items() for row in range(len(rows.labels))]
    labels = np.concatenate([rows.labels for rows in predictions.parts.values()])
    probabilities = np.concatenate([rows.probabilities for rows in predictions.parts.values()]).astype(np.float64)
    for label in range(len(predictions.class_names)):
        own, yes = labels[:, label].astype(np.int64), probabilities[:, label]
        if len(np.unique(own)) < 2:
            continue
        found = find_label_issues(
            own,
            np.stack([1 - yes, yes], axis=1),
            filter_by="confident_learning",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        for index in found:
            part, row = where[int(index)]
            mistake = _mistake(predictions, part, row, label)
            if mistake.missing == (mistake.name not in mistake.said):  # what is said agrees with the label: no doubt
                yield mistake


def most_together(findings: SetFindings, count: int = 12) -> list[tuple[str, str, int, float]]:
    """Classes that come together: (class, another, pictures that have both, share of the rarer one's), the most frequent first."""
    names = [each.name for each in findings.classes]
    rows, columns = np.nonzero(np.triu(findings.pairs, k=1))
    order = np.argsort(-findings.pairs[rows, columns], kind="stable")[:count]
    of_each = np.diagonal(findings.pairs)
    return [
        (
            names[row],
            names[column],
            int(findings.pairs[row, column]),
            float(findings.pairs[row, column] / max(1, min(of_each[row], of_each[column]))),
        )
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    ]
