"""Writing so that a crash leaves the old or the new, and a full disk says what could not be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from accel_flowers.core.errors import UserError


def user_cache() -> Path:
    """Where this project keeps what can be made again, between runs of one user."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else Path.home() / ".cache", "accel_flowers")


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
        raise UserError(f"{what} cannot be written: {_cause(error)}. {advice}") from None


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
    if path.is_dir():
        raise UserError(f"'{path}' is a folder. {advice}")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"'{path}' cannot be written: there is no folder '{path.parent}'. Make it, or give another file."
        )
    with writing(f"'{path}'", advice), tempfile.TemporaryFile(dir=path.absolute().parent):
        pass


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash there is the old content or the new one."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_text_durably(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_durably(path, text.encode())


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
