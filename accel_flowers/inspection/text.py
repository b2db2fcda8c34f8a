"""Findings → words: topics that the terminal and the page share, the terminal's table, and one JSON object."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from accel_flowers.core.errors import printable
from accel_flowers.core.order import natural_key
from accel_flowers.core.plural import in_sentence, number_of
from accel_flowers.data.decide_split import too_few_for_a_split
from accel_flowers.data.sources.walk import NO_IMAGE, left_out_in_words
from accel_flowers.inspection.findings import LONG_RATIO, MANY_CLASSES, SMALL_SIDE, Copies, Findings, ImageFacts

JSON_FORMAT = 1
Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""What harms first."""
_SHOWN = 8
"""Items of a topic that the terminal lists."""
_WIDTH, _INDENT = 100, " " * 9
_BAR = 24
"""Characters of the longest class's bar."""
_TURNS = {
    2: "mirrored", 3: "upside down", 4: "mirrored, upside down", 5: "mirrored, on its side", 6: "on its left side",
    7: "mirrored, on its side", 8: "on its right side",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One image, or a group of such, with what is to be said of it."""

    files: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Topic:
    """One kind of finding.

    Attributes:
        kind: its name for programs and anchors.
        level: "error" is for what harms (exit code 1), "warning" for a person to judge, "info" for what is handled anyway.
        title: number and kind, a phrase.
        advice: what it means and what to do.
        items: the images.
    """

    kind: str
    level: Level
    title: str
    advice: str
    items: tuple[Item, ...]


def topics(findings: Findings) -> list[Topic]:
    """All that was found, what harms first."""
    found = [
        _unreadable(findings),
        *_copies(findings.identical, "identical", "identical files", one_each=findings.label_counts is None),
        *_copies(findings.alike, "alike", "near duplicates", one_each=findings.label_counts is None),
        Topic(
            "far", "warning", f"{number_of(len(findings.far), 'picture')} far from every other",
            "Check these: wrong photos, screenshots and blank pages are among them, and so are good pictures that are "
            "unusual. Colours and detail are compared, not what is shown.",
            tuple(Item((p.file,), f"{distance:.1f} times the usual distance") for p, distance in findings.far),
        ),
        _few(findings),
        _unbalanced(findings),
        Topic(
            "small", "warning", f"{number_of(len(findings.small), 'picture')} smaller than {SMALL_SIDE} pixels",
            "They are enlarged to several times their size for most networks. Replace them with larger ones where you can.",
            tuple(Item((p.file,), _size(p)) for p in findings.small),
        ),
        Topic(
            "long", "warning", f"{number_of(len(findings.long), 'picture')} more than {LONG_RATIO:g} times as long as wide",
            "A square crop shows a small part of them. Cut out what matters.",
            tuple(Item((p.file,), _size(p)) for p in findings.long),
        ),
        Topic(
            "turned", "info", f"{number_of(len(findings.turned), 'picture')} turned by EXIF",
            "They are turned upright when they are read, here and in training. Other programs may show them on their side.",
            tuple(Item((p.file,), f"stored {_TURNS[p.seen.orientation]}") for p in findings.turned),
        ),
        Topic(
            "converted", "info", f"{number_of(len(findings.converted), 'picture')} in other colours than plain RGB or grey",
            "They become RGB when they are read: transparency is laid on white, deep greys are scaled.",
            tuple(Item((p.file,), f"{p.seen.mode} in {p.seen.format}") for p in findings.converted),
        ),
        Topic(
            "ignored", "info", number_of(len(findings.ignored), "file that is no picture by name", many="files that are no pictures by name"),
            "They are ignored.",
            tuple(Item((name,), "") for name in findings.ignored),
        ),
        *(
            Topic("note", "info", note, "So the data set is understood, here and in training.", (Item((), note),))
            for note in findings.notes
        ),
        Topic(
            "left-out", "info", left_out_in_words({why: n for why, n in findings.left_out.items() if why != NO_IMAGE}),
            "They are passed over, here and in training.",
            tuple(Item((), f"{number:,} {why}") for why, number in findings.left_out.items() if why != NO_IMAGE),
        ),
    ]  # fmt: skip
    return sorted((topic for topic in found if topic.items), key=lambda topic: LEVELS.index(topic.level))


def _unreadable(findings: Findings) -> Topic:
    return Topic(
        "unreadable", "error", f"{number_of(len(findings.unreadable), 'file')} that cannot be read",
        "Repair or remove them: training stops at them, or leaves them out with --data.on-bad-image skip.",
        tuple(Item((name,), cause) for name, cause in findings.unreadable.items()),
    )  # fmt: skip


def _copies(groups: Sequence[Copies], kind: str, name: str, *, one_each: bool) -> Iterator[Topic]:
    for across in (True, False):
        chosen = [group for group in groups if group.harmful == across]
        where, advice = "", "One of each is enough."
        if not across and kind == "alike":
            advice = (
                "One of each is enough. A split that is drawn keeps identical files on one side, but not these: "
                "--split RUN_DIR/split.json shows those across parts."
            )
        if across:
            classes = any(len(group.class_names) > 1 for group in chosen)
            parts = any(len(group.parts) > 1 for group in chosen)
            where = " across " + " and ".join(["classes" if one_each else "labels"] * classes + ["parts"] * parts)
            if classes:
                right = "keep it in the right class" if one_each else "give all of them all that are right"
                advice = f"The same image has two different labels: {right}. "
            else:
                advice = ""
            advice += "The model would be evaluated on images that it was trained on: keep each in one part. " * parts
        yield Topic(
            f"{kind}-across" if across else kind,
            "error" if across else "warning",
            f"{number_of(len(chosen), 'group')} of {name}{where}",
            advice.strip(),
            tuple(Item(tuple(p.file for p in group.images), _stands_in(group)) for group in chosen),
        )


def _stands_in(group: Copies) -> str:
    told = ["under " + " and ".join(group.class_names)] if len(group.class_names) > 1 else []
    told += ["in " + " and ".join(group.parts)] if len(group.parts) > 1 else []
    return ", ".join(told)


def _few(findings: Findings) -> Topic:
    return Topic(
        "few", "error" if findings.cannot_be_split else "warning",
        f"{number_of(len(findings.few), 'class')} too small to be split".replace("classs", "classes"),
        too_few_for_a_split(findings.few, findings.parts_to_draw) if findings.few else "",
        tuple(Item((), f"{name}: {number:,}") for name, number in findings.few.items()),
    )  # fmt: skip


def _unbalanced(findings: Findings) -> Topic:
    sizes = findings.class_sizes
    most, least = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
    if findings.label_counts is None:
        score, ways = (
            "Accuracy",
            "--data.sampling balanced, --loss.class-weights balanced or --loss.name logit_adjusted",
        )
    else:
        score, ways = "Micro F1", "--loss.class-weights balanced"
    return Topic(
        "unbalanced", "warning", "classes of very different size",
        f"{in_sentence(most)} has {sizes[most]:,} pictures, {in_sentence(least)} has {sizes[least]:,}.{_tail(findings)} {score} is dominated "
        f"by the large classes: add pictures to the small ones, compare recall by class, and try one of {ways}.",
        (Item((), f"{most} {sizes[most]:,}, {least} {sizes[least]:,}"),) if findings.unbalanced else (),
    )  # fmt: skip


def _tail(findings: Findings) -> str:
    """How long the tail is, where there are classes enough for one."""
    tail = findings.tail
    if len(findings.class_sizes) < MANY_CLASSES or not tail:
        return ""
    head = len(findings.class_sizes) - len(tail)
    share = sum(findings.class_sizes[name] for name in tail) / sum(findings.class_sizes.values())
    return (
        f" The long tail: half of all pictures are in the {number_of(head, 'largest class', many='largest classes')}; of the {len(findings.class_sizes):,}, the "
        f"{len(tail):,} others have from {findings.class_sizes[tail[0]]:,} to {findings.class_sizes[tail[-1]]:,} each, {share:.0%} together."
    )


def _size(image: ImageFacts) -> str:
    return f"{image.seen.width} x {image.seen.height}"


def headline(findings: Findings) -> str:
    """The answer in one sentence."""
    found = topics(findings)
    errors = [topic.title for topic in found if topic.level == "error"]
    warnings = sum(topic.level == "warning" for topic in found)
    start = f"{number_of(findings.num_images, 'picture')}, {number_of(len(findings.class_counts), 'class')}"
    start = start.replace("classs", "classes")
    answer = f"errors: {', '.join(errors)}" if errors else "no errors"
    return f"{start}; {answer}" + (f"; {number_of(warnings, 'warning')}" if warnings else "")


def sizes_in_words(findings: Findings) -> str:
    """Sizes of the images, upright."""
    if not findings.sizes:
        return "none"
    if len(findings.sizes) == 1:
        ((width, height),) = findings.sizes
        return f"all {width} x {height}"
    by_area = sorted(findings.sizes, key=lambda size: (size[0] * size[1], size))
    assert findings.median_size is not None
    (first, *_), median, (*_, last) = by_area, findings.median_size, by_area
    return f"{first[0]} x {first[1]} to {last[0]} x {last[1]}, median {median[0]} x {median[1]}"


def counts_in_words(counts: dict[str, int]) -> str:
    """For example "RGB 1,423, L 2"."""
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"


def labels_in_words(findings: Findings) -> str:
    """How many labels the images have, where they may have several; else empty."""
    if findings.label_counts is None:
        return ""
    total = sum(findings.label_counts.values())
    mean = sum(number * count for number, count in findings.label_counts.items()) / max(1, total)
    told = ", ".join(f"{number} on {count:,}" for number, count in findings.label_counts.items())
    return f"{mean:.2f} a picture: {told}; {number_of(findings.without_label, 'picture')} without a label"


def in_words(findings: Findings) -> str:
    """For the terminal: the answer first, then each topic, then the tables."""
    lines = [headline(findings), ""]
    for topic in topics(findings):
        lines.append(f"{topic.level.upper():<7}  {topic.title}")
        listed = [item for item in topic.items if item.files]  # of classes the advice names all
        lines += [f"{_INDENT}{_item(item)}" for item in listed[:_SHOWN]]
        if len(listed) > _SHOWN:
            lines.append(f"{_INDENT}and {len(listed) - _SHOWN:,} more: --json and --html FILE list them")
        if topic.level != "info":
            lines.append(textwrap.fill(topic.advice, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))
        lines.append("")
    lines += _class_table(findings)
    lines += [
        "",
        *([f"labels   {labels}"] if (labels := labels_in_words(findings)) else []),
        f"sizes    {sizes_in_words(findings)}",
        f"colours  {counts_in_words(dict(findings.modes))}",
        f"files    {counts_in_words(dict(findings.formats))}",
    ]
    return "\n".join(lines)


def _item(item: Item) -> str:
    return " = ".join(map(printable, item.files)) + (f": {printable(item.note)}" if item.note else "")


def parts_of(findings: Findings) -> list[str]:
    """Parts that hold an image, in their usual order; none where there are no parts."""
    there = {part for counts in findings.class_counts.values() for part in counts if part}
    return [part for part in ("train", "val", "test") if part in there]


def _class_table(findings: Findings) -> list[str]:
    parts, sizes = parts_of(findings), findings.class_sizes
    width = max(len("class"), *(len(printable(name)) for name in sizes))
    lines = [f"{'class':<{width}}  pictures" + "".join(f"{part:>8}" for part in parts)]
    largest = max(1, *sizes.values())
    for name, size in sorted(sizes.items(), key=lambda item: natural_key(item[0])):
        counts = "".join(f"{findings.class_counts[name].get(part, 0):8,}" for part in parts)
        lines.append(f"{printable(name):<{width}}  {size:8,}{counts}  {'█' * round(_BAR * size / largest)}".rstrip())
    return lines


def as_json(findings: Findings) -> dict[str, Any]:
    """One object for programs; nothing is left out."""
    return {
        "format": JSON_FORMAT,
        "source": findings.source,
        "harmful": findings.harmful,
        "pictures": findings.num_images,
        "classes": {
            name: {"pictures": sum(counts.values()), **{part: number for part, number in counts.items() if part}}
            for name, counts in findings.class_counts.items()
        },
        **({"labels": {str(n): count for n, count in findings.label_counts.items()}} if findings.label_counts else {}),
        "unbalanced": findings.unbalanced,
        "too_small_to_split": dict(findings.few),
        "unreadable": [{"file": name, "cause": cause} for name, cause in findings.unreadable.items()],
        "identical": [_group_as_json(group) for group in findings.identical],
        "alike": [_group_as_json(group) for group in findings.alike],
        "far": [{"file": image.file, "times_usual": round(distance, 3)} for image, distance in findings.far],
        "small": [_size_as_json(image) for image in findings.small],
        "long": [_size_as_json(image) for image in findings.long],
        "turned": [{"file": p.file, "orientation": p.seen.orientation} for p in findings.turned],
        "converted": [{"file": p.file, "mode": p.seen.mode, "kind": p.seen.format} for p in findings.converted],
        "modes": dict(findings.modes),
        "kinds": dict(findings.formats),
        "sizes": [{"width": w, "height": h, "pictures": number} for (w, h), number in findings.sizes.items()],
        "ignored": list(findings.ignored),
        "left_out": dict(findings.left_out),
        "notes": list(findings.notes),
    }


def _group_as_json(group: Copies) -> dict[str, Any]:
    return {
        "files": [image.file for image in group.images],
        "classes": list(group.class_names),
        "parts": list(group.parts),
        "harmful": group.harmful,
    }


def _size_as_json(image: ImageFacts) -> dict[str, Any]:
    return {"file": image.file, "width": image.seen.width, "height": image.seen.height}
