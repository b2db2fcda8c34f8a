"""Read every image once: which cannot be read, and the digest of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import map_in_order
from accel_flowers.core.plural import number_of
from accel_flowers.data.decoding.kinds import NOT_READ
from accel_flowers.data.decoding.pillow import BadImageError, verify_image
from accel_flowers.data.sources.source import ImageSource, read_image
from accel_flowers.data.table import ImageTable, content_digest

_CHUNK = 64
"""Images that a thread examines at a time: to hand over each by itself would take longer than to look at a small one."""
_SECONDS_EACH = 1e-4
"""Another thread for so much time that an image takes. Where an image takes less, threads wait for Python's lock and get
in each other's way: two took a third to a half longer than one for images of 96 x 96."""
_SHOWN = 100
"""Names that an error lists before it says how many more there are."""


def validate_image(images: ImageSource, row: int) -> tuple[str, str | None]:
    """Digest of the encoded image, and the cause where it cannot be read."""
    try:
        data = read_image(images, row)
        verify_image(data, images.names[row])
    except BadImageError as error:
        return "", error.cause
    return content_digest(data), None


def validate_all(table: ImageTable, rows: Sequence[int]) -> list[tuple[str, str | None]]:
    """`validate_image` of these rows, in as many threads as help: reading and decoding leave Python's lock."""
    if not rows:
        return []
    images = table.images
    if (digests := images.digests) is not None:
        return [(digests[row], None) for row in rows]
    found, times = [], [time.perf_counter()]
    for row in rows[:_CHUNK]:
        found.append(validate_image(images, row))
        times.append(time.perf_counter())
    num_threads = int(median(after - before for before, after in pairwise(times)) / _SECONDS_EACH)
    chunks = map_in_order(
        lambda first: [validate_image(images, row) for row in rows[first : first + _CHUNK]],
        range(_CHUNK, len(rows), _CHUNK),
        threads=max(1, min(num_threads, available_cores())),
    )
    for chunk in chunks:
        found += chunk
    return found


def check_readable(
    table: ImageTable, files: Sequence[str], *, unreadable: Mapping[str, str] | None = None
) -> list[str]:
    """See that these images can be read before a model is asked about them.

    Args:
        table: the images.
        files: those that are wanted.
        unreadable: others that are wanted and are known to be no files, with the cause.

    Returns:
        Digest of each.

    Raises:
        UserError: naming those that cannot.
    """
    found = validate_all(table, table.rows_of(files).tolist())
    bad = {name: cause for name, (_, cause) in zip(files, found, strict=True) if cause}
    stop_or_skip(table.source, {**(unreadable or {}), **bad}, "stop")
    return [digest for digest, _ in found]


def stop_or_skip(source: str, bad: dict[str, str], on_bad_image: str) -> None:
    if not bad or on_bad_image == "skip":
        return
    lines = [f"  {printable(name)}: {cause}" for name, cause in sorted(bad.items())[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more")
    raise UserError(
        f"{number_of(len(bad), 'picture')} of '{source}' cannot be read:\n"
        + "\n".join(lines)
        + f"\n{_advice(bad)} A training run can leave them out: --data.on-bad-image skip (of a probe: --on-bad-image skip) lists them in its split.json."
    )


def _advice(bad: Mapping[str, str]) -> str:
    kinds = sorted({cause.split(",")[0] for cause in bad.values() if NOT_READ in cause})
    return f"Convert {' and '.join(kinds)} to JPEG, mend or remove the others." if kinds else "Mend or remove them."
