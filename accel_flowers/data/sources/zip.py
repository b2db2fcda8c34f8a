"""A zip of a folder, unpacked once."""

from __future__ import annotations

import errno
import hashlib
import logging
import lzma
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import make_folder_once, refused
from accel_flowers.core.plural import number_of
from accel_flowers.data.sources.walk import is_hidden, looks_like_image
from accel_flowers.data.sources.zip_names import name_members
from accel_flowers.data.table import LAYOUT

_log = logging.getLogger(__name__)

_ALWAYS_UNPACKED, _MAX_GROWTH = 2**30, 20
"""Bytes that any zip may unpack to, and how many times its own size a larger one may."""


def unzip(path: Path) -> Path:
    """Unpack next to the caches of `datasets`, once for each state of the file."""
    import datasets  # seconds that no folder needs

    state = path.stat()
    key = hashlib.blake2b(
        f"names 2|{path.absolute()}|{state.st_size}|{state.st_mtime_ns}".encode(), digest_size=8
    ).hexdigest()
    target = Path(datasets.config.HF_DATASETS_CACHE) / "accel_flowers_zip" / f"{path.stem}-{key}"
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked_size(path, archive)
            name_members(path, archive)
            members = _visible_members(path, archive)
            if not members:
                raise UserError(f"The zip '{path}' holds no pictures. {LAYOUT}")
            if target.is_dir():
                _mend(target, archive, members)
                return target
            with make_folder_once(target) as partial:
                for member in members:
                    archive.extract(member, partial)
    except UserError:
        raise
    except OSError as error:
        place = refused(error)
        of_its_names = error.errno in (errno.ENOTDIR, errno.EEXIST) and target.parent.is_dir()
        if place is None or of_its_names or error.filename == str(path):
            raise UserError(f"The zip '{path}' cannot be unpacked: {error.strerror or error}.") from None
        raise UserError(
            f"The zip '{path}' is unpacked in '{target.parent}', which cannot be written ({place}). Give another "
            "place with the environment variable HF_HOME, or unpack it yourself and give the folder."
        ) from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise UserError(
            f"The zip '{path}' cannot be unpacked: {str(error).rstrip('.') or 'it is cut short'}."
        ) from None
    return target


def _mend(target: Path, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> None:
    """Bring back what a cleaner of temporary files has taken from an unpacked zip; another run may be reading the rest."""
    lost = [member for member in members if not _is_whole(target / member.filename, member)]
    if not lost:
        return
    _log.info(f"{number_of(len(lost), 'file')} of the unpacked zip gone from {target}: unpacked again")
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        for member in lost:
            unpacked = Path(archive.extract(member, aside))
            place = target / os.path.relpath(unpacked, aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            unpacked.replace(place)


def _is_whole(file: Path, member: zipfile.ZipInfo) -> bool:
    try:
        state = os.lstat(file)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size == member.file_size


def _check_unpacked_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip that would fill the disk; images hardly get smaller in a zip. No member unpacks to more than it says.

    Raises:
        UserError: with both sizes.
    """
    packed, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if unpacked > max(_MAX_GROWTH * packed, _ALWAYS_UNPACKED):
        raise UserError(
            f"The zip '{path}' has {packed:,} bytes and would unpack to {unpacked:,}: that is no zip of pictures. Where "
            "you trust it, unpack it yourself and give the folder."
        )


def _visible_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files inside, without hidden ones.

    Raises:
        UserError: a name that leads out of the folder, or that stands there twice; nothing is unpacked then.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"The zip '{path}' holds '{member.filename}', which leads out of its folder. Make it anew.")
        if not member.filename:
            raise UserError(f"The zip '{path}' holds a file without a name. Make it anew.")
        if not member.is_dir() and not any(is_hidden(part) for part in name.parts):
            if str(name) in members:
                raise UserError(f"The zip '{path}' holds '{name}' twice, of which one would be lost. Make it anew.")
            members[str(name)] = member
    return list(members.values())


def inner_folder(folder: Path) -> Path:
    """People zip the folder itself: step into it where nothing else holds images."""
    while True:
        entries = list(folder.iterdir())
        inner = [entry for entry in entries if entry.is_dir()]
        if len(inner) != 1 or any(looks_like_image(entry.name) for entry in [*entries, *inner[0].iterdir()]):
            return folder
        folder = inner[0]
