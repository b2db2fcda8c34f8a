"""Folds → a split for each: one fold tests, the next one chooses the epoch, the others are learned from."""

from __future__ import annotations

from pathlib import Path

from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split, save_split
from accel_flowers.data.table import ImageTable
from accel_flowers.probe.pictures import Pictures, find_pictures
from accel_flowers.training.build_data import check_source


def write_folds(config: Config, num_folds: int, directory: Path) -> list[str]:
    """Deal all images out and write `fold-1.json`, `fold-2.json`, ...

    Every image is in the test part of one of them; copies and near-copies of an image, and what `data.group_pattern` and
    `data.group_column` say belongs together, stay in one fold.

    Args:
        config: says which images, and the seed that the folds follow from.
        num_folds: three or more.
        directory: where they go.

    Returns:
        What people should know of them.

    Raises:
        UserError: images that cannot be read, classes too small for so many folds, or a data set with parts of its own.
    """
    table = load_images(check_source(config.data), **config.data.labels, **config.data.groups)
    if table.given_parts is not None:
        raise UserError(
            f"'{table.source}' has train and val or test parts of its own, so there is nothing to deal out into folds: give the "
            "folder of one part, or train with --seeds."
        )
    if table.several_labels:
        raise UserError(
            f"'{table.source}' has several labels a picture, and folds are dealt out by one class each: train with --seeds."
        )
    found, told = find_pictures(
        table,
        num_folds=num_folds,
        seed=config.train.seed,
        on_bad_image=config.data.on_bad_image,
    )
    if found.num_folds < num_folds:
        few = f"--folds {found.num_folds}" if found.num_folds > 2 else "more pictures of its smallest class"
        raise UserError(f"'{table.source}' is too small for {number_of(num_folds, 'fold')}: {told[-1]}. Take {few}.")
    for fold in range(num_folds):
        save_split(split_of(found, table, fold), directory / f"fold-{fold + 1}.json")
    learned = len(found.files) * (num_folds - 2) // num_folds
    told.append(
        f"each run learns from about {number_of(learned, 'picture')} of {len(found.files):,}: one fold is tested, one chooses the epoch; "
        "more folds leave more to learn from"
    )
    return [*table.notes, *told]


def split_of(found: Pictures, table: ImageTable, fold: int) -> Split:
    """The split of one run.

    Args:
        found: the images with their folds.
        table: the images, which says what their labels are.
        fold: the one that is held out to the end, from 0.
    """
    names = {fold: "test", (fold + 1) % found.num_folds: "val"}
    parts = {file: names.get(int(its_fold), "train") for file, its_fold in zip(found.files, found.folds, strict=True)}
    return Split(table.class_names, parts, dict(found.left_out), relabelled=table.relabelled)
