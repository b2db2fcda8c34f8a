"""A process of a launch that says nothing of its machine, as srun's: how many it finds there. For `tests/test_devices.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from accel_flowers.distributed.collectives import num_local_processes
from accel_flowers.distributed.launch import start_processes


def main(words: Sequence[str]) -> None:
    """Print the number."""
    del words
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    processes = start_processes()
    print(f"here: {num_local_processes(processes)}", flush=True)  # type: ignore[arg-type]
    processes.destroy_process_group()
