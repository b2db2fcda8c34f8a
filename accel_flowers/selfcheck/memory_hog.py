"""Takes the memory of GPUs but for a little, and holds it until it is killed: for a run that must get along with what is left.

Started as a module, `python -m accel_flowers.selfcheck.memory_hog NUM_GPUS GIB`, it leaves GIB free on each and then says "taken".
"""

from __future__ import annotations

import sys
import time

import torch


def take(number: int, leave_gib: float) -> torch.Tensor:
    """All memory of GPU `number` that is free, but for `leave_gib` GiB."""
    device = torch.device("cuda", number)
    torch.zeros(1, device=device)  # the context takes memory, too
    free, _ = torch.cuda.mem_get_info(device)
    return torch.empty(max(0, free - int(leave_gib * 2**30)), dtype=torch.uint8, device=device)


if __name__ == "__main__":
    held = [take(number, float(sys.argv[2])) for number in range(int(sys.argv[1]))]
    sys.stdout.write("taken\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)
