"""Images decoded once: a memory-mapped file that all processes of a machine share, and later runs, too.

A cache is a directory named after what it was made from: the content of every image, the law below and the versions of
the decoders. Another image makes another cache, so none can be out of date. It is written beside its place and renamed,
every image has a checksum, which is looked at when a process first uses the image, and a damaged one is decoded from
its file again. The longest unused caches give way to a new one; nothing else that lies there is touched.

Checksums tell of accidents, not of people: a cache that belongs to another user is not used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import remove_entry, replace_folder
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import map_in_order
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.jpeg import decode_pixels
from accel_flowers.data.decoding.pillow import MAX_PIXELS
from accel_flowers.data.table import content_digest

LAW = "1: upright RGB at full size, uint8 [H, W, 3], one after the other"
_PIXELS, _INDEX = "pixels", "index"
_NAME = re.compile(r"[0-9a-f]{32}(\.part)?|\.[0-9a-f]{32}\.(part|old)")
SAMPLED_IMAGES = 200
"""Images from which the size of all is estimated."""


class NoCache(Exception):
    """Decoded images cannot be kept; the message says why: too large, or the disk refuses.

    Args:
        cause: the message.
        more_helps: whether it is the limit of the recipe that is too small.
    """

    def __init__(self, cause: str, *, more_helps: bool = False) -> None:
        super().__init__(cause)
        self.more_helps = more_helps


def cache_key(contents: Sequence[str]) -> str:
    """The name of the cache of these images.

    Args:
        contents: digest of each encoded image, in order; empty where there is none to decode.
    """
    versions = [f"{name} {metadata.version(name)}" for name in ("pillow", "simplejpeg")]
    return hashlib.blake2b(repr((LAW, versions, list(contents))).encode(), digest_size=16).hexdigest()


class DecodedImages:
    """A cache, opened for reading; can be sent to other processes, each of which maps the file anew.

    Args:
        folder: the cache.
        num_images: how many it must hold.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder = folder
        try:
            if folder.lstat().st_uid not in (os.getuid(), 0):
                raise ValueError("it belongs to another user")
            # Offset, height, width and checksum of each image.
            table = _read_index(folder / _INDEX, num_images)
            descriptor = os.open(folder / _PIXELS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise ValueError(f"it cannot be read: {error}") from None
        # An open file with a lock on it: whoever needs room leaves this cache alone.
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        state = os.fstat(descriptor)
        self.num_bytes = state.st_size
        self._offsets, self._sizes, self._sums = table[:, 0], table[:, 1:3], table[:, 3].view(np.uint64)
        lengths = self._sizes.prod(axis=1) * 3
        fits = lengths.sum() == self.num_bytes and np.array_equal(self._offsets, lengths.cumsum() - lengths)
        if (
            not stat.S_ISREG(state.st_mode)
            or not fits
            or self._sizes.min(initial=0) < 0
            or self._sizes.max(initial=0) > MAX_PIXELS
        ):
            raise ValueError("its parts do not fit together")
        self._map: np.memmap[Any, Any] | None = None
        self._seen = bytearray(num_images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def pixels(self, number: int) -> Tensor | None:
        """An image, uint8 [H, W, 3], in place (not to be written to); None where the cache is damaged there, or gone."""
        if self._map is None:
            try:
                # Copy on write, because torch warns of memory that cannot be written; nobody writes.
                self._map = np.memmap(self.folder / _PIXELS, dtype=np.uint8, mode="c", shape=(self.num_bytes,))
            except (OSError, ValueError):
                return None
        height, width = self._sizes[number].tolist()
        start = int(self._offsets[number])
        pixels = self._map[start : start + height * width * 3].reshape(height, width, 3)
        if not self._seen[number]:
            if height == 0 or xxhash.xxh3_64_intdigest(pixels.data) != int(self._sums[number]):
                with suppress(OSError):
                    (self.folder / _INDEX).unlink(missing_ok=True)  # the next run makes it anew
                return None
            self._seen[number] = 1
        return torch.from_numpy(pixels)

    def size(self, number: int) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self._sizes[number].tolist()
        return height, width


def open_cache(
    root: Path, names: Sequence[str], contents: Sequence[str], read: Callable[[int], bytes], *, max_bytes: int
) -> tuple[DecodedImages, bool]:
    """Open the cache of these images, or make it.

    One process at a time is in here, so of several that want the same cache one makes it, and none is removed that
    another is about to open.

    Args:
        root: where caches lie.
        names: of the images, for messages.
        contents: digest of each encoded image (see `content_digest`); empty where there is none to decode.
        read: number → encoded image.
        max_bytes: what all caches in `root` may take together.

    Returns:
        The cache, and whether it was made now.

    Raises:
        NoCache: it would take more, or the disk refuses.
        UserError: an image is not what its digest says, or cannot be decoded.
    """
    folder = root / cache_key(contents)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(root / ".lock"):
            try:
                opened, made = DecodedImages(folder, len(contents)), False
            except ValueError:
                _make(folder, names, contents, read, max_bytes)
                opened, made = DecodedImages(folder, len(contents)), True
            os.utime(folder)
    except OSError as error:
        raise NoCache(f"'{root}' cannot hold them: {error.strerror or error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise NoCache(f"'{folder}' cannot be used: {error}") from None
    return opened, made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the kernel lets the next one in when one is killed.

    fcntl and not the library filelock: it has no shared lock, which readers hold on the pixels themselves, and where a
    file system has no locks it falls back to a marker file, which outlives a killed process.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(
    folder: Path, names: Sequence[str], contents: Sequence[str], read: Callable[[int], bytes], max_bytes: int
) -> None:
    """Write a cache; the caller has its lock."""

    def decode(number: int) -> np.ndarray:
        data = read(number)
        if content_digest(data) != contents[number]:
            raise UserError(
                f"{names[number]} is not what it was when the pictures were looked at, or not the same on all machines. "
                "Give all processes the same pictures, and leave them as they are while a run begins."
            )
        return decode_pixels(data, names[number]).numpy()

    remove_entry(folder)  # it is damaged, and its room is needed
    there = [number for number, content in enumerate(contents) if content]
    sample = there[:: max(1, len(there) // SAMPLED_IMAGES)]
    estimate = sum(decode(number).nbytes for number in sample) * len(there) // max(1, len(sample))
    room = _make_room(folder.parent, estimate, max_bytes)
    sizes = np.zeros((len(contents), 2), dtype=np.int64)
    sums = np.zeros(len(contents), dtype=np.uint64)
    with replace_folder(folder, mode=0o700) as partial:
        decoded = map_in_order(decode, there, threads=available_cores())
        with (partial / _PIXELS).open("wb") as file, closing(decoded):
            for number, pixels in zip(there, decoded, strict=True):
                sizes[number], sums[number] = pixels.shape[:2], xxhash.xxh3_64_intdigest(pixels.data)
                file.write(pixels.data)
                if file.tell() > room:
                    raise NoCache(_too_large(file.tell(), room), more_helps=True)
        num_bytes = sizes.prod(axis=1) * 3
        offsets = num_bytes.cumsum() - num_bytes
        _write_index(partial / _INDEX, np.column_stack([offsets, sizes, sums.view(np.int64)]))


def _write_index(path: Path, table: npt.NDArray[np.int64]) -> None:
    content = np.ascontiguousarray(table).tobytes()
    path.write_bytes(xxhash.xxh3_64_digest(content) + content)


def _read_index(path: Path, num_images: int) -> npt.NDArray[np.int64]:
    """int64 [N, 4], as it was written.

    Raises:
        OSError, ValueError: it is gone, or damaged.
    """
    data = read_file(path, max_bytes=8 + 32 * num_images)
    if len(data) != 8 + 32 * num_images or xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        raise ValueError("its index is damaged")
    return np.frombuffer(data[8:], dtype=np.int64).reshape(-1, 4)


def _make_room(root: Path, needed: int, max_bytes: int) -> int:
    """Remove the longest unused caches until there is room; gives the bytes that there are then.

    Raises:
        NoCache: there would not be enough even so.
    """
    if needed > max_bytes:
        raise NoCache(_too_large(needed, max_bytes), more_helps=True)
    taken = {path: sum(file.stat().st_size for file in path.iterdir()) for path in root.iterdir() if _is_cache(path)}
    for path in sorted(taken, key=lambda path: path.stat().st_mtime):
        if sum(taken.values()) + needed <= max_bytes:
            break
        if _is_unused(path):
            shutil.rmtree(path)
            del taken[path]
    room = max_bytes - sum(taken.values())
    if needed > room:
        raise NoCache(f"other runs use {_gib(sum(taken.values()))} of the {_gib(max_bytes)} allowed", more_helps=True)
    free = shutil.disk_usage(root).free
    if needed > 0.9 * free:
        raise NoCache(f"decoded they take some {_gib(needed)}, and the disk has {_gib(free)} left")
    return room


def _is_cache(path: Path) -> bool:
    """Whether we made it: whatever else people keep here is none of our business."""
    if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    try:
        return path.stat().st_uid == os.getuid() and {file.name for file in path.iterdir()} <= {_PIXELS, _INDEX}
    except OSError:
        return False


def _is_unused(folder: Path) -> bool:
    try:
        with (folder / _PIXELS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _too_large(needed: int, max_bytes: int) -> str:
    return f"decoded they take some {_gib(needed)}, more than the {_gib(max_bytes)} allowed"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2g} GiB"
