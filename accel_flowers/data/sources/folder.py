"""A folder of class folders → its table, the same on every process.

It is walked here and not by the imagefolder loader of `datasets`: that answers a stray image by silently dropping every
label, takes some class names for splits, follows no linked folders, unpacks whatever zip lies about, and takes 0.3 ms a
file. Nor does `datasets` hold the rows: to import it takes each process (and each loader worker) most of a second and
some 90 MB, and a list of names is all that there is to hold. Images are not opened here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES
from accel_flowers.data.label_sets import Labels, encode
from accel_flowers.data.sources.labels import ANY_COLUMN, LabelColumns, Listed, read_group_column, read_label_files
from accel_flowers.data.sources.layout import join_forms, read_layout
from accel_flowers.data.sources.walk import Walk, walk
from accel_flowers.data.table import LAYOUT, ImageTable, quoted


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Files below a folder, an `ImageSource`.

    Attributes:
        root: the folder, absolute.
        names: of the files, relative to it, sorted.
        labels: int64 [N], or bool [N, C] where a file may have several.
        class_names: sorted.
        given_parts: part of each file, where the folder has train, val and test folders.
        digests: None, for nobody has looked at the files yet.
    """

    root: str
    names: tuple[str, ...]
    labels: Labels
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


def load_folder(source: str, root: Path, *, asked: LabelColumns = ANY_COLUMN, to_learn: bool = True) -> ImageTable:
    """Walk a folder and see that its labels would be right.

    Args:
        source: what the user gave.
        root: the folder.
        asked: where the classes, and groups, stand in a file of labels.
        to_learn: whether a training shall be made of it: see `read_layout`.

    Raises:
        UserError: a layout whose labels would be wrong, or a folder that cannot be read.
    """
    root = root.absolute()
    found = walk(root)
    _check_names([str(root), *found.files, *found.unreadable])
    groups = read_group_column(source, root, found, asked)
    if (listed := read_label_files(source, root, found, asked=asked)) is not None:
        return replace(_of_labels(source, root, found, listed, to_learn=to_learn), groups=groups)
    layout = read_layout(source, found, to_learn=to_learn)
    unreadable = {name: cause for name, cause in found.unreadable.items() if name not in layout.unlabelled}
    files = [name for name in found.files if name not in layout.unlabelled]
    if not files:
        raise UserError(f"'{source}' holds no readable picture. {LAYOUT}")
    classes, notes = join_forms(name.split("/")[layout.depth - 1] for name in [*files, *unreadable])
    given = layout.given
    table = _table(
        source,
        root,
        {name: (classes[name.split("/")[layout.depth - 1]],) for name in files},
        several=False,
        class_names=sorted(set(classes.values())),
        parts={name: given[name.split("/")[0]] for name in files} if given else None,
        found=found,
        unreadable=unreadable,
        notes=[*layout.notes, *notes],
    )
    return replace(table, groups=groups)


def _of_labels(source: str, root: Path, found: Walk, listed: Listed, *, to_learn: bool) -> ImageTable:
    """The table of a folder whose classes stand in a file of labels."""
    classes, notes = join_forms(label for labels in listed.labels.values() for label in labels)
    labels = {name: tuple(classes[label] for label in each) for name, each in listed.labels.items()}
    class_names = sorted({label for each in labels.values() for label in each})
    if to_learn and len(class_names) < 2:
        raise UserError(
            f"'{source}' has one class only ({quoted(class_names)}), as {listed.file} says; a classifier needs two or more."
        )
    return _table(
        source,
        root,
        labels,
        several=listed.several,
        class_names=class_names,
        parts=listed.parts,
        found=found,
        unreadable={**found.unreadable, **listed.missing},
        notes=[*listed.notes, *notes],
    )


def _table(
    source: str,
    root: Path,
    labels_of: Mapping[str, Sequence[str]],
    *,
    several: bool,
    class_names: Sequence[str],
    parts: Mapping[str, str] | None,
    found: Walk,
    unreadable: Mapping[str, str],
    notes: Sequence[str],
) -> ImageTable:
    files = tuple(sorted(labels_of))
    labels = encode([labels_of[name] for name in files], class_names, several=several)
    images = FolderImages(
        str(root), files, labels, tuple(class_names), tuple(parts[name] for name in files) if parts else None
    )
    return ImageTable(
        source=source,
        images=images,
        labels=labels,
        class_names=images.class_names,
        unreadable=unreadable,
        ignored=tuple(found.ignored),
        left_out=found.left_out,
        notes=tuple(notes),
    )


def _check_names(names: Iterable[str]) -> None:
    """split.json and the other files of a run are UTF-8."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The name {name!r} is not UTF-8. Rename it.") from None
