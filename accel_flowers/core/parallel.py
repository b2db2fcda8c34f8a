"""One function over many items, in threads or in processes: results in the items' order, and only a few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import get_temp_dir
from typing import Any, TypeVar

from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import shared_memory

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ProcessDied(Exception):
    """A worker process was ended from outside, most often for lack of memory.

    Args:
        done: results that had come before: the item of this number, or one soon after, may be the cause.
    """

    def __init__(self, done: int) -> None:
        super().__init__(f"a worker process was ended from outside after {done} results")
        self.done = done


def map_in_order(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int = 0,
    processes: int = 0,
    ahead: int | None = None,
) -> Generator[_Result, None, None]:
    """`function` of each item, in the items' order; whoever wants only the first results waits for no others.

    Threads are for what leaves Python's lock (reading, decoding), processes for what holds it.

    Args:
        function: for processes it must be picklable; it is sent once to each, with all that it holds.
        items: taken from as results are wanted, never more than `ahead` of them; for processes, picklable.
        threads: how many; 0 with `processes` = 0 means here, one after the other.
        processes: how many, started anew; instead of threads.
        ahead: items that are worked on, or done and not yet wanted: bounds the memory; None = twice the workers.

    Yields:
        The results. An error of the function is raised in the place of its result, and ends the work.

    Raises:
        ProcessDied: a process was ended from outside.
    """
    assert not (threads and processes)
    if processes and shared_memory() == 0:
        processes = 0  # the locks between processes live there; one after the other is slower, and comes to the same
    if not threads and not processes:
        yield from map(function, items)
        return
    pool: Executor
    call: Callable[[_Item], _Result]
    if processes:
        shorten_socket_paths()
        # A fork of a process that has threads may hang.
        context = multiprocessing.get_context("forkserver")
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(function,))
        call = _call
    else:
        pool, call = ThreadPoolExecutor(threads), function
    most = max(1, 2 * (threads or processes) if ahead is None else ahead)
    waiting: deque[Future[_Result]] = deque()
    done = 0
    try:
        for item in items:
            if len(waiting) == most:
                yield waiting[0].result()
                waiting.popleft()
                done += 1
            waiting.append(pool.submit(call, item))
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
            done += 1
    except BrokenProcessPool:
        raise ProcessDied(done) from None
    finally:
        pool.shutdown(cancel_futures=True)


_LONGEST_PLACE = 60
"""Characters; the path of a Unix socket has 107 at most, of which multiprocessing takes 31 below the temporary folder."""


def shorten_socket_paths() -> None:
    """Let the processes of `multiprocessing` meet in a folder whose path fits a socket, where TMPDIR is a long one, as
    batch systems make them; all else stays in TMPDIR. To be called before there are such processes.

    Raises:
        UserError: no other folder for temporary files can be written.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_PLACE:
        return
    before = tempfile.tempdir
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        try:
            tempfile.tempdir = place
            get_temp_dir()  # made now, and kept for all later ones
            return
        except OSError:
            continue
        finally:
            tempfile.tempdir = before
    raise UserError(
        f"The folder for temporary files, '{tempfile.gettempdir()}', has a path too long for the workers' sockets: set "
        "TMPDIR to a shorter one, or do without workers (--data.num-workers 0, or --num-workers 0)."
    )


_function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any]) -> None:
    """In a worker process: keep the function, and leave Ctrl-C to the one that waits for the results."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_starter()


def end_with_starter() -> None:
    """In a worker process of `multiprocessing`: end it when the process that asked for it is gone, however that ended.

    A worker's parent is the forkserver, which lives for as long as it has workers: after a kill -9 they would keep each
    other alive, with their memory and the pipe to which the program wrote, whose reader would wait for ever.
    """
    starter = multiprocessing.parent_process()  # not the forkserver: a pipe that only the one that asked holds open
    assert starter is not None

    def wait() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _call(item: Any) -> Any:
    return _function(item)
