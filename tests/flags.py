"""Processes that raise flags for each other; what each was told, and how long it waited for that, goes to a file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from accel_flowers.distributed.collectives import DelayedFlags

LATE = 1.0
"""Seconds that the last process comes later to its first call."""


def main(words: Sequence[str]) -> None:
    """The folder, then a word for each call: of each process two digits, its flags; DIR/RANK.json gets the answers."""
    folder, *calls = words
    accelerator = Accelerator(cpu=True)
    rank, flags = accelerator.process_index, DelayedFlags(accelerator)
    accelerator.wait_for_everyone()
    if rank == accelerator.num_processes - 1:
        time.sleep(LATE)
    answers, seconds = [], []
    for call in calls:
        begun = time.monotonic()
        answers.append(flags.any_before(*[digit == "1" for digit in call[2 * rank : 2 * rank + 2]]))
        seconds.append(time.monotonic() - begun)
    last = flags.close()
    Path(folder, f"{rank}.json").write_text(json.dumps({"answers": [*answers, last], "seconds": seconds}))
    accelerator.end_training()
