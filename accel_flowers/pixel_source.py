"""Where the pixels of a run come from: chosen by the recipe or here, agreed between the processes, told in one line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from accel_flowers.config import DataConfig
from accel_flowers.data.cache import DecodedPictures, NoCache, open_cache
from accel_flowers.data.decode import BadImageError
from accel_flowers.data.folder import ImageTable, read_bytes
from accel_flowers.data.split import Split
from accel_flowers.data.transforms import PictureTransform
from accel_flowers.errors import UserError
from accel_flowers.files import user_cache
from accel_flowers.processes import on_each
from accel_flowers.progress import tell


def wants_cache(data: DataConfig, accelerator: Accelerator) -> bool:
    """Whether decoded pictures shall be kept, if that can be."""
    return data.pixels_from == "cache" or (data.pixels_from == "auto" and accelerator.device.type != "cpu")


def choose_way(data: DataConfig, transforms: Mapping[str, PictureTransform]) -> Mapping[str, PictureTransform]:
    """The transforms on the way that the recipe asks for."""
    if data.pixels_from != "plain":
        return transforms
    return {part: transform.plainly() for part, transform in transforms.items()}


def keep_decoded(
    data: DataConfig, table: ImageTable, split: Split, contents: Sequence[str], accelerator: Accelerator
) -> DecodedPictures | None:
    """The cache of decoded pictures, made now or before; collective.

    Args:
        data: where it lies and how large it may be.
        table: all pictures.
        split: which of them are used.
        contents: digest of each picture of the table.
        accelerator: the processes; those of one machine share a cache.

    Returns:
        None where it does not fit and the recipe does not insist.

    Raises:
        UserError: it does not fit and the recipe insists; a picture that changed meanwhile.
    """
    if not wants_cache(data, accelerator):
        _tell(accelerator, _WITHOUT[data.pixels_from])
        return None
    used = [content if name in split.parts else "" for name, content in zip(table.files, contents, strict=True)]

    def open_or_not() -> DecodedPictures | None:
        begun = time.monotonic()
        try:
            limit = int(data.cache_gib * 2**30)
            decoded, made = open_cache(cache_root(data), table.files, used, reader_of(table), max_bytes=limit)
        except NoCache as error:
            if data.pixels_from == "cache":
                raise UserError(
                    f"The pictures cannot be kept decoded: {error}. Allow more with --data.cache-gib, give another "
                    "place with --data.cache-dir, or take --data.pixels-from files."
                ) from None
            _tell(accelerator, f"pixels: decoded anew each time; {error}")
            return None
        how = f"made in {time.monotonic() - begun:.1f} s" if made else "made before"
        _tell(
            accelerator,
            f"pixels: from decoded pictures, {decoded.num_bytes / 2**30:.2f} GiB in {decoded.folder} ({how})",
        )
        return decoded

    return on_each(accelerator, open_or_not)


def reader_of(table: ImageTable) -> Callable[[int], bytes]:
    """Row of the table → its encoded picture.

    Raises:
        BadImageError: (of the function) it cannot be read.
    """

    def read(row: int) -> bytes:
        try:
            return read_bytes(table.dataset[row]["image"])
        except OSError as error:
            raise BadImageError(table.files[row], error.strerror or str(error)) from None

    return read


_WITHOUT = {
    "auto": "pixels: decoded anew each time, because on a CPU training takes longer than loading",
    "files": "pixels: decoded anew each time, as the recipe says",
    "plain": "pixels: Pillow and torchvision's transforms, as the recipe says",
}


def cache_root(data: DataConfig) -> Path:
    """Where caches of decoded pictures lie."""
    return user_cache() / "decoded" if data.cache_dir is None else Path(os.path.expanduser(data.cache_dir))


def _tell(accelerator: Accelerator, line: str) -> None:
    if accelerator.is_main_process:
        tell(line)
