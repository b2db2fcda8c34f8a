"""What the runs of a study say together: mean and spread; of folds, what was said of every image by a run that never saw it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.intervals import Interval
from accel_flowers.metrics.predictions import (
    OUT_OF_FOLD,
    PREDICTIONS_FILE,
    PartPredictions,
    SavedPredictions,
    load_predictions,
    save_predictions,
)
from accel_flowers.models.saved import load_spec
from accel_flowers.report.findings import PartFindings, find_part, serve
from accel_flowers.report.labels import LabelCandidate, find_label_candidates
from accel_flowers.report.text import label_candidates
from accel_flowers.study.members import Member, Study
from accel_flowers.tracking.run_dir import MODEL_DIR


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    best_epoch: int
    val: float
    """Accuracy of the best epoch on its validation part: chosen by it, so it flatters."""
    test: float | None
    """Accuracy on its test part, scored once; None where there is none."""

    @property
    def score(self) -> float:
        """What counts: test, or validation where there is no test part."""
        return self.val if self.test is None else self.test


_FEWEST_SEEDS = 3
"""Of fewer runs the interval of their mean is as wide as the scale."""


@dataclass(frozen=True)
class Summary:
    """All runs."""

    kind: Literal["seeds", "folds"]
    part: Literal["test", "val"]
    """What the scores are of."""
    rows: tuple[Row, ...]
    mean: float
    """Accuracy."""
    spread: float
    """Standard deviation over the runs."""
    interval: Interval
    """Of the mean. Seeds: Student's t over the runs, which says how much chance in training moves it, not how few the images are.
    Folds: exact binomial over all images, which are scored once each."""
    findings: PartFindings | None
    """Of all images out of fold; None for seeds."""
    candidates: tuple[LabelCandidate, ...]
    """Images whose label looks wrong, the most doubtful first; of seeds none, for their runs score some images only."""
    model: str
    """What became the study's own model, in words; empty where nothing did."""

    def in_words(self) -> str:
        """A table and what follows from it."""
        lines = [f"{'run':<12}{'val':>8}{'test':>8}  best epoch"]
        lines += [f"{row.name:<12}{_percent(row.val):>8}{_percent(row.test):>8}  {row.best_epoch}" for row in self.rows]
        lines.append(
            f"{self.part} accuracy: mean {100 * self.mean:.1f} %, standard deviation {100 * self.spread:.1f} points; "
            f"probably between {100 * max(0, self.interval.low):.1f} and {100 * min(1, self.interval.high):.1f} % ({self._of_what()})"
        )
        if self.findings:
            lines.append(
                f"each was scored by a run that never saw it: {100 * self.findings.accuracy.value:.1f} % of "
                f"{number_of(self.findings.num_images, 'picture')}. {self.labels_in_words()[0]}."
            )
        return "\n".join([*lines, *([self.model] if self.model else [])])

    def labels_in_words(self) -> tuple[str, str]:
        """How many labels look wrong, and how far to believe it; empty for seeds."""
        if self.findings is None:
            return "", ""
        headline, belief, _ = label_candidates(
            self.candidates, {OUT_OF_FOLD: self.findings.num_images}, 0, self.findings
        )
        return headline, belief

    def _of_what(self) -> str:
        if self.kind == "folds":
            return "as many pictures as these say no more"
        few = ", which say next to nothing: take --seeds 5" if len(self.rows) < _FEWEST_SEEDS else ""
        return f"what other seeds would give; {len(self.rows)} were tried{few}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "part": self.part,
            "runs": [vars(row) for row in self.rows],
            "accuracy": {"mean": self.mean, "standard_deviation": self.spread, **_ends(self.interval)},
            "num_images": self.findings.num_images if self.findings else None,
            "label_candidates": [vars(each) for each in self.candidates],
        }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ends(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}


def summarise(run_dir: Path, study: Study) -> Summary:
    """See what all runs say; of folds also write `predictions.parquet` of every image.

    Args:
        run_dir: the study's.
        study: whose runs have all ended.

    Raises:
        UserError: a run's predictions are missing or damaged, or the disk refuses.
    """
    rows = tuple(row_of(member) for member in study.members)
    part: Literal["test", "val"] = "test" if all(row.test is not None for row in rows) else "val"
    values = [row.score for row in rows]
    mean, spread = fmean(values), stdev(values)
    if study.kind == "seeds":
        return Summary("seeds", part, rows, mean, spread, students_interval(mean, spread, len(rows)), None, (), "")
    everything = out_of_fold(run_dir, [row.name for row in rows])
    rows_of = everything.parts[OUT_OF_FOLD]
    save_predictions(run_dir / PREDICTIONS_FILE, everything.parts, {OUT_OF_FOLD: rows_of.files}, everything.class_names)
    findings = find_part(everything, OUT_OF_FOLD, temperature=None)
    candidates = tuple(find_label_candidates(everything))
    return Summary("folds", part, rows, mean, spread, findings.accuracy, findings, candidates, "")


def row_of(member: Member) -> Row:
    """What a run that has ended came to."""
    assert member.result is not None
    scores = member.result["scores"]
    test = scores["test"]["accuracy"] if "test" in scores else None
    return Row(member.name, int(member.result["best_epoch"]), float(scores["val"]["accuracy"]), test)


def students_interval(mean: float, spread: float, number: int) -> Interval:
    """95 % interval of the mean of so many values with this standard deviation."""
    from scipy.stats import t  # a second of import

    half = float(t.ppf(0.975, number - 1)) * spread / math.sqrt(number)
    return Interval(mean, mean - half, mean + half)


def out_of_fold(run_dir: Path, names: list[str]) -> SavedPredictions:
    """What was said of every image by the run that held it out, in the order of the images' names.

    Probabilities are those that the run's model serves, with its own temperature: runs differ in how sure they are.

    Args:
        run_dir: the study's.
        names: of the runs.

    Raises:
        UserError: files that are missing, damaged or do not belong together.
    """
    files: list[str] = []
    columns: dict[str, list[np.ndarray[Any, Any]]] = {"labels": [], "probabilities": []}
    class_names: tuple[str, ...] = ()
    for name in names:
        saved = load_predictions(run_dir / name / PREDICTIONS_FILE)
        if class_names not in ((), saved.class_names) or "test" not in saved.parts:
            raise UserError(f"'{run_dir / name}' is not a run of this study: it has other classes, or no test part.")
        class_names, rows = saved.class_names, saved.parts["test"]
        temperature = load_spec(run_dir / name / MODEL_DIR).temperature
        files += rows.files
        columns["labels"].append(rows.labels)
        columns["probabilities"].append(serve(rows, temperature))
    if len(set(files)) < len(files):
        raise UserError(
            f"The runs of '{run_dir}' hold the same pictures out more than once: they are not of one study."
        )
    order = np.array(sorted(range(len(files)), key=files.__getitem__))
    labels = np.concatenate(columns["labels"])[order]
    probabilities = np.concatenate(columns["probabilities"])[order].astype(np.float32)
    of_label = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    rows_of = PartPredictions(
        labels=labels,
        probabilities=probabilities,
        losses=-np.log(of_label),
        files=tuple(files[place] for place in order),
    )
    return SavedPredictions(class_names, {OUT_OF_FOLD: rows_of})


def scores_of(run_dir: Path) -> dict[str, Any]:
    """Scores of all images out of fold, as a model's folder holds them."""
    saved = load_predictions(run_dir / PREDICTIONS_FILE)
    return summarize(saved.parts[OUT_OF_FOLD], saved.class_names)
