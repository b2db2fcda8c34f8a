"""Writing beside the training: one thing at a time, and of what waits only what is still worth the disk's time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class _Waiting:
    write: Callable[[], None]
    is_best: bool
    step: int


class SnapshotWriter:
    """A thread that writes; whoever hands something over never waits for the disk.

    While one thing is written, others wait: the newest, the bests that are to be kept, and what the newest needs. What is neither any more is
    dropped unwritten, so a slow disk makes what is written rarer and holds nobody up. The rest is written in the order in
    which it came: so what relies on a best one is never there without it.

    Args:
        keep_best: how many bests are worth their time.
    """

    def __init__(self, keep_best: int) -> None:
        self._keep_best = keep_best
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._last: Future[None] | None = None
        self._failure: BaseException | None = None

    def submit(self, write: Callable[[], None], *, is_best: bool, step: int = 0, needed: Collection[int] = ()) -> None:
        """Hand over what is to be written.

        Args:
            write: does it, in the thread; what it needs is its own, and is held until then.
            is_best: whether it is the best so far.
            step: of the training.
            needed: steps of those before it that are to be written whatever comes.
        """
        with self._lock:
            all_of_them = [*self._waiting, _Waiting(write, is_best, step)]
            bests = [each for each in all_of_them if each.is_best][-self._keep_best :]
            self._waiting = [
                each for each in all_of_them if each in bests or each.step in needed or each is all_of_them[-1]
            ]
        self._last = self._thread.submit(self._write_one)

    def _write_one(self) -> None:
        with self._lock:
            if not self._waiting:
                return  # its turn went to what took its place
            first = self._waiting.pop(0)
        try:
            first.write()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks next
            with self._lock:
                self._failure = error
                self._waiting.clear()

    def check(self) -> None:
        """Tell what went wrong since this was asked last; waits for nothing.

        Raises:
            BaseException: what a write has raised. What waited behind it is dropped.
        """
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Until nothing is left to be written.

        Raises:
            BaseException: as of `check`.
        """
        if self._last is not None:
            self._last.result()
        self.check()

    def close(self) -> None:
        """Let what is there come to its end, whatever that is."""
        self._thread.shutdown()
