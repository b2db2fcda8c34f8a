"""Rows of numbers by the content that they were made from: kept between runs, and whole after a kill at any moment.

A store is a folder. Every run that has something to add writes two files of its own, to which it appends: rows, and an index
with the digest of the content and a checksum of the row. A row counts once its entry in the index is whole and its checksum is
right; what a kill or a power cut tore is made again. Nothing is ever changed in place, so several runs may use a store at once.

Checksums tell of accidents, not of people: a store that belongs to another user is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_text_durably
from accel_flowers.core.reading import parse_json, read_text

Keys = npt.NDArray[np.bytes_]
"""S16 [N]: one for each content."""
_ENTRY = np.dtype([("key", "S16"), ("checksum", "<u8")])
_NAME = re.compile(r"[0-9a-f]{16}")
_FOLDER = re.compile(r"[0-9a-f]{32}")
_ROWS, _INDEX, _ABOUT = ".rows", ".index", "about.json"
_MAX_ABOUT = 2**20
_CHECKED_AT_ONCE = 4096
"""Rows that are looked at together; bounds the memory."""
MAX_BYTES = 32 * 2**30
"""Of all stores of a user: features of six million pictures, 1,280 numbers each."""


def keys_of(digests: Sequence[str]) -> Keys:
    """The keys of encoded images.

    Args:
        digests: of each, as `content_digest` or the data set gives them.
    """
    return np.array([hashlib.blake2b(each.encode(), digest_size=16).digest() for each in digests], dtype="S16")


class RowStore:
    """Rows of one kind, by the content that they were made from.

    Args:
        folder: of the store; it is made where there is none.
        width: numbers in a row.
        dtype: of the numbers.

    Raises:
        UserError: the folder belongs to another user.
        OSError: it cannot be made or read.
    """

    def __init__(self, folder: Path, width: int, dtype: npt.DTypeLike) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.lstat().st_uid not in (os.getuid(), 0) or folder.is_symlink():
            raise UserError(
                f"'{folder}' belongs to another user, so nothing is read from it: remove it, or set XDG_CACHE_HOME."
            )
        self.folder, self.width, self.dtype = folder, width, np.dtype(dtype)
        self._files: list[npt.NDArray[Any]] = []
        self._writer: tuple[IO[bytes], IO[bytes]] | None = None
        os.utime(folder)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Where the rows of these contents lie, looked up anew.

        Returns:
            int64 [N, 2]: file and row; -1 where there is none that is whole. To be given to `read`.
        """
        self._files = []
        places = np.full((len(keys), 2), -1, dtype=np.int64)
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        for name in sorted({entry.name for entry in os.scandir(self.folder) if entry.name.endswith(_INDEX)}):
            rows, index = self._open(self.folder / name)
            if rows is None:
                continue
            number = len(self._files)
            self._files.append(rows)
            # Of a content that comes several times, in a file or among the keys, any row will do: they are equal.
            sorted_entries = np.argsort(index["key"], kind="stable")
            own = index["key"][sorted_entries]
            found = np.searchsorted(own, in_order)
            found = np.minimum(found, len(own) - 1)
            hit = own[found] == in_order
            wanted, row = order[hit], sorted_entries[found[hit]]
            right = self._are_whole(rows, index["checksum"], row)
            places[wanted[right]] = np.stack([np.full(right.sum(), number), row[right]], axis=1)
        return places

    def _open(self, index_file: Path) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any]]:
        """Rows and index of one file, as many as are whole in both."""
        rows_file = index_file.with_suffix(_ROWS)
        index = np.empty(0, dtype=_ENTRY)
        with suppress(OSError, ValueError):
            index = np.fromfile(index_file, dtype=_ENTRY)
            row_bytes = self.width * self.dtype.itemsize
            number = min(len(index), rows_file.stat().st_size // row_bytes)
            if number:
                rows = np.memmap(rows_file, dtype=self.dtype, mode="r", shape=(number, self.width))
                return rows, index[:number]
        return None, index

    def _are_whole(
        self, rows: npt.NDArray[Any], checksums: npt.NDArray[Any], wanted: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        return np.array(
            [xxhash.xxh3_64_intdigest(rows[row].tobytes()) == int(checksums[row]) for row in wanted], dtype=bool
        )

    def read(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows at places that `find` gave, a copy, [n, width]."""
        made = np.empty((len(places), self.width), dtype=self.dtype)
        for number in np.unique(places[:, 0]).tolist():
            own = places[:, 0] == number
            made[own] = self._files[number][places[own, 1]]
        return made

    def append(self, keys: Keys, rows: npt.NDArray[Any]) -> None:
        """Add rows, which outlive this process from here on.

        Args:
            keys: S16 [n].
            rows: [n, width].

        Raises:
            OSError: the disk refuses.
        """
        if self._writer is None:
            name = secrets.token_hex(8)
            paths = [self.folder / f"{name}{suffix}" for suffix in (_ROWS, _INDEX)]
            self._writer = paths[0].open("xb"), paths[1].open("xb")
        written = np.ascontiguousarray(rows, dtype=self.dtype)
        entries = np.empty(len(keys), dtype=_ENTRY)
        entries["key"] = keys
        entries["checksum"] = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in written]
        for file, content in zip(self._writer, (written, entries), strict=True):  # in this order: an entry has its row
            file.write(content.tobytes())
            file.flush()

    @property
    def about(self) -> dict[str, Any]:
        """What was noted of the store; empty where nothing was, or the note is damaged."""
        try:
            noted = parse_json(read_text(self.folder / _ABOUT, max_bytes=_MAX_ABOUT))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def note(self, about: Mapping[str, Any]) -> None:
        """Note something of the store, for people and for later runs."""
        write_text_durably(self.folder / _ABOUT, json.dumps(about, indent=1) + "\n")

    def close(self) -> None:
        """Wait for the disk; nothing can be added any more."""
        if self._writer is not None:
            for file in self._writer:
                with file:
                    os.fsync(file.fileno())
            self._writer = None

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_room(root: Path, kept: Sequence[Path], *, max_bytes: int = MAX_BYTES) -> None:
    """Remove the longest unused stores of a folder while all together take more than the limit.

    Args:
        root: where they lie; nothing else there is touched.
        kept: stores that stay.
        max_bytes: the limit.
    """
    sizes = dict(_stores(root))
    for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) <= max_bytes:
            return
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]


def _stores(root: Path) -> Iterator[tuple[Path, int]]:
    """Folders that are stores of this user, and what they take."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        if _FOLDER.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
            files = list(folder.iterdir())
            ours = all(
                file.name == _ABOUT or (_NAME.fullmatch(file.stem) and file.suffix in (_ROWS, _INDEX)) for file in files
            )
            if ours and folder.stat().st_uid == os.getuid():
                yield folder, sum(file.stat().st_size for file in files)
