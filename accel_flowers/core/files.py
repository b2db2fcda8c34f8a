"""Writing so that a crash leaves the old or the new, and a full disk says what could not be written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from accel_flowers.core.errors import UserError

_FLUSHED_ONE_BY_ONE = 64
"""Files of a folder; to wait for the disk once for each of more would take longer than to flush all there is."""
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST, errno.EIO)
_CANNOT_BE_FLUSHED = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
)
"""What file systems answer that know no flush, most often of a folder: FUSE, SMB, Google Drive."""


def user_cache() -> Path:
    """Where this project keeps what can be made again, between runs of one user.

    Raises:
        RuntimeError: the user has no home directory.
    """
    return Path(platformdirs.user_cache_dir("accel_flowers", appauthor=False))


def refused(error: BaseException) -> str | None:
    """Which place refuses to be written and why, where an error says that it is one for downloads or caches."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in _REFUSALS:
            return f"'{behind.filename}': {behind.strerror}" if behind.filename else behind.strerror
        behind = behind.__cause__ or behind.__context__
    return None


@contextmanager
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn a write that the disk refuses into a message.

    Args:
        what: for example "The model 'runs/first/model'".
        advice: what to do about it, a sentence.

    Raises:
        UserError: `what` cannot be written, with the operating system's cause.
    """
    try:
        yield
    # torch and safetensors have errors of their own for a write that the disk refuses.
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = _cause(error)
        if cause in _FORBIDDEN:
            advice = advice.replace("Make room", "Mend the permissions")
        raise UserError(f"{what} cannot be written: {cause}. {advice}") from None


_FORBIDDEN = tuple(map(os.strerror, (errno.EACCES, errno.EPERM, errno.EROFS)))
"""Causes that no room would mend."""


def _cause(error: BaseException) -> str:
    """What the operating system said, also where a library hid it behind an error of its own."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.strerror:
            return behind.strerror
        behind = behind.__context__
    return str(error)


def check_writable(path: Path, flag: str) -> None:
    """See that a file can be written, before the work whose result it shall hold.

    Raises:
        UserError: its folder does not exist or refuses new files, or there is a folder of its name.
    """
    advice = f"Give another file with {flag} FILE."
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a folder. {advice}")
    if not os.path.isdir(path.absolute().parent):
        raise UserError(
            f"'{path}' cannot be written: there is no folder '{path.parent}'. Make it, or give another file."
        )
    with writing(f"'{path}'", advice), tempfile.TemporaryFile(dir=path.absolute().parent):
        pass


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file aside, then give it its name: after a crash or an error there is the old one, or the new one whole.

    One writer of a path at a time; what it writes goes to the disk before the name does.

    Args:
        path: the file, there or not.

    Yields:
        Where to write it: a path in the same folder at which nothing lies.
    """
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # of a writer that was killed
    try:
        yield partial
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.absolute().parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Fill a folder aside, then give it its name; the old one goes when the new one is whole and on the disk.

    A crash between the two renames leaves the old one beside its name: `restore_folder` brings it back, and so does the
    next writer. One writer of a path at a time.

    Args:
        path: the folder, there or not; folders above it are made.
        mode: permissions of the new folder, before the umask.

    Yields:
        Where to fill it: an empty folder beside `path`.

    Raises:
        OSError: the disk refuses; what was there is untouched.
    """
    partial, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    restore_folder(path)
    remove_entry(partial)  # of a writer that was killed
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir(mode=mode)
    try:
        yield partial
        _flush_folder(partial)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        flush_to_disk(path.absolute().parent)
    except BaseException:
        remove_entry(partial)  # it may hold the very room that is missing
        restore_folder(path)
        raise
    remove_entry(old)


@contextmanager
def make_folder_once(path: Path) -> Iterator[Path]:
    """Fill a folder aside that several processes may make at once: the first that is done gives it its name.

    Args:
        path: the folder; folders above it are made.

    Yields:
        Where to fill it: an empty folder beside `path`, this process's own.

    Raises:
        OSError: the disk refuses.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    remove_entry(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush_folder(partial)
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():
                raise  # else another process was quicker
        flush_to_disk(path.absolute().parent)
    finally:
        remove_entry(partial)


def remove_entry(path: Path) -> None:
    """Remove what lies there as far as that is possible: a folder with all in it, or a file, a link, a pipe.

    `shutil.rmtree` alone opens what it is given, and so waits for ever at a pipe (Python 3.11).
    """
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def restore_folder(path: Path) -> None:
    """Undo what a crash cut off between the two renames of `replace_folder`."""
    old = path.with_name(f".{path.name}.old")
    if not old.is_dir():
        return
    if path.exists():
        remove_entry(old)
    else:
        old.rename(path)


def _flush_folder(folder: Path) -> None:
    inside = [Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    _as_readable_as(folder, inside)
    if len(inside) > _FLUSHED_ONE_BY_ONE:
        os.sync()
        return
    for path in (*inside, folder):
        flush_to_disk(path)


def _as_readable_as(folder: Path, inside: Iterable[Path]) -> None:
    """Give files the permissions of their folder: safetensors keeps what it writes from all but their owner."""
    wanted = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in inside:
        found = path.lstat().st_mode
        if stat.S_ISREG(found) and stat.S_IMODE(found) & 0o666 != wanted:
            with suppress(OSError):  # a file system without permissions
                path.chmod(wanted | stat.S_IMODE(found) & 0o111)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash there is the old content or the new one."""
    with replace_file(path) as partial:
        partial.write_bytes(content)


def write_text_durably(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_durably(path, text.encode())


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, would outlive a power cut; where the file system knows no such
    wait, what it does by itself has to do.

    Raises:
        OSError: the disk is full or fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_BE_FLUSHED:
            raise


def point_to(link: Path, target: str) -> bool:
    """Set a symbolic link for people, replacing the one before: a convenience, which never ends a run.

    Args:
        link: where it lies.
        target: name of a folder beside it.

    Returns:
        Whether it is set: not so on file systems without links (exFAT, SMB, Google Drive), or where a copy of the run
        made a folder of the link.
    """
    fresh = link.with_name(f".{link.name}.part")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(link)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        with suppress(OSError):
            link.unlink(missing_ok=True)  # rather none than one to what is no longer so
        return False
    return True
