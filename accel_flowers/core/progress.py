"""What a person sees while a run goes on; the main process alone speaks, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from accel_flowers.core.errors import printable


def tell(*lines: str) -> None:
    """Print lines without tearing a progress bar."""
    for line in lines:
        tqdm.write(printable(line, lines=True), file=sys.stderr)


_T = TypeVar("_T")


def counted(things: Iterable[_T], total: int, *, unit: str, bar: bool = True) -> Iterator[_T]:
    """The same things, with a bar on a terminal and a line every few seconds in a log file, if it takes long.

    Args:
        things: what is gone through.
        total: how many there are.
        unit: what one is called.
        bar: False where a bar would stand among other lines of the same terminal.
    """
    if sys.stderr.isatty():
        yield from tqdm(things, total=total, unit=unit, disable=not bar, delay=1, dynamic_ncols=True, leave=False)
        return
    begun = spoke = 0.0
    for done, thing in enumerate(things):
        now = time.monotonic()
        if done == 0:
            begun = spoke = now  # what came before, such as loading a model, is not repeated for each
        elif now - spoke > Progress.SECONDS_BETWEEN_LINES:
            spoke = now
            tell(f"{done:,} of {total:,} {unit}s, {_clock((now - begun) / done * (total - done))} left")
        yield thing


class Progress:
    """A bar where there is a terminal, a line every few seconds where there is a log file.

    Args:
        num_steps: optimizer steps of the whole run.
        first_step: those done before.
        enabled: False on all processes but the main one.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, num_steps: int, first_step: int, *, enabled: bool) -> None:
        self._enabled = enabled
        self._num_steps, self._first_step = num_steps, first_step
        self._begun = self._spoke = time.monotonic()
        on_terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", dynamic_ncols=True) if on_terminal else None

    def step(self, step: int, *, loss: float, lr: float, images_per_second: float) -> None:
        """Say where the run stands; called when a loss is known anyway."""
        words = f"loss {loss:.4f}  lr {lr:.2e}  {images_per_second:.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._enabled and time.monotonic() - self._spoke > self.SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            seconds = (self._spoke - self._begun) / (step - self._first_step) * (self._num_steps - step)
            tell(f"step {step}/{self._num_steps}  {words}  {_clock(seconds)} left")

    def line(self, text: str) -> None:
        """A line of its own, for example after an epoch."""
        if self._enabled:
            tell(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
