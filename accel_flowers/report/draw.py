"""A run directory → `report.html` and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.core.files import writing
from accel_flowers.html.pages import Thumbnails, data_uri, write_page
from accel_flowers.models.saved import load_model
from accel_flowers.report import text as words
from accel_flowers.report.class_sizes import SizeGroup, find_size_groups
from accel_flowers.report.course import find_course
from accel_flowers.report.data import Data, find_data
from accel_flowers.report.draw_sets import SetResults, find_set_results
from accel_flowers.report.findings import (
    Answer,
    PartFindings,
    answers,
    find_part,
    least_confident,
    worst_mistakes,
)
from accel_flowers.report.labels import LabelCandidate, find_label_candidates
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import (
    MOST_CLASSES,
    Plot,
    classes_plot,
    confusion_plot,
    reliability_plot,
)
from accel_flowers.report.read import RunRecord, read_run
from accel_flowers.report.settings import settings_of
from accel_flowers.tracking.run_dir import MODEL_DIR

REPORT_FILE, PLOTS_DIR = "report.html", "plots"
NUM_MISTAKES, NUM_UNSURE, NUM_LABELS, NUM_TWINS, NUM_OF_WORST = 12, 8, 24, 8, 3
"""Images that the page shows of each kind."""
MOST_ROWS = 20
"""Classes of a table that are seen at once."""
ADVICE = "Make room, or give another place."
"""Where a page or a plot cannot be written."""


@dataclass(frozen=True)
class Shown:
    """An answer on the page.

    Attributes:
        answer: what the model said.
        heat: the image with what spoke for the answer, as a data URI; None where that is not known.
        doubtful: whether its label looks wrong.
    """

    answer: Answer
    heat: str | None
    doubtful: bool


@dataclass(frozen=True)
class Sentences:
    """Answers to the three questions that the page begins with: a headline, then what stands behind it."""

    worst: tuple[str, str]
    labels: tuple[str, str, str]
    calibration: tuple[str, str]


@dataclass(frozen=True)
class ResultPlots:
    """Figures of one part."""

    classes: Plot
    confusion: Plot
    reliability: Plot


@dataclass(frozen=True)
class Results:
    """How good a finished run is.

    Attributes:
        part: what the page speaks of: "test", or "val" where there is no test part.
        part_name: what people call it.
        main: its scores.
        others: those of the other parts.
        num_evaluations: how often validation was scored during the training.
        said_of: the part and its size in words.
        candidates: images whose labels look wrong, as many as are shown.
        num_candidates: all of them.
        mistakes, unsure: the worst mistakes and the least confident answers.
        num_mistakes: all mistakes.
        method: how the heat was found, in words; empty where there is none.
        confusions: (true class, predicted class, images, of so many), the most frequent first.
        of_worst: missed images of the worst class that went to the class it is confused with most.
    """

    part: str
    part_name: str
    main: PartFindings
    others: tuple[PartFindings, ...]
    num_evaluations: int
    said_of: str
    candidates: tuple[LabelCandidate, ...]
    num_candidates: int
    mistakes: tuple[Shown, ...]
    unsure: tuple[Shown, ...]
    num_mistakes: int
    method: str
    confusions: tuple[tuple[str, str, int, int], ...]
    of_worst: tuple[Answer, ...]
    sentences: Sentences
    plots: ResultPlots

    template = "report.html"

    @property
    def drawn(self) -> list[Plot]:
        """All figures."""
        return [self.plots.classes, self.plots.confusion, self.plots.reliability]


def draw_report(run_dir: Path, data: str | None = None) -> Path:
    """Write `report.html` into a run directory, and the plots as PNGs beside it.

    Args:
        run_dir: of a run, finished or still going on.
        data: where its images are now, where they are no longer at its data.path.

    Returns:
        The page.

    Raises:
        UserError: no run directory, a damaged one, or one that cannot be written to.
    """
    run = read_run(run_dir)
    photos = Photos(data or run.config.data.path, run.config.data.labels)
    results: Results | SetResults | None = None
    if run.predictions:
        results = find_set_results(run, photos) if run.predictions.several_labels else _results(run, photos)
    training, about_data = find_course(run, results.main if results else None), find_data(run, photos)
    path = run_dir / REPORT_FILE
    write_page(
        path,
        results.template if results else "report.html",
        advice=ADVICE,
        run=run,
        photos=photos,
        moved=_missing(run, photos),
        training=training,
        data=about_data,
        settings=settings_of(run),
        results=results,
        size_groups=_size_groups(results, about_data),
        thumbnail=Thumbnails(photos.read),
        words=words,
        MOST_CLASSES=MOST_CLASSES,
        MOST_ROWS=MOST_ROWS,
        NUM_TWINS=NUM_TWINS,
    )
    _write_plots(run_dir / PLOTS_DIR, [*training.plots, *about_data.plots, *(results.drawn if results else [])])
    return path


def _size_groups(results: Results | SetResults | None, data: Data) -> tuple[SizeGroup, ...]:
    """Accuracy by the size of classes, where that is known and says more than the table of all classes."""
    if not isinstance(results, Results) or data.counts is None or results.main.learnt:
        return ()
    return find_size_groups({name: counts["train"] for name, counts in data.counts.items()}, results.main)


def _write_plots(directory: Path, plots: Sequence[Plot]) -> None:
    """Write each plot as a PNG of its own."""
    with writing(f"The plots in '{directory}'", ADVICE):
        directory.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (directory / f"{plot.name}.png").write_bytes(plot.png)


def _missing(run: RunRecord, photos: Photos) -> list[str]:
    """Held-out images that are no longer there."""
    if photos.problem:
        return []
    return [file for file in sorted(run.split.parts) if run.split.parts[file] != "train" and not photos.has(file)]


def _results(run: RunRecord, photos: Photos) -> Results:
    predictions = run.predictions
    assert predictions is not None
    temperature = run.spec.temperature if run.spec else None
    found = {
        part: find_part(predictions, part, temperature=temperature, learnt=run.overfits) for part in predictions.parts
    }
    part = "test" if "test" in found else "val"
    main = found[part]
    held_out = main.beats_baseline and not main.learnt
    candidates = find_label_candidates(predictions, temperature=temperature) if held_out else []
    looked_at = {name: len(rows.labels) for name, rows in predictions.parts.items()}
    judged = answers(predictions, part, temperature=temperature)
    mistakes, unsure = worst_mistakes(judged, NUM_MISTAKES), least_confident(judged, NUM_UNSURE)
    shown, method = _show([*mistakes, *unsure], {each.file for each in candidates}, run, photos)
    part_name = "its own training pictures" if main.learnt else words.part_name(part)
    said_of = f"{part_name}, {words.images(main.num_images)}"
    return Results(
        part=part,
        part_name=part_name,
        main=main,
        others=tuple(each for name, each in found.items() if name != part),
        num_evaluations=sum("val/accuracy" in line for line in run.lines),
        said_of=said_of,
        candidates=tuple(candidates[:NUM_LABELS]),
        num_candidates=len(candidates),
        mistakes=tuple(shown[: len(mistakes)]),
        unsure=tuple(shown[len(mistakes) :]),
        num_mistakes=main.num_images - main.right,
        method=method,
        confusions=_confusions(main),
        of_worst=_of_worst(main, judged, photos),
        sentences=Sentences(
            worst=words.worst_class(main),
            labels=words.label_candidates(candidates, looked_at, len(run.split.files_of("train")), main),
            calibration=words.calibration(main),
        ),
        plots=ResultPlots(
            classes=classes_plot(main, said_of),
            confusion=confusion_plot(main, said_of),
            reliability=reliability_plot(main.calibration, said_of),
        ),
    )


def _of_worst(found: PartFindings, judged: Sequence[Answer], photos: Photos) -> tuple[Answer, ...]:
    """A few missed images of the worst class: those that went to the class it is confused with most."""
    worst = found.worst
    if photos.problem or not worst.taken_for or not found.beats_baseline:
        return ()
    missed = [answer for answer in judged if answer.label == worst.name and answer.predicted == worst.taken_for[0][0]]
    return tuple(answer for answer in worst_mistakes(missed, NUM_OF_WORST) if photos.has(answer.file))


def _confusions(found: PartFindings, count: int = 8) -> tuple[tuple[str, str, int, int], ...]:
    """(true class, predicted class, images, of so many), the most frequent first."""
    pairs = [(each.name, other, images, each.num_images) for each in found.classes for other, images in each.taken_for]
    return tuple(sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:count])


def _show(chosen: Sequence[Answer], doubtful: set[str], run: RunRecord, photos: Photos) -> tuple[list[Shown], str]:
    """Each answer with where the network looked; and how that was found, in words."""
    opened = photos.open_all([answer.file for answer in chosen]) if not photos.problem else {}
    there = {file: image for file, image in opened.items() if image is not None}
    predicted = {answer.file: answer.predicted_index for answer in chosen}
    heat, method = {}, ""
    if there and run.spec:
        # Seconds of import, which a page without images does not need.
        from accel_flowers.report.cam import explain

        found = explain(load_model(run.run_dir / MODEL_DIR), list(there.values()), [predicted[file] for file in there])
        heat, method = dict(zip(there, found.images, strict=True)), found.method
    return [
        Shown(answer, data_uri(heat[answer.file]) if answer.file in heat else None, answer.file in doubtful)
        for answer in chosen
    ], method
