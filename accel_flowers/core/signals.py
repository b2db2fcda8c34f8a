"""Signals that come when there is no step to be finished: said in a line instead of a silent end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accel_flowers.core.errors import Interrupted, Stopped

_waits_since: float | None = None
_handler: Any = None


@contextmanager
def waiting_for_batch() -> Iterator[None]:
    """Note that this process waits for its loader, where no step would answer a signal."""
    global _waits_since
    _waits_since = time.monotonic()
    try:
        yield
    finally:
        _waits_since = None


def seconds_waited() -> float:
    """How long this process has been waiting for a batch; 0 = it does not."""
    return 0.0 if _waits_since is None else time.monotonic() - _waits_since


def waiting_since() -> float | None:
    """When (monotonic) this process began to wait for the batch that it waits for; None = it does not."""
    return _waits_since


def owns_signals() -> bool:
    """Whether signals to stop are answered here: then the process is ours to end, and no notebook's."""
    return _handler is not None and signal.getsignal(signal.SIGTERM) in (_handler, signal.SIG_IGN)


@contextmanager
def signals_stop(what: str) -> Iterator[None]:
    """Let a signal to stop end the block at once, with a line; for a process that is ours alone.

    What is ignored stays so (nohup ignores SIGHUP), and a second signal does not disturb the way out, but for Ctrl-C.

    Args:
        what: what was stopped and what became of it, to follow "stopped by SIGTERM ".

    Raises:
        Stopped: from the block.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        leave_undisturbed()
        raise Stopped(f"stopped by {signal.Signals(number).name} {what}")

    before = handle_signals(stop)
    try:
        yield
    finally:
        restore_signals(before)


@contextmanager
def undisturbed_way_out(*, owns_process: bool) -> Iterator[None]:
    """Let no signal to stop disturb what an error of the block leads to, until whoever has set the handlers is left.

    A launcher that has lost one process tells the others to stop at once: sooner than they know, and can say, who is lost.

    Args:
        owns_process: False where signals are somebody else's; then nothing is done.
    """
    try:
        yield
    except BaseException:
        if owns_process:
            leave_undisturbed()
        raise


def leave_undisturbed() -> None:
    """Be deaf to the signals to stop, but for Ctrl-C, which ends at once."""
    for number in handle_signals(signal.SIG_IGN):
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


def current_handlers() -> dict[signal.Signals, Any]:
    """What is set now, for `restore_signals`; nothing outside the main thread."""
    in_main = threading.current_thread() is threading.main_thread()
    return {number: signal.getsignal(number) for number in Interrupted.SIGNALS} if in_main else {}


def handle_signals(handler: Any) -> dict[signal.Signals, Any]:
    """Set a handler for the signals to stop, but for those that are ignored.

    Returns:
        What was set before, for `restore_signals`; nothing outside the main thread, where no signal can be set.
    """
    global _handler
    if threading.current_thread() is not threading.main_thread():
        return {}
    _handler = handler
    heard = [number for number in Interrupted.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def restore_signals(before: dict[signal.Signals, Any]) -> None:
    """Put back what `handle_signals` has replaced."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
