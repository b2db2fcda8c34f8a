"""An image folder, a zip of one, or a dataset of the hub → rows, labels and class names, the same on every process.

`datasets` holds the rows. A folder is walked here and not by its imagefolder loader: that answers a stray image by
silently dropping every label, takes some class names for splits, follows no linked folders, unpacks whatever zip lies
about, and takes 0.3 ms a file. Images are not opened here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.data.table import LAYOUT, SPLIT_FOLDERS, ImageTable, is_hidden, looks_like_image, quoted


@dataclass
class _Scan:
    """What a walk over the folder found."""

    files: list[str]
    unreadable: dict[str, str]
    ignored: list[str]
    empty_folders: list[str]


def load_folder(source: str, root: Path) -> ImageTable:
    root = root.absolute()
    try:
        scan = _scan(root)
    except OSError as error:
        raise UserError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"'{source}' holds folders nested hundreds of levels deep. {LAYOUT}") from None
    depth, given = _check_layout(source, scan)
    if not scan.files:
        raise UserError(f"'{source}' holds no readable picture. {LAYOUT}")
    _check_names([str(root), *scan.files, *scan.unreadable])
    files = tuple(sorted(scan.files))
    class_names = tuple(sorted({name.split("/")[depth - 1] for name in [*files, *scan.unreadable]}))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[name.split("/")[depth - 1]] for name in files]
    return ImageTable(
        source=source,
        dataset=_rows_of([f"{root}/{name}" for name in files], labels, class_names),
        files=files,
        labels=np.array(labels, dtype=np.int64),
        class_names=class_names,
        given_parts=tuple(given[name.split("/")[0]] for name in files) if given else None,
        unreadable=scan.unreadable,
        ignored=tuple(scan.ignored),
    )


def _rows_of(paths: Sequence[str], labels: Sequence[int], class_names: Sequence[str]) -> datasets.Dataset:
    """The rows that the imagefolder loader would make: paths, not images, so that a million of them fit."""
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=list(class_names))}
    )
    rows = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    # A cast, because to be given images `from_dict` would go through them one by one.
    return rows.cast_column("image", datasets.Image(decode=False))


def _scan(root: Path) -> _Scan:
    """Walk the folder and what is linked into it: images by their ending, in sorted order; hidden files are passed over.

    Raises:
        OSError: a folder that cannot be listed.
    """
    scan = _Scan([], {}, [], [])

    def visit(folder: str, prefix: str) -> bool:
        """Returns whether anything that looks like an image lies below."""
        found = False
        with os.scandir(folder) as entries:
            ordered = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in ordered:
            name = prefix + entry.name
            named_like_image = looks_like_image(entry.name)
            linked = entry.is_symlink()
            # `entry` knows without asking the disk, but raises for a link that leads to itself.
            is_folder = os.path.isdir(entry.path) if linked else entry.is_dir()
            if is_folder and linked and not _leads_to_a_class(folder, entry.path, prefix.count("/")):
                scan.ignored.append(name)
            elif is_folder:
                below = visit(entry.path, name + "/")
                if named_like_image and not below:
                    scan.unreadable[name] = "a folder, not a picture"
                elif not below:
                    scan.empty_folders.append(name)
                found |= below or named_like_image
            elif not named_like_image:
                scan.ignored.append(name)
            elif os.path.isfile(entry.path) if linked else entry.is_file():
                scan.files.append(name)
                found = True
            else:
                cause = "a link to a file that is not there" if linked else "not a regular file"
                scan.unreadable[name] = cause
                found = True
        return found

    visit(str(root), "")
    return scan


def _leads_to_a_class(folder: str, link: str, depth: int) -> bool:
    """Whether a link to a folder is followed: not where it leads back up, for nothing lies below that is not here already.

    And not deeper than classes lie, for folders linked into each other would be walked through in every order.
    """
    return depth < 2 and not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _check_names(names: Iterable[str]) -> None:
    """`datasets` keeps paths as UTF-8 text, takes "::" for a member of an archive and "$HOME" for what it stands for."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The name {name!r} is not UTF-8. Rename it.") from None
        if "::" in name or os.path.expandvars(name) != name:
            held = "'::'" if "::" in name else "'$' and the name of an environment variable"
            raise UserError(f"The name '{name}' holds {held}, which `datasets` takes for another file. Rename it.")


def _check_layout(source: str, scan: _Scan) -> tuple[int, dict[str, str] | None]:
    """See that every image lies at class depth.

    Returns:
        The depth of the class folder (1, or 2 under split folders) and the part that each split folder stands for.
    """
    if not scan.files and not scan.unreadable:
        raise UserError(f"'{source}' holds no pictures. {LAYOUT}")
    names = [*scan.files, *scan.unreadable]
    tops = sorted({name.split("/")[0] for name in names if "/" in name} | {f.split("/")[0] for f in scan.empty_folders})
    split_like = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    all_split_like = bool(split_like) and len(split_like) == len(tops)
    depth = 2 if all_split_like and any(name.count("/") >= 2 for name in names) else 1
    if split_like and depth == 1:
        raise UserError(
            f"'{source}' holds folders that look like parts of a split ({quoted(split_like)}) "
            f"{'with pictures of no class' if all_split_like else 'beside classes (' + quoted(set(tops) - set(split_like)) + ')'}. "
            f"{LAYOUT} If these really are classes, rename them."
        )
    stray = [name for name in names if name.count("/") != depth]
    if stray:
        inner = tops[0] if len(tops) == 1 and all(name.count("/") >= 2 for name in names) else None
        hint = f" Did you mean {Path(source) / inner}?" if inner else ""
        raise UserError(
            f"{len(stray)} pictures of '{source}' do not lie in a class folder, for example '{stray[0]}'.{hint} {LAYOUT} "
            "Move or remove them: with one of them the labels of all pictures would be lost."
        )
    empty = [folder for folder in scan.empty_folders if folder.count("/") < depth]
    if empty:
        raise UserError(f"'{source}' has folders without a picture: {quoted(empty)}. Fill or remove them.")
    classes = sorted({name.split("/")[depth - 1] for name in names})
    if len(classes) < 2:
        raise UserError(f"'{source}' has one class only ({quoted(classes)}); a classifier needs two or more. {LAYOUT}")
    if depth == 1:
        return depth, None
    return depth, _check_split_folders(source, names, split_like, classes)


def _check_split_folders(
    source: str, names: Sequence[str], split_like: dict[str, str], classes: Sequence[str]
) -> dict[str, str]:
    parts = sorted(split_like.values())
    if len(set(parts)) < len(parts):
        raise UserError(f"'{source}' has two folders for one part of the split: {quoted(split_like)}. Join them.")
    if "train" not in parts or len(parts) < 2:
        raise UserError(f"'{source}' has {quoted(split_like)}: it needs train, and val or test beside it.")
    for folder, part in sorted(split_like.items()):
        here = {name.split("/")[1] for name in names if name.startswith(folder + "/")}
        lacking = sorted(set(classes) - here)
        if lacking and part == "train":
            raise UserError(f"'{source}/{folder}' lacks the classes {quoted(lacking)}, so they could not be learned.")
    return split_like
