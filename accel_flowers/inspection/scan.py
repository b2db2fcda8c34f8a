"""All images of a data set → what was seen in each: one pass, in parallel, with memory for a few images at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from accel_flowers.core.console import counted
from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import ProcessDied, map_in_order
from accel_flowers.data.table import ImageTable
from accel_flowers.inspection.analysis import Seen, look_at_rows

_CHUNK = 16
"""Images that a process looks at before it reports."""
_WORTH_A_PROCESS = 300
"""Images; starting a process takes as long as looking at about so many."""


def look_at_table(
    table: ImageTable, *, rows: Sequence[int] | None = None, num_workers: int | None = None
) -> list[Seen]:
    """Look at rows of a table; the result does not depend on the number of processes.

    Args:
        table: the images.
        rows: which, in what order; None = all.
        num_workers: processes; None = the cores of this machine, fewer for few images; 0 = in this process.

    Raises:
        UserError: a process was ended from outside, for example for lack of memory.
    """
    wanted = range(len(table.files)) if rows is None else rows
    total = len(wanted)
    if num_workers is None:
        num_workers = min(available_cores(), total // _WORTH_A_PROCESS)
    chunks = [wanted[first : first + _CHUNK] for first in range(0, total, _CHUNK)]
    # Threads would not do: the hashes hold Python's lock.
    looked = map_in_order(
        partial(look_at_rows, table.images),
        chunks,
        processes=num_workers if num_workers > 1 else 0,
        ahead=4 * max(1, num_workers),
    )
    try:
        return list(counted(chain.from_iterable(looked), total, unit="picture"))
    except ProcessDied as died:
        raise UserError(
            "A process that looked at the pictures was ended from outside, most often for lack of memory. One of the "
            f"pictures from {table.files[chunks[died.done][0]]} on may be the cause. Free some memory, or look with one "
            "process: --num-workers 0."
        ) from None
