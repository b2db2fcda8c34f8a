"""All that `accel-flowers inspect` does, in its order: look, find, write the page and the sheet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from accel_flowers.config.loading import load_recipe
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import check_writable
from accel_flowers.data.decide_split import decide_split
from accel_flowers.data.label_fixes import relabel
from accel_flowers.data.label_sets import label_sets
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.walk import looks_like_image
from accel_flowers.data.split import PARTS, Split, load_split
from accel_flowers.data.table import ImageTable
from accel_flowers.inspection.analysis import Seen
from accel_flowers.inspection.findings import Findings, ImageFacts, find
from accel_flowers.inspection.near_duplicates import MAX_BITS
from accel_flowers.inspection.page import write_inspection_page
from accel_flowers.inspection.scan import look_at_table
from accel_flowers.metrics.multilabel import NO_LABEL

SHEET = Path("transforms.png")


def inspect_source(
    source: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    label_fixes: Path | None = None,
    split_file: Path | None = None,
    max_bits: int = MAX_BITS,
    num_workers: int | None = None,
    html: Path | None = None,
    recipe: str | None = None,
    sheet: Path = SHEET,
) -> Findings:
    """Inspect a data set.

    Args:
        source: folder, zip or hub dataset, as for training.
        label_column, label_separator, label_columns: where the labels stand in a dataset or a CSV, as of `load_images`.
        label_fixes: a CSV of pictures to leave out and of other classes for some; None = labels are right as they are.
        split_file: a run's split.json, for data without parts of its own: copies across its parts are told.
        max_bits: perceptual hashes of near duplicates differ in at most so many of 64 bits, 0 to 16.
        num_workers: processes; None = choose.
        html: where to write the page; None = nowhere.
        recipe: name or file of a recipe whose augmentations are to be shown; None = none.
        sheet: where to write these.

    Raises:
        UserError: a mistake in the folder, the split, the recipe or the words.
    """
    source = os.fspath(source)
    if not 0 <= max_bits <= 16:
        raise UserError(
            f"--near {max_bits} is not allowed: it is 0 to 16 bits; 8 finds resized and recompressed copies."
        )
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--num-workers {num_workers} is not allowed: it is 0 or more.")
    for path, flag in ((html, "--html"), (sheet if recipe else None, "--transforms-out")):
        if path is not None:
            check_writable(path, flag)  # now, and not after a long look at all images
    if recipe and looks_like_image(sheet.name) and _lies_in(sheet, source):
        raise UserError(
            f"'{sheet}' lies among the pictures of '{source}' and would be taken for one of them. Give another place with "
            f"--transforms-out ../{sheet.name}."
        )
    config = load_recipe(recipe) if recipe else None
    given = load_split(split_file) if split_file else None
    table = load_images(
        source,
        label_column=label_column,
        label_separator=label_separator,
        label_columns=label_columns,
        label_fixes=label_fixes,
    )
    if given is not None and label_fixes is None:
        table = relabel(table, given.relabelled)
    seen = look_at_table(table, num_workers=num_workers)
    findings = find(
        source,
        table.class_names,
        _images(table, seen, given),
        unreadable=table.unreadable,
        ignored=table.ignored,
        left_out=table.left_out,
        notes=table.notes,
        parts_to_draw=_parts_to_draw(table, given),
        max_bits=max_bits,
    )
    if html:
        write_inspection_page(html, findings, table)
    if config:
        from accel_flowers.inspection.sheet import write_sheet  # the one part that needs torch, which takes seconds

        split = decide_split(
            table,
            str(split_file) if split_file else config.data.split,
            seed=config.train.seed,
            on_bad_image="skip",
            examined=lambda: [(one.digest, one.cause) for one in seen],
        )
        write_sheet(sheet, table, split, config, recipe=recipe or "")
    return findings


def _lies_in(file: Path, source: str) -> bool:
    folder = os.path.expanduser(source)
    return os.path.isdir(folder) and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def _parts_to_draw(table: ImageTable, split: Split | None) -> tuple[str, ...]:
    """What a training would have to draw, by the usual split."""
    if split is not None:
        return ()
    if table.given_parts is None:
        return PARTS
    return () if "val" in table.given_parts else ("train", "val")


def _images(table: ImageTable, seen: Sequence[Seen], split: Split | None) -> list[ImageFacts]:
    parts: Mapping[str, str]
    if split is not None:
        parts = split.parts
        if not set(parts) & set(table.files):
            raise UserError(
                f"The split names none of the pictures of '{table.source}'. Give that of a run on this folder."
            )
    else:
        parts = dict(zip(table.files, table.given_parts, strict=True)) if table.given_parts else {}
    facts = []
    for name, labels, one in zip(table.files, label_sets(table.labels), seen, strict=True):
        names = tuple(table.class_names[label] for label in labels)
        own = names if table.several_labels else None
        facts.append(ImageFacts(name, ", ".join(names) or NO_LABEL, parts.get(name), one, own))
    return facts
