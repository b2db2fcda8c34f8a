"""How a folder says which class an image is of: by folders. What would give wrong labels is refused, all of it at once."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.sources.walk import Walk
from accel_flowers.data.table import LAYOUT, SPLIT_FOLDERS, quoted


@dataclass
class Layout:
    """Where the class of each image stands.

    Attributes:
        depth: of the class folder: 1, or 2 under folders of parts.
        given: folder → "train", "val" or "test"; None where there are no parts.
        unlabelled: images of a part that has no class folders: left out.
        notes: what a person should know of how the folder was understood.
        mistakes: why labels would be wrong.
    """

    depth: int = 1
    given: Mapping[str, str] | None = None
    unlabelled: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def read_layout(source: str, found: Walk, *, to_learn: bool) -> Layout:
    """See that every image lies in a class folder.

    Folders below a class belong to it. A part other than train that has no class folders, such as the test folder of a
    competition, is left out.

    Args:
        source: for messages.
        found: what lies there.
        to_learn: whether a training shall be made of it, which needs at least two classes, each with images, and a part
            to train on; what is only scored needs none of that.

    Raises:
        UserError: all mistakes in one message.
    """
    names = [*found.files, *found.unreadable]
    if not names:
        raise UserError(f"'{source}' holds no pictures. {LAYOUT}")
    tops = sorted({name.split("/")[0] for name in [*(n for n in names if "/" in n), *found.empty_folders]})
    split_like = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    all_split_like = bool(split_like) and len(split_like) == len(tops)
    layout = Layout(depth=2 if all_split_like and any(name.count("/") >= 2 for name in names) else 1)
    if split_like and layout.depth == 1:
        beside = quoted(set(tops) - set(split_like))
        raise UserError(
            f"'{source}' holds folders that look like parts of a split ({quoted(split_like)}) "
            f"{'with pictures of no class' if all_split_like else f'beside classes ({beside})'}. "
            f"{LAYOUT} If these really are classes, rename them."
        )
    if layout.depth == 2:
        names = _without_unlabelled(source, names, split_like, layout)
        split_like = {top: part for top, part in split_like.items() if not _is_unlabelled(top, layout)}
    _check_depth(source, names, tops, layout, to_learn)
    _check_empty(source, found.empty_folders, split_like, layout, to_learn)
    classes = sorted({one_form(name.split("/")[layout.depth - 1]) for name in names if name.count("/") >= layout.depth})
    if to_learn and len(classes) < 2 and not layout.mistakes:
        layout.mistakes.append(
            f"'{source}' has one class only ({quoted(classes)}); a classifier needs two or more. {LAYOUT}"
        )
    if layout.depth == 2:
        _check_parts(source, names, split_like, classes, layout, to_learn)
    if layout.mistakes:
        raise UserError("\n".join(layout.mistakes))
    return layout


def _is_unlabelled(top: str, layout: Layout) -> bool:
    return any(name.startswith(top + "/") for name in layout.unlabelled)


def _without_unlabelled(source: str, names: Sequence[str], split_like: Mapping[str, str], layout: Layout) -> list[str]:
    """The images that lie in class folders, or should; `layout` learns of the parts that have none."""
    inside: dict[str, list[str]] = defaultdict(list)
    for name in names:
        inside[name.split("/")[0]].append(name)
    for top, part in sorted(split_like.items()):
        if part != "train" and inside[top] and all(name.count("/") == 1 for name in inside[top]):
            layout.unlabelled |= frozenset(inside[top])
            layout.notes.append(
                f"'{source}/{top}' has no class folders: its {_pictures(len(inside[top]))} are left out, and nothing is "
                f"scored on them; accel-flowers predict MODEL {Path(source) / top} names them"
            )
    return [name for name in names if name not in layout.unlabelled]


def _check_depth(source: str, names: Sequence[str], tops: Sequence[str], layout: Layout, to_learn: bool) -> None:
    stray = [name for name in names if name.count("/") < layout.depth]
    deeper = [name for name in names if name.count("/") > layout.depth]
    too_high = bool(to_learn and layout.depth == 1 and len(tops) == 1 and deeper)
    parts_below = sorted({name.split("/")[layout.depth] for name in deeper} & SPLIT_FOLDERS.keys())
    if stray or too_high or parts_below:
        wrong = stray or deeper
        hint = f" Did you mean {Path(source) / tops[0]}?" if too_high and len(deeper) == len(names) else ""
        layout.mistakes.append(
            f"{number_of(len(wrong), 'picture')} of '{source}' not in a class folder, for example '{wrong[0]}'.{hint} {LAYOUT} "
            "Move or remove them: with one of them the labels of all pictures would be lost."
        )
    elif deeper:
        layout.notes.append(
            f"{_pictures(len(deeper))} in folders below a class count to it: '{deeper[0]}' to "
            f"'{deeper[0].split('/')[layout.depth - 1]}'"
        )


def _check_empty(
    source: str, empty_folders: Sequence[str], split_like: Mapping[str, str], layout: Layout, to_learn: bool
) -> None:
    """A class that is to be learned needs images, and so does a part; one that is only measured does not."""
    empty = [folder for folder in empty_folders if folder.count("/") < layout.depth]
    harmless = [
        folder
        for folder in empty
        if not to_learn or (folder.count("/") == 1 and split_like.get(folder.split("/")[0]) in ("val", "test"))
    ]
    if harmful := set(empty) - set(harmless):
        layout.mistakes.append(f"'{source}' has folders without a picture: {quoted(harmful)}. Fill or remove them.")
    if harmless:
        layout.notes.append(f"folders without a picture: {quoted(harmless)}")


def _check_parts(
    source: str,
    names: Sequence[str],
    split_like: Mapping[str, str],
    classes: Sequence[str],
    layout: Layout,
    to_learn: bool,
) -> None:
    parts = sorted(split_like.values())
    if len(set(parts)) < len(parts):
        layout.mistakes.append(
            f"'{source}' has two folders for one part of the split: {quoted(split_like)}. Join them."
        )
    if to_learn and "train" not in parts:
        layout.mistakes.append(f"'{source}' has {quoted(split_like)}: it needs train, and val or test beside it.")
    for folder, part in sorted(split_like.items()):
        here = {one_form(name.split("/")[1]) for name in names if name.startswith(folder + "/") and name.count("/") > 1}
        lacking = sorted(set(classes) - here)
        if to_learn and lacking and part == "train":
            layout.mistakes.append(
                f"'{source}/{folder}' lacks the classes {quoted(lacking)}, so they could not be learned."
            )
    layout.given = None if parts == ["train"] else split_like
    if layout.given is None:
        layout.notes.append(
            f"'{source}' has '{next(iter(split_like))}' alone, which is split as a folder without parts"
        )


def one_form(name: str) -> str:
    """A name in the form in which most systems write it (NFC): macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def join_forms(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Names of classes that read the same are one class.

    Returns:
        Each name → the class it stands for: itself, where no other reads the same; and a note for each that was joined.
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for name in names:
        forms[one_form(name)].add(name)
    classes = {name: read if len(spelt) > 1 else name for read, spelt in forms.items() for name in spelt}
    notes = [
        f"the class '{read}' is spelt in {len(spelt)} ways that read the same (of macOS and of others): one class"
        for read, spelt in sorted(forms.items())
        if len(spelt) > 1
    ]
    return classes, notes


def _pictures(number: int) -> str:
    return f"{number:,} picture{'' if number == 1 else 's'}"
