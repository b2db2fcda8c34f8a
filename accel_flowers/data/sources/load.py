"""A source's name → its table: a folder, a zip of one, or a dataset of the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.data.sources.folder import load_folder
from accel_flowers.data.sources.zip import inner_folder, unzip
from accel_flowers.data.table import HUB_PREFIX, LAYOUT, ImageTable


def load_images(source: str) -> ImageTable:
    """Load a folder, a .zip or `hub:OWNER/NAME`.

    Raises:
        UserError: nothing there, or a layout whose labels would be wrong; the message says what to change.
    """
    if source.startswith(HUB_PREFIX):
        from accel_flowers.data.sources.hub import load_hub  # and with it `datasets`, most of a second

        return load_hub(source)
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # unlike Path's methods, those of os.path answer for any name
        return load_folder(source, path)
    if os.path.isfile(path) and path.suffix.lower() == ".zip":
        return load_folder(source, inner_folder(unzip(path)))
    if os.path.exists(path):
        raise UserError(f"'{source}' is a file that is no .zip. {LAYOUT}")
    named_like_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    hub = f" For a dataset of the Hugging Face hub type {HUB_PREFIX}{source}." if named_like_hub else ""
    raise UserError(f"There is no folder '{source}'.{hub} {LAYOUT}")
