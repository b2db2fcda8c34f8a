"""A folder of class folders → its table, the same on every process.

It is walked here and not by the imagefolder loader of `datasets`: that answers a stray image by silently dropping every
label, takes some class names for splits, follows no linked folders, unpacks whatever zip lies about, and takes 0.3 ms a
file. Nor does `datasets` hold the rows: to import it takes each process (and each loader worker) most of a second and
some 90 MB, and a list of names is all that there is to hold. Images are not opened here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES
from accel_flowers.data.sources.walk import Walk, walk
from accel_flowers.data.table import LAYOUT, SPLIT_FOLDERS, ImageTable, quoted


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Files below a folder, an `ImageSource`.

    Attributes:
        root: the folder, absolute.
        names: of the files, relative to it, sorted.
        labels: int64 [N].
        class_names: sorted.
        given_parts: part of each file, where the folder has train, val and test folders.
        digests: None, for nobody has looked at the files yet.
    """

    root: str
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    given_parts: tuple[str, ...] | None = None
    digests: None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> bytes:
        """The content of a file.

        Raises:
            OSError: it cannot be read, is no regular file, or is larger than any image.
        """
        return read_file(f"{self.root}/{self.names[row]}", max_bytes=MAX_BYTES)


def load_folder(source: str, root: Path) -> ImageTable:
    """Walk a folder and see that its labels would be right.

    Raises:
        UserError: a layout whose labels would be wrong, or a folder that cannot be read.
    """
    root = root.absolute()
    found = walk(root)
    depth, given = _check_layout(source, found)
    if not found.files:
        raise UserError(f"'{source}' holds no readable picture. {LAYOUT}")
    _check_names([str(root), *found.files, *found.unreadable])
    files = tuple(sorted(found.files))
    class_names = tuple(sorted({name.split("/")[depth - 1] for name in [*files, *found.unreadable]}))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name.split("/")[depth - 1]] for name in files], dtype=np.int64)
    parts = tuple(given[name.split("/")[0]] for name in files) if given else None
    return ImageTable(
        source=source,
        images=FolderImages(str(root), files, labels, class_names, parts),
        labels=labels,
        class_names=class_names,
        unreadable=found.unreadable,
        ignored=tuple(found.ignored),
        left_out=found.left_out,
    )


def _check_names(names: Iterable[str]) -> None:
    """split.json and the other files of a run are UTF-8."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The name {name!r} is not UTF-8. Rename it.") from None


def _check_layout(source: str, found: Walk) -> tuple[int, dict[str, str] | None]:
    """See that every image lies at class depth.

    Returns:
        The depth of the class folder (1, or 2 under split folders) and the part that each split folder stands for.
    """
    if not found.files and not found.unreadable:
        raise UserError(f"'{source}' holds no pictures. {LAYOUT}")
    names = [*found.files, *found.unreadable]
    tops = sorted(
        {name.split("/")[0] for name in names if "/" in name} | {f.split("/")[0] for f in found.empty_folders}
    )
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
    empty = [folder for folder in found.empty_folders if folder.count("/") < depth]
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
