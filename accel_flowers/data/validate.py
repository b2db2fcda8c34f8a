"""Read every image once: which cannot be read, and the digest of each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median

from accel_flowers.core.errors import UserError, printable
from accel_flowers.data.decoding.pillow import BadImageError, verify_image
from accel_flowers.data.table import ImageTable, content_digest, read_bytes

_CHUNK = 64
"""Images that a thread examines at a time: to hand over each by itself would take longer than to look at a small one."""
_SECONDS_EACH = 1e-4
"""Another thread for so much time that an image takes. Where an image takes less, threads wait for Python's lock and get
in each other's way: two took a third to a half longer than one for images of 96 x 96."""
_SHOWN = 100
"""Names that an error lists before it says how many more there are."""


def validate_image(image: dict[str, object], name: str) -> tuple[str, str | None]:
    """Digest of the encoded image, and the cause where it cannot be read."""
    try:
        data = read_bytes(image)
        digest = content_digest(data)
        verify_image(data, name)
    except BadImageError as error:
        return "", error.cause
    except OSError as error:
        return "", error.strerror or str(error)
    return digest, None


def validate_all(table: ImageTable, rows: Sequence[int]) -> list[tuple[str, str | None]]:
    """`validate_image` of these rows, in as many threads as help: reading and decoding leave Python's lock."""
    images = table.dataset.with_format("arrow")

    def examine_from(first: int) -> Iterator[tuple[str, str | None]]:
        chunk = rows[first : first + _CHUNK]
        for row, image in zip(chunk, images[chunk]["image"].to_pylist(), strict=True):
            yield validate_image(image, table.files[row])

    if not rows:
        return []
    found, times = [], [time.perf_counter()]
    for one in examine_from(0):
        found.append(one)
        times.append(time.perf_counter())
    num_threads = int(median(after - before for before, after in pairwise(times)) / _SECONDS_EACH)
    with ThreadPoolExecutor(max(1, min(num_threads, len(os.sched_getaffinity(0))))) as pool:
        for chunk in pool.map(lambda first: list(examine_from(first)), range(_CHUNK, len(rows), _CHUNK)):
            found += chunk
    return found


def check_readable(table: ImageTable, files: Sequence[str]) -> None:
    """See that these images can be read before a model is asked about them.

    Raises:
        UserError: naming those that cannot.
    """
    row_of = {name: row for row, name in enumerate(table.files)}
    found = validate_all(table, [row_of[name] for name in files])
    stop_or_skip(table.source, {name: cause for name, (_, cause) in zip(files, found, strict=True) if cause}, "stop")


def stop_or_skip(source: str, bad: dict[str, str], on_bad_image: str) -> None:
    if not bad or on_bad_image == "skip":
        return
    lines = [f"  {printable(name)}: {cause}" for name, cause in sorted(bad.items())[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more")
    raise UserError(
        f"{len(bad)} pictures of '{source}' cannot be read:\n"
        + "\n".join(lines)
        + "\nMend or remove them. A training run can leave them out: --data.on-bad-image skip lists them in its split.json."
    )
