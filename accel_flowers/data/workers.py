"""The loader's worker processes: how many, how they start, what ends them. They change no number, only the time."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, parent_process, set_forkserver_preload
from multiprocessing.queues import Queue

from accel_flowers.core.console import write_error
from accel_flowers.core.errors import Interrupted, UserError, error_text
from accel_flowers.core.machine import available_cores, shared_memory
from accel_flowers.core.parallel import end_with_starter, shorten_socket_paths
from accel_flowers.core.plural import number_of

_HEADROOM = 1.5
"""Batches are not equally quick to make, and rates are measured in a moment."""
_MOST = 16
_MOST_UNTRIED = 8
"""Where it is not known how much the device takes: feeding a forward pass of a small network wants about so many."""

_PAGES = 2**17
"""Bytes of a batch beside its pixels: numbers of its samples, each tensor in pages of its own."""
_CANNOT_HAND_OVER = 73
"""Exit code of a worker whose batch cannot be sent (EX_CANTCREAT of sysexits.h)."""


def local_cores(num_local_processes: int) -> int:
    """Cores of this machine that each of its processes has for itself."""
    return max(1, available_cores() // num_local_processes)


def plan_workers(
    cores: int, *, on_cpu: bool, loaded_per_second: float | None = None, trained_per_second: float | None = None
) -> int:
    """How many workers keep a process's device busy.

    Args:
        cores: those that the process has for itself.
        on_cpu: whether the training computes on them, too.
        loaded_per_second: images that one core makes ready.
        trained_per_second: images that the device takes; None = not tried.
    """
    if on_cpu:
        # A core loads for more than ten cores of training. On two cores or fewer a worker takes from the training what
        # it gives to the loading.
        return 0 if cores <= 2 else 1 if cores <= 16 else 2
    most = min(cores if cores <= 2 else cores - 1, _MOST)
    if loaded_per_second is None or trained_per_second is None:
        return min(most, _MOST_UNTRIED)
    return min(most, math.ceil(_HEADROOM * trained_per_second / loaded_per_second))


def fit_shared_memory(
    num_workers: int, batch_bytes: Sequence[int], num_local_processes: int = 1
) -> tuple[int, str | None]:
    """As many workers as there is room for in the shared memory through which they hand over their batches.

    Docker gives a container 64 MiB unless it is asked for more.

    Args:
        num_workers: those that are wanted.
        batch_bytes: of a batch of each loader whose workers live at the same time.
        num_local_processes: processes of this machine, which share it.

    Returns:
        The number, and what to tell where it is less than was wanted.
    """
    free = shared_memory()
    if not num_workers or free is None:
        return num_workers, None
    room = 0.9 * free / num_local_processes
    # Each worker makes two batches ahead; one is in use, and one on its way.
    fits = next((n for n in range(num_workers, 0, -1) if (2 * n + 2) * (sum(batch_bytes) + _PAGES) <= room), 0)
    if fits == num_workers:
        return num_workers, None
    return fits, (
        f"loading: {number_of(fits, 'worker')} for each process instead of {num_workers}, because "
        + (f"/dev/shm has room for {free / 2**20:.0f} MiB only" if free else "/dev/shm is missing or cannot be written")
        + " (in Docker: --shm-size 8g)"
    )


@contextmanager
def workers_as_user_error() -> Iterator[None]:
    """Turn the end of a loader's worker into a message with its cause.

    Raises:
        UserError: a worker could not hand over a batch, or was ended from outside.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        free = shared_memory()
        room = "" if free is None else f" or of shared memory (/dev/shm, {free / 2**20:.0f} MiB free now)"
        raise UserError(
            f"A worker of the loader is gone: most often for lack of memory{room}.\n"
            "Leave it more (in Docker: --shm-size 8g), or load without workers: --data.num-workers 0.\n"
            "What was saved is kept."
        ) from None


def start_forkserver() -> None:
    """Start the process that forks the workers, deaf to the signals that stop a run.

    Launchers and schedulers send them to all processes at once; without its workers the training could not finish the
    step that it saves. It imports what the workers need once for all of them, so the sooner it starts the better.
    """
    shorten_socket_paths()
    if threading.current_thread() is not threading.main_thread():
        return  # only there signals can be set; then nothing answers them in the training either
    set_forkserver_preload(["accel_flowers.data.dataset"])
    before = {number: signal.signal(number, signal.SIG_IGN) for number in Interrupted.SIGNALS}
    forkserver.ensure_running()
    for number, handler in before.items():
        signal.signal(number, handler)


def end_with_the_training(worker: int) -> None:
    """Make a worker deaf to the signals that stop a run, but for those that the training itself sends it; and let it
    end when the training is gone."""
    del worker
    Queue._on_queue_feeder_error = staticmethod(_end_for_a_batch)  # type: ignore[attr-defined]
    listens = hasattr(signal, "sigwaitinfo")
    if listens:
        # Before there is a thread: each takes over what the one that starts it blocks, and a signal finds one that does not.
        signal.pthread_sigmask(signal.SIG_BLOCK, Interrupted.SIGNALS)
    end_with_starter()
    if not listens:
        return  # macOS cannot say who sent a signal; nothing that is trained there would be lost
    training = parent_process()
    assert training is not None

    def listen() -> None:
        while signal.sigwaitinfo(Interrupted.SIGNALS).si_pid != training.pid:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def _end_for_a_batch(error: Exception, batch: object) -> None:
    """In a worker whose batch could not be sent: Python drops it with a traceback, and the training would wait for ever."""
    del batch
    try:
        write_error(f"a worker of the loader cannot hand over its batch: {error_text(error)}")
    finally:
        os._exit(_CANNOT_HAND_OVER)  # whatever became of the line
