"""The one place that prints: the program's results, its log, and how far a run is.

Everything that is told goes through the logger "accel_flowers" (each module has its own below it), so a notebook or another
program can show, redirect or silence it. The command line attaches `ConsoleHandler`, which writes the bare lines to
standard error without tearing a progress bar. A log is no reason to end a run: where it cannot be written any more, because
a terminal was closed, a disk is full or a reader has left, it is not. A result that cannot be printed is `ResultLost`. It is the standard library's logging and not Accelerate's, whose logger
fails before the processes have found each other; which process speaks is decided where a line is made (`log_on_main`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from accel_flowers.core.errors import printable

_LOGGER = logging.getLogger("accel_flowers")
_log = logging.getLogger(__name__)


class ResultLost(Exception):
    """What a command was asked for cannot be printed; the message says why, and is empty where the reader has left, who
    has seen enough."""


class Lenient:
    """A stream that never fails: what it cannot write is lost, and the next line is tried again.

    Args:
        stream: what it writes to; all else that a stream has is that one's.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """As of a text stream."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As of a text stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As of a text stream."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:  # by which tqdm knows whether a bar stands on the terminal of a line
        return bool(self.stream == _inner(other))

    def __hash__(self) -> int:
        return hash(self.stream)


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """For the command line: standard streams that nothing printed to can fail on, and that are there even where they were
    closed; what cannot be written is dropped at the end."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get its number, and what libraries print
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115 - for as long as the process lives
            setattr(sys, name, stream)
        if name != "stdin" and not isinstance(stream, Lenient):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(OSError):
                    stream.reconfigure(errors="backslashreplace")  # no name of a file or class ends a program
            setattr(sys, name, Lenient(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                getattr(stream, "stream", stream).flush()
            except (OSError, ValueError):
                with contextlib.suppress(OSError, ValueError):  # or Python would fail on the rest while it ends
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Writable(Protocol):
    """What takes text."""

    def write(self, text: str, /) -> int:
        """Take it."""
        ...


class _Results:
    """Standard output for what a command was asked for."""

    def write(self, text: str) -> int:
        with _told():
            return int(_inner(sys.stdout).write(text))

    def flush(self) -> None:
        with _told():
            _inner(sys.stdout).flush()


def _inner(stream: Any) -> Any:
    return stream.stream if isinstance(stream, Lenient) else stream


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ResultLost("") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise ResultLost(f"the result cannot be printed: {cause}") from None


results = _Results()
"""Standard output for a command that writes what it was asked for bit by bit; raises `ResultLost`."""


class ConsoleHandler(logging.Handler):
    """Writes each message as it stands, fit for a terminal, to standard error; or as a formatter that it was given says."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or several where the message has them."""
        try:
            if self.formatter is not None:
                text = self.formatter.format(record)
            else:
                text = _fit_terminal(printable(record.getMessage(), lines=True))
            tqdm.write(text, file=sys.stderr)
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


class JsonLines(logging.Formatter):
    """Each message as a line of JSON: time, level, message, and the fields that it was given as `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(told)


def log_json_lines() -> None:
    """Let the console's log be lines of JSON from now on."""
    for handler in _LOGGER.handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setFormatter(JsonLines())


def attach_console() -> None:
    """Show the log on standard error: for the command line, where nobody else decides what is shown."""
    if not any(isinstance(handler, ConsoleHandler) for handler in _LOGGER.handlers):
        _LOGGER.addHandler(ConsoleHandler())
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def attach_to_notebook() -> None:
    """Show the log in a notebook's cell, unless the notebook has set up logging by itself."""
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None and not _LOGGER.hasHandlers():
        _LOGGER.addHandler(ConsoleHandler())
        _LOGGER.setLevel(logging.INFO)


def write_result(text: str) -> None:
    """What a command was asked for, on standard output.

    Raises:
        ResultLost: it cannot be printed.
    """
    results.write(f"{text}\n")


def write_error(text: str) -> None:
    """Why the program ends, on standard error, at once."""
    print(_fit_terminal(f"accel-flowers: {text}"), file=sys.stderr, flush=True)


def _fit_terminal(text: str) -> str:
    """A message as wide as the terminal; in a file a message stays a line, to be searched for."""
    if not sys.stderr.isatty():
        return text
    return wrap_at_words(text, shutil.get_terminal_size().columns)


def wrap_at_words(text: str, width: int) -> str:
    """Text whose lines are broken between words, but for commands, which stay whole to be copied.

    Args:
        text: may have several lines.
        width: columns.
    """
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        whole = len(line) <= width or line.lstrip().startswith(_COMMANDS)
        wrapped = textwrap.wrap(
            line, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if whole else wrapped
    return "\n".join(lines)


_COMMANDS = ("accel-flowers ", "accelerate ", "python ", "wandb ", "pip ", "--")
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
        yield from tqdm(
            things,
            file=Lenient(_inner(sys.stderr)),
            total=total,
            unit=unit,
            disable=not bar,
            delay=1,
            dynamic_ncols=True,
            leave=False,
        )
        return
    begun = spoke = 0.0
    for done, thing in enumerate(things):
        now = time.monotonic()
        if done == 0:
            begun = spoke = now  # what came before, such as loading a model, is not repeated for each
        elif now - spoke > Progress.SECONDS_BETWEEN_LINES:
            spoke = now
            _log.info(f"{done:,} of {total:,} {unit}s, {_clock((now - begun) / done * (total - done))} left")
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
        self._bar = (
            tqdm(file=Lenient(_inner(sys.stderr)), total=num_steps, initial=first_step, unit="step", dynamic_ncols=True)
            if on_terminal
            else None
        )

    def step(
        self, step: int, *, loss: float, lr: float, images_per_second: float, accuracy: float | None = None
    ) -> None:
        """Say where the run stands; called when a loss is known anyway."""
        right = f"  accuracy {accuracy:.4f}" if accuracy is not None else ""
        words = f"loss {loss:.4f}{right}  lr {lr:.2e}  {images_per_second:.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._enabled and time.monotonic() - self._spoke > self.SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            seconds = (self._spoke - self._begun) / (step - self._first_step) * (self._num_steps - step)
            _log.info(f"step {step}/{self._num_steps}  {words}  {_clock(seconds)} left")

    def line(self, text: str) -> None:
        """A line of its own, for example after an epoch."""
        if self._enabled:
            _log.info(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
