"""All images of a data set → what was seen in each: one pass, in parallel, with memory for a few images at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain

from accel_flowers.core.console import counted
from accel_flowers.core.errors import UserError
from accel_flowers.data.table import ImageTable
from accel_flowers.inspection.analysis import Seen, look_at_all

_CHUNK = 16
"""Images that a process looks at before it reports."""
_WORTH_A_PROCESS = 300
"""Images; starting a process takes as long as looking at about so many."""


def look_at_table(table: ImageTable, *, num_workers: int | None = None) -> list[Seen]:
    """Look at every row of a table; the result does not depend on the number of processes.

    Args:
        table: the images.
        num_workers: processes; None = the cores of this machine, fewer for few images; 0 = in this process.

    Raises:
        UserError: a process was ended from outside, for example for lack of memory.
    """
    total = len(table.files)
    if num_workers is None:
        num_workers = min(len(os.sched_getaffinity(0)), total // _WORTH_A_PROCESS)
    looked = _here(table) if num_workers < 2 else _in_processes(table, num_workers)
    return list(counted(chain.from_iterable(looked), total, unit="picture"))


def _chunks(table: ImageTable) -> Iterator[tuple[list[bytes | str], list[str]]]:
    """Where the images are, and their names; those that the table itself holds are read only now."""
    rows = table.dataset.with_format("arrow")
    for first in range(0, len(table.files), _CHUNK):
        images = rows[first : first + _CHUNK]["image"].to_pylist()
        yield (
            [image["path"] if image["bytes"] is None else image["bytes"] for image in images],
            list(table.files[first : first + _CHUNK]),
        )


def _here(table: ImageTable) -> Iterator[list[Seen]]:
    for sources, names in _chunks(table):
        yield look_at_all(sources, names)


def _in_processes(table: ImageTable, num_workers: int) -> Iterator[list[Seen]]:
    # Threads would not do: the hashes hold Python's lock. And a fork of a process that has threads may hang.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=signal.signal,  # Ctrl-C is this process's business: the others end with it, and tell no traceback
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    waiting: deque[tuple[list[str], Future[list[Seen]]]] = deque()
    try:
        for sources, names in _chunks(table):
            waiting.append((names, pool.submit(look_at_all, sources, names)))
            if len(waiting) > 4 * num_workers:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool:
        suspects = f" One of the pictures from {waiting[0][0][0]} on may be the cause." if waiting else ""
        raise UserError(
            "A process that looked at the pictures was ended from outside, most often for lack of memory."
            f"{suspects} Free some memory, or look with one process: --num-workers 0."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
