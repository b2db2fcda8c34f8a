"""The command line: words → configuration → one function → exit code. No logic, and no torch before it is needed.

Exit codes: 0 done; 1 done, but some images could not be read, the result could not be printed, or another process was
lost; 2 a mistake of the user's, told in one message; 75 stopped by a signal, after a checkpoint where a run had begun:
resume me; 130 Ctrl-C twice, or in a command that keeps nothing.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from accel_flowers.cli.commands import dispatch, is_of_several_processes
from accel_flowers.core.console import ResultLost, attach_console, lenient_streams, results, write_error
from accel_flowers.core.environment import check_working_directory, libraries_first, need_home, quiet_libraries
from accel_flowers.core.errors import Interrupted, RankLost, Stopped, UserError, printable
from accel_flowers.core.signals import signals_stop
from accel_flowers.distributed.environment import is_left_out, is_main_process, launched_place

_COLLECT_EVERY = 100_000
"""New objects between two looks for garbage. Python's own number takes a seventh of the time in which the libraries are
imported (3.6 instead of 4.2 s), and finds nothing there."""
_LONGEST_MESSAGE = 20_000
"""Characters; a name inside a stranger's file may have millions."""
_BETWEEN_STEPS = (
    "while no step was done; what was saved is kept.\nRun it again, with --resume auto if the run had begun."
)
"""What becomes of a training that is stopped as it starts or leaves."""
_LET_MAIN_SPEAK = 3
"""Seconds. A launcher ends all processes as soon as one ends: the main one must have told the mistake before."""


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; ends the process with its exit code."""
    libraries_first()
    quiet_libraries()
    words = sys.argv[1:] if words is None else words
    joins = is_of_several_processes(words)

    def work() -> int:
        with signals_stop(_BETWEEN_STEPS) if joins else nullcontext():
            return dispatch(words)

    end_with(work, speaks=is_main_process() or not (joins or is_left_out()))


def end_with(work: Callable[[], int], *, speaks: bool | None = None) -> None:
    """Do the work of a command; ends the process with its exit code, or with the one that belongs to an error.

    Args:
        work: returns the exit code.
        speaks: whether this process tells a mistake; None = the main process of a launch does, for all.
    """
    speaks = is_main_process() if speaks is None else speaks
    gc.set_threshold(_COLLECT_EVERY)
    attach_console()
    with lenient_streams():
        sys.exit(_code_of(work, speaks=speaks))


def _code_of(work: Callable[[], int], *, speaks: bool) -> int:
    try:
        need_home()
        check_working_directory()
        code = work()
        results.flush()
        return code
    except ResultLost as lost:
        if str(lost):
            write_error(str(lost))
        return 1
    except (Interrupted, Stopped) as stop:
        if speaks:
            write_error(str(stop))
        return Interrupted.RESUME_ME
    except KeyboardInterrupt:
        write_error("stopped by the keyboard; what was saved is kept")
        return 130
    except RankLost as lost:
        write_error(f"process {launched_place()[0]}: {lost}")
        return 1
    except UserError as error:
        if speaks:
            write_error(_message(error))
        else:
            time.sleep(_LET_MAIN_SPEAK)
        return 2
    except OSError as error:
        place = _place_that_refuses(error)
        if place is None:
            raise  # a bug
        write_error(f"the system refuses what is needed here ({place}): make room or mend the permissions")
        return 2


def _place_that_refuses(error: OSError) -> str | None:
    from accel_flowers.core.files import refused  # a library that help does without

    return refused(error)


def _message(error: UserError) -> str:
    """What the error says, fit for a terminal."""
    words = "\n".join([str(error), *getattr(error, "__notes__", [])])
    return printable(words[:_LONGEST_MESSAGE], lines=True)
