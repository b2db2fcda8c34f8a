"""Where modules are looked for: libraries before files of the user's own that happen to have the same name."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
