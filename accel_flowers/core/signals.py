"""Signals that come when there is no step to be finished: said in a line instead of a silent end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accel_flowers.core.errors import Interrupted, Stopped


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
        for other in before:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_IGN)
        raise Stopped(f"stopped by {signal.Signals(number).name} {what}")

    before = handle_signals(stop)
    try:
        yield
    finally:
        restore_signals(before)


def handle_signals(handler: Any) -> dict[signal.Signals, Any]:
    """Set a handler for the signals to stop, but for those that are ignored.

    Returns:
        What was set before, for `restore_signals`; nothing outside the main thread, where no signal can be set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in Interrupted.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def restore_signals(before: dict[signal.Signals, Any]) -> None:
    """Put back what `handle_signals` has replaced."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
