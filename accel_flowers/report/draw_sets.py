"""The results of a run whose pictures have several labels, as its page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accel_flowers.html.pages import data_uri
from accel_flowers.models.saved import load_model
from accel_flowers.report import set_text
from accel_flowers.report import text as words
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import Plot
from accel_flowers.report.read import RunRecord
from accel_flowers.report.set_plots import cooccurrence_plot, precision_plot
from accel_flowers.report.sets import (
    SetFindings,
    SetMistake,
    find_doubtful_labels,
    find_mistakes,
    find_sets,
    most_together,
)
from accel_flowers.tracking.run_dir import MODEL_DIR

NUM_MISTAKES, NUM_LABELS = 12, 24
"""Pictures that the page shows of each kind."""


@dataclass(frozen=True)
class ShownMistake:
    """A mistake on the page, with what spoke for the class as a data URI; None where that is not known."""

    mistake: SetMistake
    heat: str | None


@dataclass(frozen=True)
class SetSentences:
    """Answers to the questions that the page begins with: a headline, then what stands behind it."""

    good: str
    baseline: tuple[str, str]
    worst: tuple[str, str]
    labels: tuple[str, str, str]
    thresholds: tuple[str, str]


@dataclass(frozen=True)
class SetResults:
    """How good a finished run is; what the page `report_sets.html` shows.

    Attributes:
        part: what the page speaks of: "test", or "val" where there is no test part.
        part_name, said_of: the part, and with its size, in words.
        main: its scores.
        others: those of the other parts.
        num_evaluations: how often validation was scored during the training.
        missed, extra: the worst mistakes: a label that was not said, and a class that was said too many.
        num_missed, num_extra: all of them.
        doubtful: labels that look wrong, as many as are shown.
        num_doubtful: all of them.
        method: how the heat was found, in words; empty where there is none.
        together: classes that come together most.
        plots: figures.
    """

    part: str
    part_name: str
    said_of: str
    main: SetFindings
    others: tuple[SetFindings, ...]
    num_evaluations: int
    missed: tuple[ShownMistake, ...]
    extra: tuple[ShownMistake, ...]
    num_missed: int
    num_extra: int
    doubtful: tuple[SetMistake, ...]
    num_doubtful: int
    method: str
    together: tuple[tuple[str, str, int, float], ...]
    sentences: SetSentences
    precision: Plot
    cooccurrence: Plot

    template = "report_sets.html"

    @property
    def drawn(self) -> list[Plot]:
        """All figures."""
        return [self.precision, self.cooccurrence]


def find_set_results(run: RunRecord, photos: Photos) -> SetResults:
    """Score what a finished run said, and choose what is shown of it."""
    predictions = run.predictions
    assert predictions is not None
    found = {part: find_sets(predictions, part, learnt=run.overfits) for part in predictions.parts}
    part = "test" if "test" in found else "val"
    main = found[part]
    doubtful = find_doubtful_labels(predictions) if main.beats_baseline and not main.learnt else []
    looked_at = {name: len(rows.labels) for name, rows in predictions.parts.items()}
    mistakes = find_mistakes(predictions, part)
    missed, extra = ([each for each in mistakes if each.missing is which] for which in (True, False))
    shown, method = _show([*missed[:NUM_MISTAKES], *extra[:NUM_MISTAKES]], run, photos)
    part_name = "its own training pictures" if main.learnt else words.part_name(part)
    said_of = f"{part_name}, {words.images(main.num_images)}"
    return SetResults(
        part=part,
        part_name=part_name,
        said_of=said_of,
        main=main,
        others=tuple(each for name, each in found.items() if name != part),
        num_evaluations=sum("val/map" in line for line in run.lines),
        missed=tuple(each for each in shown if each.mistake.missing),
        extra=tuple(each for each in shown if not each.mistake.missing),
        num_missed=len(missed),
        num_extra=len(extra),
        doubtful=tuple(doubtful[:NUM_LABELS]),
        num_doubtful=len(doubtful),
        method=method,
        together=tuple(most_together(main)),
        sentences=SetSentences(
            good=set_text.how_good(main),
            baseline=set_text.baseline(main),
            worst=set_text.worst_class(main),
            labels=set_text.doubtful_labels(doubtful, looked_at, len(run.split.files_of("train")), main),
            thresholds=set_text.thresholds(main),
        ),
        precision=precision_plot(main, said_of),
        cooccurrence=cooccurrence_plot(main, said_of),
    )


def _show(chosen: Sequence[SetMistake], run: RunRecord, photos: Photos) -> tuple[list[ShownMistake], str]:
    """Each mistake with where the network saw its class; and how that was found, in words."""
    opened = photos.open_all([each.file for each in chosen]) if not photos.problem else {}
    there = [(each, image) for each in chosen if (image := opened.get(each.file)) is not None]
    heat: dict[tuple[str, int], str] = {}
    method = ""
    if there and run.spec:
        # Seconds of import, which a page without images does not need.
        from accel_flowers.report.cam import explain

        saved, targets = load_model(run.run_dir / MODEL_DIR), [each.label for each, _ in there]
        found = explain(saved, [image for _, image in there], targets)
        method = found.method
        heat = {(each.file, each.label): data_uri(image) for (each, _), image in zip(there, found.images, strict=True)}
    return [ShownMistake(each, heat.get((each.file, each.label))) for each in chosen], method
