"""A source's name → its table: a folder, a zip of one, or a dataset of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.data.groups import named_groups
from accel_flowers.data.label_fixes import fix_labels, read_label_fixes
from accel_flowers.data.sources.folder import load_folder
from accel_flowers.data.sources.labels import LabelColumns
from accel_flowers.data.sources.walk import walk
from accel_flowers.data.sources.zip import inner_folder, unzip
from accel_flowers.data.table import HUB_PREFIX, LAYOUT, ImageTable


def load_images(
    source: str,
    *,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    label_fixes: str | Path | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
    to_learn: bool = True,
) -> ImageTable:
    """Load a folder, a .zip or `hub:OWNER/NAME`.

    Args:
        source: what the user gave.
        label_column: the column of classes of a dataset or of a file of labels; None = choose.
        label_separator: what stands there between several classes; None = there is one.
        label_columns: columns of 0 and 1 instead, one for each class; "all" alone = those that hold nothing else.
        label_fixes: a file of pictures to leave out and of classes that others have; None = labels are right as they are.
        group_column: column of a dataset or of a CSV that says which pictures belong together; None = nobody does.
        group_pattern: regular expression that finds it in the names: see `named_groups`.
        to_learn: whether a training shall be made of it. What is only scored may lack classes, and parts.

    Raises:
        UserError: nothing there, a layout whose labels would be wrong, or fixes that do not fit; the message says what to
            change.
    """
    fixes = read_label_fixes(label_fixes) if label_fixes is not None else None  # its mistakes come before a long walk
    table = _load(source, LabelColumns(label_column, label_separator, tuple(label_columns), group_column), to_learn)
    table = table if fixes is None else fix_labels(table, fixes)
    if group_pattern is not None:
        by_name = {f"data.group_pattern {group_pattern}": named_groups(table.files, group_pattern)}
        table = replace(table, groups={**table.groups, **by_name})
    return table


def _load(source: str, asked: LabelColumns, to_learn: bool) -> ImageTable:
    if source.startswith(HUB_PREFIX):
        from accel_flowers.data.sources.hub import load_hub  # and with it `datasets`, most of a second

        return load_hub(source, asked=asked, to_learn=to_learn)
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # unlike Path's methods, those of os.path answer for any name
        return _load_directory(source, path, asked, to_learn)
    if os.path.isfile(path) and path.suffix.lower() == ".zip":
        return _load_directory(source, inner_folder(unzip(path)), asked, to_learn)
    if os.path.exists(path):
        raise UserError(f"'{source}' is a file that is no .zip. {LAYOUT}")
    named_like_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    hub = f" For a dataset of the Hugging Face hub type {HUB_PREFIX}{source}." if named_like_hub else ""
    raise UserError(f"There is no folder '{source}'.{hub} {LAYOUT}")


def _load_directory(source: str, path: Path, asked: LabelColumns, to_learn: bool) -> ImageTable:
    if is_dataset_folder(path):
        from accel_flowers.data.sources.hub import load_dataset_folder

        return load_dataset_folder(source, path, asked=asked, to_learn=to_learn)
    return load_folder(source, path, asked=asked, to_learn=to_learn)


def is_dataset_folder(path: Path) -> bool:
    """Whether a folder holds no files of images but a dataset: what `save_to_disk` of `datasets` wrote, or Parquet files."""
    try:
        entries = list(os.scandir(path))
        inside = {entry.name for entry in entries}
        if "dataset_dict.json" in inside or {"state.json", "dataset_info.json"} <= inside:
            return True
        below = [
            name for entry in entries if entry.name == "data" and entry.is_dir() for name in os.listdir(entry.path)
        ]
    except OSError:
        return False  # the walk says why
    return any(name.lower().endswith(".parquet") for name in (*inside, *below)) and not walk(path).files
