"""Several studies side by side, run by run: the runs of one seed, or of one fold, are pairs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.split import load_split
from accel_flowers.metrics.intervals import Interval, holm
from accel_flowers.report.text import LUCK
from accel_flowers.study.members import SPLITS_DIR, Study, holds_study, load_study
from accel_flowers.study.summary import Row, row_of, students_interval


@dataclass(frozen=True)
class StudyRow:
    """One study, and its difference from the first; None for the first."""

    name: str
    mean: float
    spread: float
    """Standard deviation over the runs."""
    difference: Interval | None
    """Mean over the pairs of runs, with Student's interval."""
    p_value: float | None
    """Of a paired t test, raised by Holm's method where several studies are compared with the first."""


@dataclass(frozen=True)
class StudyComparison:
    """Studies with the same seeds, or the same folds."""

    kind: str
    pairs: tuple[str, ...]
    """Names of the runs that all of them have."""
    part: str
    rows: tuple[StudyRow, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def in_words(self) -> str:
        """The table, and whether each difference could be luck."""
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{self.part} accuracy of the same {number_of(len(self.pairs), self.kind[:-1])}: {', '.join(self.pairs)}",
            "",
        ]
        lines.append(f"{'study':<{width}}    mean  standard deviation  against the first")
        for row in self.rows:
            gain = f"{100 * row.difference.value:+.1f} points" if row.difference else ""
            lines.append(f"{row.name:<{width}}  {100 * row.mean:4.1f} %  {100 * row.spread:18.1f}  {gain}".rstrip())
        first = self.rows[0].name
        for row in self.rows[1:]:
            assert row.difference is not None
            assert row.p_value is not None
            ends = f"{100 * row.difference.low:+.1f} to {100 * row.difference.high:+.1f}"
            if row.p_value < LUCK:
                better = "better" if row.difference.value > 0 else "worse"
                verdict = f"{row.name} is {better} than {first}, and that is hardly luck"
            else:
                verdict = f"The difference between {row.name} and {first} could be luck"
            lines += ["", f"{verdict} (p = {row.p_value:.3f}; 95 % interval {ends} points)."]
        if self.kind == "folds":
            lines += ["", "The runs of folds learn from the same pictures in part, so p is somewhat too small."]
        return "\n".join(lines)


def are_studies(run_dirs: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether all of the directories hold studies.

    Raises:
        UserError: some do and others do not.
    """
    found = [holds_study(Path(each)) for each in run_dirs]
    if any(found) and not all(found):
        single = Path(run_dirs[found.index(False)])
        raise UserError(
            f"'{single}' holds a single run, and others hold several: compare runs with runs, or studies (--seeds, --folds) with studies."
        )
    return all(found)


def compare_studies(run_dirs: Sequence[str | os.PathLike[str]]) -> StudyComparison:
    """Compare studies, the others with the first.

    Args:
        run_dirs: two or more.

    Raises:
        UserError: fewer than two, or studies that are not of the same seeds or folds, or have not ended.
    """
    directories = [Path(each) for each in run_dirs]
    if len({each.resolve() for each in directories}) < 2:
        raise UserError("Comparing takes two studies or more: accel-flowers compare STUDY_DIR STUDY_DIR.")
    studies = [load_study(each) for each in directories]
    rows = [_rows(directory, study) for directory, study in zip(directories, studies, strict=True)]
    _check_pairs(directories, studies)
    part = "test" if all(row.test is not None for each in rows for row in each) else "validation"
    scores = [[row.val if part == "validation" or row.test is None else row.test for row in each] for each in rows]
    differences = [[one - other for one, other in zip(each, scores[0], strict=True)] for each in scores[1:]]
    p_values = holm([_paired_t(each) for each in differences])
    found = [StudyRow(_name(directories[0]), fmean(scores[0]), stdev(scores[0]), None, None)]
    for directory, own, difference, p_value in zip(directories[1:], scores[1:], differences, p_values, strict=True):
        interval = students_interval(fmean(difference), stdev(difference), len(difference))
        found.append(StudyRow(_name(directory), fmean(own), stdev(own), interval, p_value))
    return StudyComparison(studies[0].kind, tuple(row.name for row in rows[0]), part, tuple(found))


def _name(directory: Path) -> str:
    return directory.resolve().name


def _rows(directory: Path, study: Study) -> list[Row]:
    open_ones = [member.name for member in study.members if member.result is None]
    if open_ones:
        raise UserError(
            f"The study in '{directory}' has not ended: {', '.join(open_ones)} are still to be trained. Go on with it by the words that "
            "began it and --resume auto."
        )
    return [row_of(member) for member in study.members]


def _check_pairs(directories: Sequence[Path], studies: Sequence[Study]) -> None:
    for directory, study in zip(directories[1:], studies[1:], strict=True):
        names = [member.name for member in study.members]
        if names != [member.name for member in studies[0].members]:
            raise UserError(
                f"'{directories[0]}' has the runs {', '.join(member.name for member in studies[0].members)}, '{directory}' has "
                f"{', '.join(names)}: only runs of the same seeds, or of the same folds, are pairs."
            )
        if study.kind == "folds":
            splits = [load_split(each / SPLITS_DIR / f"{names[0]}.json").parts for each in (directories[0], directory)]
            if dict(splits[0]) != dict(splits[1]):
                raise UserError(
                    f"The folds of '{directories[0]}' and '{directory}' hold other pictures: train both on the same pictures, with the "
                    "same --train.seed and number of --folds."
                )


def _paired_t(differences: Sequence[float]) -> float:
    """Two-sided p-value of the differences' mean being 0; 1 where all of them are 0."""
    spread = stdev(differences)
    if not spread:
        return 0.0 if fmean(differences) else 1.0
    from scipy.stats import t  # a second of import

    statistic = fmean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * t.sf(abs(statistic), len(differences) - 1))
