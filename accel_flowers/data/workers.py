"""The loader's worker processes: how many, how they start, what ends them. They change no number, only the time."""

from __future__ import annotations

import math
import os
import signal
import threading
from multiprocessing import forkserver, parent_process, set_forkserver_preload

from accel_flowers.core.errors import Interrupted
from accel_flowers.core.machine import available_cores
from accel_flowers.core.parallel import shorten_socket_paths

_HEADROOM = 1.5
"""Batches are not equally quick to make, and rates are measured in a moment."""
_MOST = 16
_MOST_UNTRIED = 8
"""Where it is not known how much the device takes: feeding a forward pass of a small network wants about so many."""


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
    """Make a worker deaf to the signals that stop a run, but for those that the training itself sends it."""
    del worker
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS cannot say who sent a signal; nothing that is trained there would be lost
    training = parent_process()
    assert training is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, Interrupted.SIGNALS)

    def listen() -> None:
        while signal.sigwaitinfo(Interrupted.SIGNALS).si_pid != training.pid:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
