"""What a part of the self-check comes to: one finding for each promise, or for each way of training, that it tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["held", "failed", "not tried"]

TIME = "time"
"""Why a part was not tried that did not fit into the minutes."""


@dataclass(frozen=True)
class Finding:
    """What was seen of one promise or one way of training."""

    what: str
    """A promise in the words of docs/guarantees.md, or what else was tried ("training in bf16")."""
    outcome: Outcome
    seen: str = ""
    """What was seen; of one that was not tried, why not."""
    advice: str = ""
    """What to do about it, where it failed."""


class PartFailed(Exception):
    """A run of a part did not do what it should; the message says what it did, with its last lines."""


class OutOfTime(Exception):
    """The minutes are over."""
