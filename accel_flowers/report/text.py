"""Findings → plain sentences: what a person would ask, answered first. No HTML here; the page escapes all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from accel_flowers.config.field_types import part_name as name_of
from accel_flowers.config.schema import MULTILABEL, Config
from accel_flowers.core.plural import in_sentence, number_of
from accel_flowers.html.pages import percent
from accel_flowers.metrics.intervals import Interval, Paired
from accel_flowers.report.findings import SURE, Calibration, ClassFindings, PartFindings
from accel_flowers.report.labels import LabelCandidate

LUCK = 0.05
"""A p-value below it is called no luck."""


def span(interval: Interval) -> str:
    """The ends of an interval in percent: "78.2 to 90.1 %"."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def images(count: int) -> str:
    """ "1 image", "2 images"."""
    return number_of(count, "picture")


def part_name(part: str) -> str:
    """What people call it."""
    return {"val": "validation", "train": "training"}.get(part, part)


def how_good(found: PartFindings) -> str:
    """The score and how sure it is."""
    if found.learnt:
        return f"{found.right:,} of {images(found.num_images)} right."
    return (
        f"{found.right:,} of {images(found.num_images)} right. On other pictures of this kind expect "
        f"{span(found.accuracy)} (95\N{NO-BREAK SPACE}% interval)."
    )


def names_of(names: Sequence[str], most: int = 3) -> str:
    """ "rose", "rose and tulip", "rose, tulip and 3 more"."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        shown.append(f"{more} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)


def least_ahead(margins: Sequence[float]) -> str:
    """Which answers are called the least confident, and by how much their first choice was ahead; margins in order."""
    ends = dict.fromkeys(f"{100 * margin:.1f}" for margin in (margins[0], margins[-1]))
    return f"Answers whose first choice was least ahead of the second, right or wrong: by {' to '.join(ends)} points."


def baseline(found: PartFindings) -> tuple[str, str]:
    """What no look at the images gets right; and, where the score is not surely above it, what that means (else empty)."""
    base = found.baseline
    always = f"saying {in_sentence(base.classes[0])}" if len(base.classes) == 1 else "saying one of the largest classes"
    if len(base.classes) == len(found.classes):
        always = "saying one and the same class"
    told = f"Always {always} would get {percent(base.share)}, guessing {percent(base.chance)}."
    if found.beats_baseline:
        return told, ""
    if found.accuracy.value > base.share:
        return told, (
            f"On so few pictures that cannot be told from always {always}, so nothing is concluded here from what the model says."
        )
    said, count = base.said
    return told, (
        f"That is no better than always {always}: the model has learnt nothing that shows here, and nothing is concluded "
        f"from what it says. It calls {count:,} of {images(found.num_images)} {said}."
    )


NOT_TOLD = "Not to be told yet"
"""The headline of what is not concluded from a model that is not surely better than always saying one class."""
_LEARNT = "All pictures here trained the network"
_NOT_BETTER = "The model is not surely better than always saying one class"


class Measured(Protocol):
    """A part whose score is told."""

    @property
    def part(self) -> str:
        """ "val" or "test"."""

    @property
    def learnt(self) -> bool:
        """Whether its images are those that trained the network."""


def how_measured(found: Measured, num_evaluations: int) -> str:
    """Whether the score can be taken at its word."""
    if found.learnt:
        return (
            "These are the pictures that trained it (debug.overfit_batches): the score says whether the network can learn at all, "
            "and nothing of other pictures."
        )
    if found.part == "test":
        return "Measured once, at the end, on pictures that neither training nor the choice of the best epoch saw."
    if num_evaluations > 1:
        return (
            f"There is no test part, so this is validation: the best of {num_evaluations} evaluations on the same pictures, "
            "so it is optimistically biased. For a figure to rely on, train with --data.split 80/10/10."
        )
    return "There is no test part, so this is validation. For a figure to rely on, train with --data.split 80/10/10."


def worst_class(found: PartFindings) -> tuple[str, str]:
    """Which class is worst, and why; all of those that are equally bad."""
    worst, ties = found.worst, found.all_worst
    if worst.f1.value == 1:
        return "No class stands out", f"Every one of the {images(found.num_images)} was right."
    if not found.beats_baseline:
        return NOT_TOLD, f"{_NOT_BETTER}: which class it is worst at says nothing."
    if len(ties) > 1:
        headline = f"{names_of([each.name for each in ties])} are worst, F1 {percent(worst.f1.value)}"
        missed, of = sum(each.missed for each in ties), sum(each.num_images for each in ties)
        return headline, f"They are equal: {missed:,} of their {images(of)} {_is(missed)} missed."
    headline = f"{worst.name} is worst, F1 {percent(worst.f1.value)}"
    return headline, " ".join([*_why(worst), _how_certain(worst, len(found.classes))])


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _most_often(pairs: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Who comes first in a list of (class, images), with all that come as often; and how often."""
    most = pairs[0][1]
    names = [name for name, count in pairs if count == most]
    return names_of(names) + (", each" if len(names) > 1 else ""), most


def _why(worst: ClassFindings) -> list[str]:
    sentences = []
    if worst.missed:
        name, count = _most_often(worst.taken_for)
        mostly = f"most often taken for {name} ({count})" if len(worst.taken_for) > 1 else f"all taken for {name}"
        if count == 1:
            mostly = "each taken for another class"
        if worst.missed == 1:
            mostly = f"taken for {name}"
        missed = f"{worst.missed} of its {worst.num_images} {_is(worst.missed)} missed"
        sentences.append(f"{missed}, {mostly}.")
    else:
        sentences.append(f"None of its {worst.num_images} is missed.")
    if worst.mistaken:
        wrong = sum(count for _, count in worst.mistaken)
        name, count = _most_often(worst.mistaken)
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


SURE_OF_LABELS = 0.9
"""Accuracy from which on a label that the model disputes is called wrong-looking: below it the mistakes of the model itself are
so many that most of what it disputes is right."""


def label_candidates(
    found: Sequence[LabelCandidate], looked_at: Mapping[str, int], not_looked_at: int, main: PartFindings
) -> tuple[str, str, str]:
    """How many photos look mislabelled, how far to believe it, and among which they were looked for.

    Args:
        found: the candidates.
        looked_at: held-out part → its images.
        not_looked_at: training images.
        main: of the part that the headline is of.
    """
    if main.learnt:
        method = "They are looked for among pictures that did not train the network, and here are none."
        return NOT_TOLD, f"{_LEARNT}, with their labels.", method
    num_looked_at = sum(looked_at.values())
    method = (
        f"How many labels of a class are wrong follows from the pictures of which the model is as sure of another class as it usually is "
        f"of that class's own (confident learning, cleanlab); named are as many, those whose label it believes least, among the {num_looked_at:,} of {names_of([part_name(part) for part in looked_at])}. The "
        f"{not_looked_at:,} training pictures cannot be judged so, as they trained the network with their labels: train again "
        "with another --train.seed, and others are held out."
    )
    if not main.beats_baseline:
        return NOT_TOLD, f"{_NOT_BETTER}: where it disagrees with a label, that says nothing of the label.", method
    accuracy = main.accuracy.value
    if not found:
        return "No photo looks mislabelled", f"None of {num_looked_at:,} held-out pictures.", method
    count, order = len(found), f"Of {num_looked_at:,} held-out ones, the most doubtful first."
    if accuracy < SURE_OF_LABELS:
        belief = (
            f"It is wrong itself on {100 * (1 - accuracy):.0f}\N{NO-BREAK SPACE}% of {part_name(main.part)} pictures, so many of "
            "these will be its own mistakes: a person decides."
        )
        return f"The model doubts {count} label{'' if count == 1 else 's'}", f"{order} {belief}", method
    looks = "photo looks" if count == 1 else "photos look"
    return f"{count} {looks} mislabelled", f"{order} A person decides.", method


def calibration(main: PartFindings) -> tuple[str, str]:
    """Whether the probabilities can be trusted, as `predict` gives them."""
    found = main.calibration
    if main.learnt:
        return NOT_TOLD, f"{_LEARNT}: of these it may be as sure as it likes."
    if not main.beats_baseline:
        return NOT_TOLD, f"{_NOT_BETTER}: its probabilities speak of nothing it has learnt."
    sure = ""
    if found.sure:
        sure = (
            f"Of the {images(found.sure)} it was at least {100 * SURE:.0f}\N{NO-BREAK SPACE}% sure of, "
            f"{percent(found.sure_right / found.sure)} were right (it expected {percent(found.sure_expected / found.sure)}). "
        )
    error = f"Calibration error (ECE) {percent(found.served.error)}"
    apart = abs(found.confidence - found.accuracy) > found.gap_by_chance
    beyond = f", further apart than chance explains ({100 * found.gap_by_chance:.1f} points)" if apart else ""
    means = f"On average it was {percent(found.confidence)} sure and {percent(found.accuracy)} right{beyond}. "
    served = f" {_temperature(main.part, found)}" if found.raw else ""
    if not found.trustworthy:
        side = "is too sure of itself" if found.confidence > found.accuracy else "is right more often than it says"
        within = ", which alone chance may give" if found.served.error <= found.by_chance else "; chance gives"
        return f"No: it {side}", f"{means}{error}{within} (up to {percent(found.by_chance)}).{served}"
    if not found.enough:
        return (
            "Too few pictures to tell",
            f"{means}On {images(main.num_images)} chance alone moves that by {100 * found.gap_by_chance:.1f} points and "
            f"the calibration error (ECE, here {percent(found.served.error)}) up to {percent(found.by_chance)}.{served}",
        )
    return (
        f"Yes, as far as {images(main.num_images)} can tell",
        f"{sure}{error}, no more than chance gives on so many pictures (up to {percent(found.by_chance)}).{served}",
    )


def _temperature(part: str, found: Calibration) -> str:
    assert found.raw is not None
    judged = ", each picture with one fitted on the others" if part == "val" else ""
    return (
        f"That is with the temperature {found.temperature:.2f} that predict applies, fitted on validation{judged}; without it "
        f"the error would be {percent(found.raw.error)}."
    )


def no_temperature(main: PartFindings) -> str:
    """Why the model has no temperature."""
    if main.learnt:
        return (
            "The model has no temperature: one that is fitted on pictures that trained it would say nothing of others."
        )
    return (
        "The model has no temperature: none makes pictures of validation that it was not fitted on more probable by more than "
        "chance."
    )


def parts_of_curves(counts: Mapping[str, int], config: Config, *, loss: bool) -> str:
    """Which images the curves of training and validation are of, and why the two differ where nothing is wrong.

    Args:
        counts: part → images.
        config: of the run.
        loss: whether the curves are losses; else accuracies.
    """
    also = []
    if config.loss.task == "manifold_mixup":
        also.append("on pictures that are mixed inside the network")
    elif (config.loss.task, config.loss.name) not in (("classification", "cross_entropy"), (MULTILABEL, "bce")):
        also.append("by a loss of its own")
    if config.loss.label_smoothing:
        also.append("with smoothed labels")
    if config.loss.class_weights != "none":
        also.append("with weighted classes")
    for spec in config.data.batch_transforms:
        small = name_of(spec) == "progressive_size"
        also.append("on smaller pictures at first" if small else f"on mixed pictures{_unmixed(spec)}")
    how = "".join(f", {each}" for each in also) if loss else ""
    if config.debug.overfit_batches:
        return (
            f"Training: {images(counts['train'])}, with dropout and each batch's own statistics, while the weights still move{how}. "
            "Validation: the same pictures, in evaluation mode."
        )
    return (
        f"Training: {images(counts['train'])}, as they are learnt from: with random changes and dropout where there are any, "
        f"while the weights still move{how}. Validation: {images(counts['val'])}, unchanged, after each epoch. So training may stand "
        f"{'above' if loss else 'below'} validation."
    )


def _unmixed(batch_transform: str | Mapping[str, Any]) -> str:
    """How long a run goes on without mixing, where its recipe says so."""
    if isinstance(batch_transform, str):
        return ""
    arguments = next(iter(batch_transform.values()), None)
    off = arguments.get("off_epochs") if isinstance(arguments, Mapping) else None
    if not isinstance(off, (int, float)) or not off:
        return ""
    return " until the last epoch" if off == 1 else f" until the last {number_of(off, 'epoch')}"


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
        return f"{second} and {first} are right equally often here", where
    if p_value < LUCK:
        side = "better" if difference.value > 0 else "worse"
        return f"{second} is {side} than {first}, and that is hardly luck ({p})", where
    return f"The difference between {second} and {first} could be luck ({p})", where


def balance(totals: Mapping[str, int]) -> str:
    """Whether the classes are about equally large; empty where that is not known, or one is empty.

    Args:
        totals: class → images.
    """
    if not totals or not min(totals.values()):
        return ""
    most, least = max(totals, key=lambda name: totals[name]), min(totals, key=lambda name: totals[name])
    ratio = totals[most] / totals[least]
    if ratio < 1.2:
        return "The classes are about equally large."
    advice = " Consider --loss.class-weights balanced." if ratio > 3 else ""
    return f"{in_sentence(most)} has {ratio:.1f} times as many pictures as {in_sentence(least)}.{advice}"


def sizes(found: Sequence[tuple[int, int]], num_files: int) -> str:
    """The smallest, the middle and the largest of (width, height); empty where none is known.

    Args:
        found: in pixels.
        num_files: images that there are; where fewer were measured, that is told.
    """
    if not found:
        return ""
    of = f" (of {len(found):,} measured)" if len(found) < num_files else ""
    if len(set(found)) == 1:
        return f"All are {_size(found[0])} pixels{of}."
    ordered = sorted(found, key=lambda size: size[0] * size[1])
    smallest, middle, largest = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"From {_size(smallest)} to {_size(largest)} pixels, median {_size(middle)}{of}."


def _size(size: tuple[int, int]) -> str:
    return "{}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{}".format(*size)
