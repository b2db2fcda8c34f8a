"""Reading what may be anything: a pipe does not hang, a giant does not fill the memory, JSON does not end in a traceback.

Everything that is small and comes from outside (recipes, model cards, splits, states) goes through here, and so do
images. What the content means is not decided here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from accel_flowers.core.errors import UserError


def read_file(path: str | Path, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is a folder, a pipe or a device, or is larger; `strerror` tells which.
    """
    descriptor = _open_regular(path, max_bytes)
    try:
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(descriptor)


def read_start(path: str | Path, num_bytes: int) -> bytes:
    """The first bytes of a regular file of any size, or as many as there are.

    Raises:
        OSError: as `read_file`, but for the size.
    """
    descriptor = _open_regular(path, None)
    try:
        return os.read(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def open_file(path: str | Path, *, max_bytes: int) -> BinaryIO:
    """A regular file, opened for a reader that wants parts of it; the caller closes it.

    Raises:
        OSError: as `read_file`.
    """
    return open(_open_regular(path, max_bytes), "rb")


def _open_regular(path: str | Path, max_bytes: int | None) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or a pipe would wait for somebody who writes
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a NUL character", str(path)) from None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and found.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than the {max_bytes >> 20:,} MiB allowed", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_permitted(path: str | Path) -> None:
    """See that a file which is looked for may be: what stands in a forbidden folder looks like what is not there.

    Raises:
        UserError: the system does not permit it.
    """
    try:
        os.stat(path)
    except PermissionError:
        raise UserError(f"'{path}' cannot be read: permission denied. Mend the permissions of its folder.") from None
    except (OSError, ValueError):
        return


def read_text(path: str | Path, *, max_bytes: int) -> str:
    """The content of a regular file as UTF-8 text.

    Raises:
        OSError: as `read_file`, or for what is no such text.
    """
    try:
        return read_file(path, max_bytes=max_bytes).decode()
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"no UTF-8 text ({error})", str(path)) from None


def parse_json(text: str) -> Any:
    """JSON as plain Python values.

    Raises:
        ValueError: it is none, is nested too deeply, or has a key twice, of which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_key_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice!r} twice")
    return values
