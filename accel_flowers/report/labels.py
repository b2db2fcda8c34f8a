"""Which held-out images look mislabelled: confident learning (Northcutt et al. 2021) as cleanlab does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_flowers.metrics.confusion import Floats
from accel_flowers.metrics.predictions import SavedPredictions
from accel_flowers.report.findings import serve


@dataclass(frozen=True)
class LabelCandidate:
    """An image whose label the model doubts.

    Attributes:
        part, file: where it stands.
        given: the class of its folder.
        suggested: the class that the model sees.
        p_given, p_suggested: their probabilities.
    """

    part: str
    file: str
    given: str
    suggested: str
    p_given: float
    p_suggested: float


def find_label_candidates(predictions: SavedPredictions, *, temperature: float | None = None) -> list[LabelCandidate]:
    """Images whose label is probably wrong, the most doubtful first; judged by the probabilities that `predict` serves.

    An image counts as another class's when the model is at least as sure of that class as it is, on average, of the images that
    carry its label; so a model that is never very sure needs less of it. That tells how many labels of each class are wrong, and of
    each class so many are named, those that the model believes least ("prune by class"): of thirty labels flipped among 1,425 it
    named 26 where naming the counted ones themselves named 21 (benchmarks/label_errors.py). Only held-out images can be judged: those
    of the training part were learnt with their labels.
    """
    from cleanlab.filter import find_label_issues  # seconds of import

    names = predictions.class_names
    rows = [(part, rows, place) for part, rows in predictions.parts.items() for place in range(len(rows.labels))]
    labels = np.concatenate([rows.labels for rows in predictions.parts.values()])
    probabilities: Floats = np.concatenate([serve(rows, temperature) for rows in predictions.parts.values()]).astype(
        float
    )
    if len(np.unique(labels)) < 2:
        return []
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = find_label_issues(
        labels, probabilities, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    candidates = []
    for index in found:
        part, its_rows, place = rows[int(index)]
        given, suggested = int(labels[index]), int(probabilities[index].argmax())
        if given != suggested:
            candidates.append(
                LabelCandidate(
                    part=part,
                    file=its_rows.files[place],
                    given=names[given],
                    suggested=names[suggested],
                    p_given=float(probabilities[index, given]),
                    p_suggested=float(probabilities[index, suggested]),
                )
            )
    return candidates
