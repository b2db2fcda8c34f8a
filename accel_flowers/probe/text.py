"""What a probe found, in words for a terminal and for its page."""

from __future__ import annotations

from accel_flowers.core.errors import printable
from accel_flowers.core.order import natural_key
from accel_flowers.core.plural import number_of
from accel_flowers.probe.curve import LearningCurve
from accel_flowers.probe.result import ProbeResult, Row
from accel_flowers.report import text as words
from accel_flowers.report.text import NOT_TOLD, SURE_OF_LABELS, images, span

_SHOWN = 8
"""Label-error candidates that a terminal shows."""


def in_words(result: ProbeResult) -> str:
    """The table, and what stands behind it."""
    found, best = result.findings, result.best
    width = max(len("backbone"), *(len(printable(row.name)) for row in result.rows))
    header = f"{'backbone':<{width}}  accuracy  95 % interval    ms a picture"
    lines = [
        f"{number_of(found.num_images, 'picture')} of {number_of(len(result.class_names), 'class', many='classes')}, "
        f"{result.num_folds}-fold cross-validation; each picture is scored by a head that neither learned from it nor was chosen by it",
        "",
        header + ("    gain on the first" if len(result.rows) > 1 else ""),
        *(_row_in_words(row, width) for row in result.rows),
        "",
        f"the following is of {printable(best.name)}, {how(best)}" if len(result.rows) > 1 else f"chosen: {how(best)}",
        printable(plain(baseline(result))),
        "",
        *curve_in_words(result.curve),
        "",
        *_classes_in_words(result),
        "",
        *_candidates_in_words(result),
    ]
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())
    kept = (
        "all features were kept from before; ms a picture: as when they were computed"
        if not result.computed
        else f"{number_of(result.computed, 'row')} of features computed"
    )
    return "\n".join([*lines, "", f"seconds: {spent} ({kept})"])


def _row_in_words(row: Row, width: int) -> str:
    spent = "     not known" if row.seconds_a_picture is None else f"{1000 * row.seconds_a_picture:14.1f}"
    told = (
        f"{printable(row.name):<{width}}  {100 * row.accuracy.value:6.1f} %  {plain(span(row.accuracy)):<15}  {spent}"
    )
    if row.gain is None:
        return told
    gain = row.gain.difference
    return f"{told}    {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def how(row: Row) -> str:
    """What was chosen for a row, and what the folds chose."""
    sizes = " and ".join(
        dict.fromkeys(f"{height}" if height == width else f"{height} x {width}" for height, width in row.sizes)
    )
    enlarged = ", a third larger than its own" if isinstance(row.way.size, float) else ""
    mirror = "with mirror images" if row.way.mirror else "without mirror images"
    tried = ""
    if len(row.losses) > 1:
        rest = [loss for way, loss in row.losses.items() if way != row.way]
        tried = f" (cross-validated loss {row.losses[row.way]:.4f}, the best other way {min(rest):.4f})"
    folds = sorted(set(row.strengths))
    spread = f" ({' to '.join(f'{each:g}' for each in dict.fromkeys((folds[0], folds[-1])))} in the single folds)"
    return f"{sizes} pixels{enlarged}, {mirror}{tried}; regularisation of the head: C {row.strength:g}{spread}"


def baseline(result: ProbeResult) -> str:
    """What the accuracy is to be held against."""
    return " ".join(filter(None, words.baseline(result.findings)))


def curve_in_words(curve: LearningCurve) -> list[str]:
    """The learning curve and its forecast, a line each."""
    lines = ["learned from  accuracy  95 % interval"]
    for size, each in zip(curve.sizes, curve.accuracies, strict=True):
        lines.append(f"{round(size):12,}  {100 * each.value:6.1f} %  {plain(span(each))}")
    return [*lines, forecast_in_words(curve)]


def forecast_in_words(curve: LearningCurve) -> str:
    """What twice the pictures would give, and how far that can be believed."""
    told = (
        f"twice the photos ({curve.twice:,}) would give about {100 * curve.forecast.value:.1f} % "
        f"({plain(span(curve.forecast))}), if the curve goes on as it did"
    )
    if curve.check is None:
        return told
    last = curve.accuracies[-1]
    agrees = curve.check.low <= last.high and last.low <= curve.check.high
    return (
        f"{told}; as a check: from the smaller sizes it would have forecast {100 * curve.check.value:.1f} % where {100 * last.value:.1f} % came out"
        + ("" if agrees else ", which is wrong: do not rely on it")
    )


def _classes_in_words(result: ProbeResult) -> list[str]:
    classes = sorted(result.findings.classes, key=lambda each: natural_key(each.name))
    width = max(len("class"), *(len(printable(each.name)) for each in classes))
    lines = [f"{'class':<{width}}  precision  recall      F1  pictures  most often taken for"]
    for each in classes:
        other = f"{printable(each.taken_for[0][0])} {each.taken_for[0][1]}" if each.taken_for else "-"
        lines.append(
            f"{printable(each.name):<{width}}  {each.precision.value:9.4f}  {each.recall.value:6.4f}  {each.f1.value:6.4f}  "
            f"{each.num_images:8d}  {other}"
        )
    return lines


def labels_in_words(result: ProbeResult) -> tuple[str, str]:
    """How many labels are to be looked at, and how far to believe it."""
    count, main = len(result.candidates), result.findings
    if not main.beats_baseline:
        return (
            NOT_TOLD,
            "The head is not surely better than always saying one class: where it disagrees with a label, that says nothing.",
        )
    if not count:
        return "No label looks wrong", f"None of {images(main.num_images)}."
    belief = "A person decides."
    if main.accuracy.value < SURE_OF_LABELS:
        wrong = 100 * (1 - main.accuracy.value)
        belief = f"The head is wrong itself on {wrong:.0f} % of all, so many of these will be its own mistakes: a person decides."
    return f"{number_of(count, 'label')} to look at", f"Of {images(main.num_images)}, the most doubtful first. {belief}"


def _candidates_in_words(result: ProbeResult) -> list[str]:
    headline, belief = labels_in_words(result)
    lines = [f"{headline}: {belief}"]
    shown = result.candidates[:_SHOWN] if result.findings.beats_baseline else []
    for each in shown:
        lines.append(f"  {printable(each.file)}: {printable(each.suggested)}? ({100 * each.p_suggested:.0f} %)")
    if shown and len(result.candidates) > _SHOWN:
        lines.append(f"  and {len(result.candidates) - _SHOWN:,} more, which the page and --json list")
    return lines


def plain(text: str) -> str:
    """For a terminal: the spaces of a page that hold a number and its unit together are plain ones."""
    return text.replace("\N{NO-BREAK SPACE}", " ")
