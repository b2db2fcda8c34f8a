"""The images of a run: how many of each class in each part, their sizes, what is there twice, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from accel_flowers.data.label_sets import as_several, counts_in_words, encode
from accel_flowers.data.split import PARTS
from accel_flowers.data.table import HUB_PREFIX
from accel_flowers.metrics.multilabel import NO_LABEL
from accel_flowers.report import text as words
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import Plot, counts_plot, sizes_plot
from accel_flowers.report.read import RunRecord


@dataclass(frozen=True)
class Twins:
    """Identical files, with the classes and parts in which they stand."""

    files: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def torn(self) -> bool:
        """Under two classes."""
        return len(self.classes) > 1


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        num_images: in all parts.
        parts: those that hold an image.
        totals: part → images.
        counts: class → part → images; None where the class of some images is not known.
        labels: a sentence on the number of labels, where an image may have several; else empty.
        balance, sizes: sentences on the classes' and on the images' sizes; may be empty.
        twins: groups of identical files, those under two classes first.
        left_out: (file, cause).
        relabelled: images that label fixes give another class.
        plots: figures.
    """

    num_images: int
    parts: tuple[str, ...]
    totals: Mapping[str, int]
    counts: Mapping[str, Counter[str]] | None
    labels: str
    balance: str
    sizes: str
    twins: tuple[Twins, ...]
    left_out: tuple[tuple[str, str], ...]
    relabelled: int
    plots: tuple[Plot, ...]

    @property
    def torn(self) -> int:
        """Groups of identical files under two classes."""
        return sum(each.torn for each in self.twins)


def class_of_files(run: RunRecord, photos: Photos) -> dict[str, str]:
    """File → class, of those whose class is known.

    Of held-out images the predictions say it. Of the others no file of a run does; an archive or a dataset of the hub says it,
    where it can be read. In a folder it is the image's folder, as long as the folders of the held-out ones are their classes,
    too; never in a dataset of the hub, which has names such as "train/00000001".
    """
    said: dict[str, str] = {}
    relabelled = dict(run.split.relabelled)
    if run.predictions:
        for rows in run.predictions.parts.values():
            said |= zip(rows.files, (run.predictions.class_names[label] for label in rows.labels), strict=True)
    if (run.config.data.path or "").startswith(HUB_PREFIX) or photos.classes:
        known = {file: name for file, name in photos.classes.items() if name in run.split.class_names} | relabelled
        return {file: known[file] for file in run.split.parts if file in known} | said
    folders = {file: file.split("/")[-2] for file in run.split.parts if "/" in file} | relabelled
    if any(folders.get(file) != name for file, name in said.items()):
        return said
    return {file: name for file, name in folders.items() if name in run.split.class_names} | said


def labels_of_files(run: RunRecord, photos: Photos) -> dict[str, tuple[str, ...]]:
    """File → its classes, of those whose classes are known: one each, or any number."""
    if not run.several_labels:
        return {file: (name,) for file, name in class_of_files(run, photos).items()}
    names = set(run.split.class_names)
    known = {file: labels for file, labels in photos.labels.items() if names.issuperset(labels)}
    for rows in run.predictions.parts.values() if run.predictions else ():
        for file, labels in zip(rows.files, rows.labels, strict=True):
            known[file] = tuple(run.split.class_names[label] for label in np.flatnonzero(labels).tolist())
    return {file: known[file] for file in run.split.parts if file in known}


def find_data(run: RunRecord, photos: Photos) -> Data:
    """Count the images, and measure those that are there."""
    split, class_of = run.split, labels_of_files(run, photos)
    counts: dict[str, Counter[str]] = {name: Counter() for name in split.class_names}
    for file, part in split.parts.items():
        if file in class_of:
            for name in class_of[file]:
                counts[name][part] += 1
    known = all(file in class_of for file in split.parts)
    files = sorted(split.parts)
    sizes = list(photos.sizes(files).values()) if not photos.problem else []
    twins = [
        Twins(
            files=tuple(group),
            classes=tuple(sorted({", ".join(class_of[file]) or NO_LABEL for file in group if file in class_of})),
            parts=tuple(sorted({split.parts.get(file, "left out") for file in group})),
        )
        for group in split.duplicates
    ]
    plots = [counts_plot(counts)] if known else []
    labels_told = ""
    if known and run.several_labels:
        sets = encode([class_of[file] for file in split.parts], split.class_names, several=True)
        told = counts_in_words(as_several(sets, len(split.class_names)))
        labels_told = f"{told[0].upper()}{told[1:]}."
    if len(set(sizes)) > 1:
        plots.append(sizes_plot(sizes))
    return Data(
        num_images=len(split.parts),
        parts=tuple(part for part in PARTS if split.files_of(part)),
        totals={part: len(split.files_of(part)) for part in PARTS},
        counts=counts if known else None,
        labels=labels_told,
        balance=words.balance({name: counts[name].total() for name in counts} if known else {}),
        sizes=words.sizes(sizes, len(files)),
        twins=tuple(sorted(twins, key=lambda each: (not each.torn, each.files))),
        left_out=tuple(sorted(split.left_out.items())),
        relabelled=len(split.relabelled),
        plots=tuple(plots),
    )
