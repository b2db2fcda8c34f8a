"""Several runs → a table, one page with their curves over each other, and whether the gain could be luck."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.html.pages import Thumbnails, write_page
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.confusion import Ints, confusion_matrix, macro_f1
from accel_flowers.metrics.intervals import Interval, Paired, accuracy_interval, compare_paired, holm
from accel_flowers.metrics.predictions import SavedPredictions
from accel_flowers.report import text as words
from accel_flowers.report.draw import ADVICE
from accel_flowers.report.findings import Answer, answers
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import Course, Plot, course_plot
from accel_flowers.report.read import RunRecord, read_run
from accel_flowers.report.settings import differing

NUM_FLIPPED = 8
"""Images that the page shows of those on which two runs differ, for each side."""


@dataclass(frozen=True)
class Row:
    """One run in the table: its score on the shared images and, for all but the first, against the first run.

    Attributes:
        name: of the run's directory, longer where two are called the same.
        accuracy: on the shared images; where these may have several labels, the share of which all labels are right.
        own: accuracy on all images of its own part, and how many those are.
        paired: against the first run; None for it.
        p_value: of McNemar's test, raised by Holm's method where there are several comparisons.
        verdict: in words.
    """

    name: str
    accuracy: Interval
    loss: float
    macro_f1: float
    own: tuple[float, int]
    paired: Paired | None
    p_value: float | None
    verdict: tuple[str, str] | None
    map: float | None = None
    """mAP on the shared images, where they may have several labels."""


@dataclass(frozen=True)
class Comparison:
    """Runs on the images that all of them were scored on.

    Attributes:
        part: "test", or "val" where a run has no test part.
        files: the shared images.
        not_shared: images of the part that some runs have and others do not.
        several_labels: whether images may have several labels.
    """

    part: str
    files: tuple[str, ...]
    not_shared: int
    rows: tuple[Row, ...]
    several_labels: bool = False

    @property
    def score_name(self) -> str:
        """What the share of right answers is called."""
        return "exact match" if self.several_labels else "accuracy"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "part": self.part,
            "num_images": len(self.files),
            "not_shared": self.not_shared,
            "runs": [self._as_json(row) for row in self.rows],
        }

    def _as_json(self, row: Row) -> dict[str, Any]:
        values = asdict(row)
        mean = values.pop("map")
        if not self.several_labels:
            return {**values, "own": {"accuracy": row.own[0], "num_images": row.own[1]}}
        values["exact_match"] = values.pop("accuracy")
        return {**values, "map": mean, "own": {"exact_match": row.own[0], "num_images": row.own[1]}}


def compare_runs(
    run_dirs: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    data: str | None = None,
) -> Comparison:
    """Compare runs on the same held-out images, the others with the first.

    Args:
        run_dirs: two or more.
        out: where the page goes; None = no page.
        data: where the images are now, where they are no longer at the first run's data.path.

    Raises:
        UserError: fewer than two runs, one that has not ended, or none of the images in common.
    """
    directories = [Path(each) for each in run_dirs]
    if len(directories) < 2:
        raise UserError("Comparing takes two runs or more: accel-flowers compare RUN_DIR RUN_DIR.")
    if len({run_dir.resolve() for run_dir in directories}) < len(directories):
        raise UserError("The same run is named twice; compare different ones.")
    runs = [read_run(run_dir) for run_dir in directories]
    for run in runs:
        if run.predictions is None:
            raise UserError(
                f"The run in '{run.run_dir}' has not ended: it has no predictions.parquet. Type {run.how_to_end}"
            )
    saved = [run.predictions for run in runs if run.predictions]
    comparison = _compare(_names(runs), saved)
    if out is not None:
        _write_page(Path(out), runs, comparison, Photos(data or runs[0].config.data.path, runs[0].config.data.labels))
    return comparison


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Directory names, with as many folders in front as it takes to tell them apart."""
    paths = [run.run_dir.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different directories have different paths")


def _compare(names: Sequence[str], saved: Sequence[SavedPredictions]) -> Comparison:
    several = saved[0].several_labels
    if len({each.several_labels for each in saved}) > 1:
        kinds = ", ".join(
            f"{name}: {'several' if each.several_labels else 'one'}" for name, each in zip(names, saved, strict=True)
        )
        raise UserError(f"Runs with one label a picture cannot be compared with runs with several ({kinds}).")
    part = "test" if all("test" in each.parts for each in saved) else "val"
    said = [{answer.file: answer for answer in answers(each, part)} for each in saved]
    # An image that moved to another class between the runs has not the same question any more.
    shared = sorted(
        file
        for file in set.intersection(*(set(each) for each in said))
        if len({each[file].label for each in said}) == 1
    )
    everything = len(set.union(*(set(each) for each in said)))
    if not shared:
        raise UserError(
            f"The runs have no {words.part_name(part)} picture in common, so they cannot be compared: train them on the "
            "same split (the same pictures, --data.split and --train.seed, or --data.split OTHER_RUN/split.json)."
        )
    right = [np.array([each[file].right for file in shared]) for each in said]
    paired = [compare_paired(right[0], each) for each in right[1:]]
    p_values = holm([each.p_value for each in paired])
    rows = []
    for place, name in enumerate(names):
        against = paired[place - 1] if place else None
        p_value = p_values[place - 1] if place else None
        chosen = [said[place][file] for file in shared]
        verdict = None
        if against is not None and p_value is not None:
            verdict = words.verdict(names[0], name, against, p_value)
        whole = [answer.right for answer in said[place].values()]
        scores = shared_scores(saved[place], part, shared) if several else {"macro_f1": macro_f1(_matrix(chosen))}
        rows.append(
            Row(
                name=name,
                accuracy=accuracy_interval(int(right[place].sum()), len(shared)),
                loss=float(np.mean([answer.loss for answer in chosen])),
                macro_f1=scores["macro_f1"],
                own=(float(np.mean(whole)), len(whole)),
                paired=against,
                p_value=p_value,
                verdict=verdict,
                map=scores.get("map"),
            )
        )
    return Comparison(part, tuple(shared), everything - len(shared), tuple(rows), several)


def shared_scores(saved: SavedPredictions, part: str, shared: Sequence[str]) -> dict[str, Any]:
    """All scores of the images of a part that all runs have."""
    rows, wanted = saved.parts[part], set(shared)
    return summarize(rows.of_images(np.array([file in wanted for file in rows.files])), saved.class_names)


def _matrix(chosen: Sequence[Answer]) -> Ints:
    names = sorted({name for answer in chosen for name in (answer.label, answer.predicted)})
    number = {name: place for place, name in enumerate(names)}
    labels, predicted = (
        np.array([number[name] for name in column])
        for column in zip(*((answer.label, answer.predicted) for answer in chosen), strict=True)
    )
    return confusion_matrix(labels, predicted, len(names))


def in_words(comparison: Comparison) -> str:
    """The table for a terminal, with a sentence for each comparison."""
    width, score = max(len("run"), *(len(row.name) for row in comparison.rows)), max(8, len(comparison.score_name))
    mean = "   mAP  " if comparison.several_labels else ""
    lines = [
        f"{words.images(len(comparison.files))} of {words.part_name(comparison.part)} that all runs have"
        + (f"; {comparison.not_shared} that only some have are left out" if comparison.not_shared else ""),
        "",
        f"{'run':<{width}}  {comparison.score_name:>8}  95 % interval     loss  macro F1  {mean}against the first",
    ]
    for row in comparison.rows:
        ends = f"{100 * row.accuracy.low:.1f} to {100 * row.accuracy.high:.1f}"
        gain = f"{words.points(row.paired.difference.value)} points" if row.paired else ""
        lines.append(
            f"{row.name:<{width}}  {100 * row.accuracy.value:{score - 2}.1f} %  {ends:>13}  {row.loss:7.4f}  {row.macro_f1:8.4f}  "
            f"{'' if row.map is None else f'{row.map:6.4f}  '}{gain}".rstrip()
        )
    for row in comparison.rows:
        if row.verdict:
            lines += ["", f"{row.verdict[0]}.", row.verdict[1]]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _write_page(path: Path, runs: Sequence[RunRecord], comparison: Comparison, photos: Photos) -> None:
    names = [row.name for row in comparison.rows]
    write_page(
        path,
        "compare.html",
        advice=ADVICE,
        comparison=comparison,
        names=names,
        plots=_plots(names, runs, several=comparison.several_labels),
        settings=list(differing(*(run.config for run in runs)).items()),
        recalls=_recalls(runs, comparison),
        flipped=_flipped(names, runs, comparison),
        thumbnail=Thumbnails(photos.read),
        words=words,
    )


def _plots(names: Sequence[str], runs: Sequence[RunRecord], *, several: bool) -> list[Plot]:
    kinds = (
        ("map", "validation mAP", "%", "val/map")
        if several
        else ("accuracy", "validation accuracy", "%", "val/accuracy"),
        ("loss-val", "validation loss", "nats", "val/loss"),
        ("loss-train", "training loss", "nats", "train/loss"),
        ("lr", "learning rate", "", "lr/"),
    )
    plots = []
    for name, title, unit, line in kinds:
        # Of several parameter groups the first stands for all: their rates rise and fall together.
        lines = [next(iter(run.rates()), "") if line == "lr/" else line for run in runs]
        courses = [Course(own, *run.course(its)) for own, run, its in zip(names, runs, lines, strict=True)]
        if any(course.values for course in courses):
            part = {"v": "val", "t": "train"}.get(title[0])
            counts = sorted({len(run.split.files_of(part)) for run in runs}) if part else []
            on = f" on {' or '.join(f'{count:,}' for count in counts)} {words.part_name(part)} pictures" if part else ""
            plots.append(
                course_plot(
                    name, title, unit, courses, percent=unit == "%", marked=line != "lr/",
                    alt=f"{title.capitalize()} of {len(runs)} runs{on}, over the epochs.",
                )
            )  # fmt: skip
    return plots


def _recalls(runs: Sequence[RunRecord], comparison: Comparison) -> list[tuple[str, int, list[float]]]:
    """(class, its shared images, share that each run got right)."""
    if comparison.several_labels:
        found = [shared_scores(run.predictions, comparison.part, comparison.files) for run in runs if run.predictions]
        counts = {name: row["count"] for name, row in found[0]["per_class"].items()}
        return [
            (name, count, [scores["per_class"].get(name, {"recall": 0.0})["recall"] for scores in found])
            for name, count in sorted(counts.items())
            if count
        ]
    wanted = set(comparison.files)
    right: dict[str, list[list[bool]]] = {}
    for place, run in enumerate(runs):
        assert run.predictions is not None
        for answer in answers(run.predictions, comparison.part):
            if answer.file in wanted:
                right.setdefault(answer.label, [[] for _ in runs])[place].append(answer.right)
    return [
        (name, len(columns[0]), [float(np.mean(column)) for column in columns])
        for name, columns in sorted(right.items())
    ]


@dataclass(frozen=True)
class Flipped:
    """Images that one run got right and another wrong.

    Attributes:
        heading: which runs, in words.
        count: how many there are.
        images: the other run's answers, the worst first, as many as are shown.
    """

    heading: str
    count: int
    images: tuple[Answer, ...]


def _flipped(names: Sequence[str], runs: Sequence[RunRecord], comparison: Comparison) -> list[Flipped]:
    """What only the last, and what only the first run got right."""
    first, last = (
        {answer.file: answer for answer in answers(run.predictions, comparison.part)}
        for run in (runs[0], runs[-1])
        if run.predictions
    )
    sides = []
    for winner, loser, who, other in ((last, first, names[-1], names[0]), (first, last, names[0], names[-1])):
        lost = [loser[file] for file in comparison.files if winner[file].right and not loser[file].right]
        worst = sorted(lost, key=lambda answer: (-answer.loss, answer.file))[:NUM_FLIPPED]
        sides.append(Flipped(f"Right in {who}, wrong in {other}", len(lost), tuple(worst)))
    return sides
