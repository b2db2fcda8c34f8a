"""The ends of a run that are no bugs: a mistake of the user's, a signal, a process that is lost."""

import pickle
import signal
from collections.abc import Sequence

_SHOWN_FILES = 3


class UserError(ValueError):
    """A mistake that the user can mend: bad recipe, bad flag, bad folder, bad file.

    The message says what was given, what is allowed and what to type instead. The command line
    prints it without a traceback and exits with status 2; everything else is a bug and keeps its traceback.
    """


class OutOfMemory(UserError):
    """There is not enough memory for a step; a mistake of the recipe's, on this machine."""


class Interrupted(Exception):
    """A signal stopped the run at a step, after a checkpoint was written: it can be resumed.

    The command line exits with `RESUME_ME`.

    Args:
        step: the step; None where a saved model was being scored, of which nothing is kept.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    """Schedulers send one of the first before they take the machine away; the others are Ctrl-C and a terminal that is closed."""
    RESUME_ME = 75
    """EX_TEMPFAIL of sysexits.h: try again."""

    def __init__(self, step: int | None) -> None:
        saved = f"stopped by a signal after step {step}, which is saved: go on with --resume auto"
        super().__init__("stopped by a signal; no score was made: run it again" if step is None else saved)


class Stopped(KeyboardInterrupt):
    """A signal ended this process where no step could be finished first: while it starts, or draws the report.

    No `Exception`, as Ctrl-C is none: it may come in the middle of a library that passes over those. The command line
    exits with `Interrupted.RESUME_ME`.
    """


class RankLost(Exception):
    """Another process of the run failed or is gone, so this one ended, too; the message says which and where.

    The command line prints it on every process, because each may be the only one left on its machine.
    """


class Diverged(Exception):
    """A loss or the weights are no longer numbers; raised on every process of the run for the same step.

    Args:
        step: the optimizer step (from 1) in which it was seen.
        lr: its learning rate.
        what: for example "the loss is nan (process 1)".
        files: images of the micro-batch, where it was a loss.
    """

    def __init__(self, step: int, lr: float, what: str, files: Sequence[str] = ()) -> None:
        more = f" and {len(files) - _SHOWN_FILES} more" if len(files) > _SHOWN_FILES else ""
        held = f"; the micro-batch held {', '.join(files[:_SHOWN_FILES])}{more}" if files else ""
        super().__init__(f"In step {step}, at learning rate {lr:.3g}, {what}{held}.")
        self.step = step


def exit_code(error: BaseException) -> int:
    """With what a process ends that an error has ended."""
    if isinstance(error, (Interrupted, Stopped)):
        return Interrupted.RESUME_ME
    return 2 if isinstance(error, UserError) else 1


def did_you_mean(given: str, allowed: list[str] | tuple[str, ...]) -> str:
    """A hint for a mistyped name: `" Did you mean 'resnet18'?"`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(given, allowed, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def printable(text: str, *, lines: bool = False) -> str:
    """Text as a terminal may show it: what would move the cursor, colour or reverse what follows comes as an escape.

    Args:
        text: for example the name of a file, which may hold any character.
        lines: whether line breaks are part of the text.
    """
    return "".join(
        character
        if character.isprintable() or (lines and character == "\n")
        else character.encode("unicode_escape").decode()
        for character in text
    )


def error_text(error: Exception) -> str:
    """The gist of an error. Unpickling has no words for users; torch's even advise to run what the file holds."""
    if isinstance(error, (pickle.UnpicklingError, EOFError, LookupError, UnicodeDecodeError)):
        return "its pickle is not one of tensors"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
