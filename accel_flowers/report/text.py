"""Findings → plain sentences: what a person would ask, answered first. No HTML here; the page escapes all of it."""

from __future__ import annotations

from collections.abc import Sequence

from accel_flowers.metrics.intervals import Interval, Paired
from accel_flowers.report.findings import SURE, Answer, Calibration, ClassFindings, PartFindings
from accel_flowers.report.labels import LabelCandidate

LUCK = 0.05
"""A p-value below it is called no luck."""


def percent(share: float) -> str:
    """`0.8456` → "84.6 %"."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def span(interval: Interval) -> str:
    """The ends of an interval in percent: "78.2 to 90.1 %"."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def images(count: int) -> str:
    """ "1 image", "2 images"."""
    return f"{count:,} picture" + ("" if count == 1 else "s")


def part_name(part: str) -> str:
    """What people call it."""
    return {"val": "validation", "train": "training"}.get(part, part)


def how_good(found: PartFindings) -> str:
    """The score and how sure it is."""
    return (
        f"{found.right:,} of {images(found.num_images)} right. On other pictures of this kind expect "
        f"{span(found.accuracy)} (95\N{NO-BREAK SPACE}% interval)."
    )


def how_measured(part: str, num_evaluations: int) -> str:
    """Whether the score can be taken at its word."""
    if part == "test":
        return "Measured once, at the end, on pictures that neither training nor the choice of the best epoch saw."
    if num_evaluations > 1:
        return (
            f"There is no test part, so this is validation: the best of {num_evaluations} looks at the same pictures, which "
            "flatters. For a figure to rely on, train with --data.split 80/10/10."
        )
    return "There is no test part, so this is validation. For a figure to rely on, train with --data.split 80/10/10."


def worst_class(found: PartFindings) -> tuple[str, str]:
    """Which class is worst, and why."""
    worst = found.worst
    if worst.f1.value == 1:
        return "No class stands out", f"Every one of the {images(found.num_images)} was right."
    headline = f"{worst.name} is worst, F1 {percent(worst.f1.value)}"
    return headline, " ".join([*_why(worst), _how_certain(worst, len(found.classes))])


def _why(worst: ClassFindings) -> list[str]:
    sentences = []
    if worst.missed:
        name, count = worst.taken_for[0]
        mostly = f"most often taken for {name} ({count})" if len(worst.taken_for) > 1 else f"all taken for {name}"
        if count == 1:
            mostly = "each taken for another class"
        if worst.missed == 1:
            mostly = f"taken for {name}"
        missed = f"{worst.missed} of its {worst.num_images} {'is' if worst.missed == 1 else 'are'} missed"
        sentences.append(f"{missed}, {mostly}.")
    else:
        sentences.append(f"None of its {worst.num_images} is missed.")
    if worst.mistaken:
        wrong = sum(count for _, count in worst.mistaken)
        name, count = worst.mistaken[0]
        of = "of other classes" if len(worst.mistaken) > 1 else f"of {name}"
        mostly = f", most often of {name} ({count})" if len(worst.mistaken) > 1 and count > 1 else ""
        sentences.append(f"{images(wrong)} {of} {'was' if wrong == 1 else 'were'} called {worst.name}{mostly}.")
    return sentences


def _how_certain(worst: ClassFindings, num_classes: int) -> str:
    share = worst.lowest_f1
    if share > 0.95:
        return "That is no accident of these pictures: it stays worst in nearly every resample of them."
    if num_classes == 2 or share > 0.5:
        return f"It stays worst in {100 * share:.0f}\N{NO-BREAK SPACE}% of resamples of these pictures."
    return (
        f"With so few pictures that is not certain: it stays worst in only {100 * share:.0f}\N{NO-BREAK SPACE}% "
        "of resamples."
    )


def label_candidates(
    found: Sequence[LabelCandidate], looked_at: int, not_looked_at: int, accuracy: float
) -> tuple[str, str, str]:
    """How many photos look mislabelled, how far to believe it, and among which they were looked for."""
    method = (
        f"A picture is named when the model is as sure of another class as it usually is of that class's own pictures "
        f"(confident learning, cleanlab), among the {looked_at:,} of validation and test. The "
        f"{not_looked_at:,} training pictures cannot be judged so, as the network learnt their labels: train again with "
        "another --train.seed, and others are held out."
    )
    if not found:
        return "No photo looks mislabelled", f"None of {looked_at:,} held-out pictures.", method
    verb = "photo looks" if len(found) == 1 else "photos look"
    belief = "A person decides."
    if accuracy < 0.9:
        belief = (
            f"The model is wrong on {100 * (1 - accuracy):.0f}\N{NO-BREAK SPACE}% of all pictures, so many of these will "
            "be its own mistakes: a person decides."
        )
    return (
        f"{len(found)} {verb} mislabelled",
        f"Of {looked_at:,} held-out ones, the most doubtful first. {belief}",
        method,
    )


def calibration(found: Calibration) -> tuple[str, str]:
    """Whether the probabilities can be trusted."""
    sure = ""
    if found.sure:
        sure = (
            f"Of the {images(found.sure)} it was at least {100 * SURE:.0f}\N{NO-BREAK SPACE}% sure of, "
            f"{percent(found.sure_right / found.sure)} were right (it expected {percent(found.sure_expected / found.sure)}). "
        )
    error = f"Calibration error (ECE) {percent(found.raw.error)}"
    apart = abs(found.confidence - found.accuracy) > found.gap_by_chance
    beyond = f", further apart than chance explains ({100 * found.gap_by_chance:.1f} points)" if apart else ""
    means = f"On average it was {percent(found.confidence)} sure and {percent(found.accuracy)} right{beyond}. "
    if found.trustworthy:
        return (
            f"Yes, as far as {images(int(found.raw.counts.sum()))} can tell",
            f"{sure}{error}, no more than chance gives on so many pictures (up to {percent(found.by_chance)}).",
        )
    side = "is too sure of itself" if found.confidence > found.accuracy else "is right more often than it says"
    mends = ""
    if found.tempered is not None and found.temperature is not None:
        better = found.tempered.error < found.raw.error
        mends = (
            f" A temperature of {found.temperature:.2f}, fitted on validation, "
            f"{'lowers' if better else 'does not lower'} it: {percent(found.tempered.error)}."
        )
    return (
        f"No: it {side}",
        f"{means}{error}; chance gives up to {percent(found.by_chance)}.{mends}",
    )


def course_of_training(best_epoch: int | None, epochs: int, train_loss: float | None, val_loss: float | None) -> str:
    """What the curves say of the length of the training."""
    sentences = []
    if best_epoch is not None:
        sentences.append(f"Validation was best after epoch {best_epoch} of {epochs}.")
        if best_epoch == epochs and epochs > 1:
            sentences.append("That is the last: a longer training may gain more.")
        elif best_epoch <= 0.6 * epochs:
            sentences.append("From there on it gained nothing: a shorter training would do.")
    if train_loss is not None and val_loss is not None and val_loss > 2 * train_loss + 0.05:
        sentences.append(
            f"At the end the loss is {train_loss:.2f} on training pictures and {val_loss:.2f} on validation: it learns "
            "by heart. More pictures, stronger augmentation or fewer trained layers may help."
        )
    return " ".join(sentences)


def caption(answer: Answer) -> str:
    """What was said of an image."""
    if answer.right:
        return f"{answer.predicted} {percent(answer.probability)}, {answer.runner_up} {percent(answer.p_runner_up)}"
    return f"{answer.predicted} {percent(answer.probability)}, {answer.label} {percent(answer.p_label)}"


def verdict(first: str, second: str, paired: Paired, p_value: float) -> tuple[str, str]:
    """Whether the second run is better than the first, or lucky.

    Args:
        p_value: of McNemar's test, raised where there are several comparisons.
    """
    p = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"
    difference = paired.difference
    where = (
        f"On the same {images(paired.num_images)}: {second} alone is right on {paired.only_second}, {first} alone on "
        f"{paired.only_first}. Difference {points(difference.value)} points (95\N{NO-BREAK SPACE}% interval "
        f"{points(difference.low)} to {points(difference.high)})."
    )
    if difference.value == 0:
        return f"{second} and {first} are equally good", where
    ahead = f"{second} is {'better' if difference.value > 0 else 'worse'} than {first}"
    if p_value < LUCK:
        return f"{ahead}, and that is hardly luck ({p})", where
    return f"{ahead} here, but the difference could be luck ({p})", where
