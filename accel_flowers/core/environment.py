"""What a command finds around it and has to put right first: where modules are looked for, a home, a folder to stand in."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from accel_flowers.core.errors import UserError


def libraries_first() -> None:
    """Let no file of the working directory stand in for a library, here and in the processes that this one starts.

    `python -m` and `accelerate launch -m` put that directory in front, and libraries are also imported hours later: an
    `evaluate.py` beside the photos would be run then, and a `random.py` at once. Where PYTHONPATH names it, it comes last;
    `--import` adds it when it is needed. A checkout from which this program itself runs stays where it is.
    """
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:
        return  # the directory is gone, and all that was in it
    if here == os.path.realpath(Path(__file__).parents[2]):
        return
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # loader workers and their server would begin with it in front
    there = [place for place in sys.path if os.path.realpath(place) != here]
    named = any(
        place and os.path.realpath(place) == here for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    )
    sys.path[:] = [*there, here] if named else there


_NOISE = (
    "CUDA initialization: ",  # of a driver that is too old or missing: told by us, where a GPU was to be used
    "Grad strides do not match bucket view strides",  # 1 x 1 convolutions in channels last have two names for one layout
)
"""Beginnings of warnings that no user can do anything about, or that are told in better words."""


def quiet_libraries() -> None:
    """Before torch is imported: its profiler would tell of itself and of missing GPUs in lines of its own, and libraries
    warn each other of what will change between them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|torchvision|accelerate)\.")
    for beginning in _NOISE:
        warnings.filterwarnings("ignore", message=re.escape(beginning))


def need_home() -> None:
    """Where the user has no home directory, as in some containers, take one among the temporary files: libraries would
    make a folder "~" in the working directory for what they keep."""
    if os.path.isabs(os.path.expanduser("~")):
        return
    place = Path(tempfile.gettempdir(), f"accel_flowers-{os.getuid()}")
    with suppress(OSError):
        place.mkdir(mode=0o700)
    if not place.is_dir() or place.is_symlink() or place.stat().st_uid != os.getuid():
        place = Path(tempfile.mkdtemp(prefix="accel_flowers-"))  # somebody else's lies there
    os.environ["HOME"] = str(place)


def check_working_directory() -> None:
    """See that there is one.

    Raises:
        UserError: it was removed.
    """
    try:
        os.getcwd()
    except OSError:
        raise UserError(
            "The working directory is gone. Change to one that exists, and type the command again."
        ) from None
