"""`accel-flowers train` whose processes lose patience with each other in seconds instead of half a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accel_flowers.cli.common import split_imports
from accel_flowers.cli.main import end_with
from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.core.registry import import_parts
from accel_flowers.distributed.health import HealthMonitor, HealthTimes
from accel_flowers.distributed.launch import start_processes
from accel_flowers.distributed.session import process_session
from accel_flowers.training.train import train

ENTRY = "tests.impatient:main"
TIMES = HealthTimes(meet=20.0, look=0.5, beat=0.2, silent=4.0, grace=1.0, leave=2.0, lock=0.5)


def main(words: Sequence[str]) -> None:
    """Train with the words of the command line after `train`."""
    modules, (_, recipe, *flags) = split_imports(words)

    def work() -> int:
        import_parts(modules)
        train(config_from_flags(load_recipe(recipe), flags, program="train"), owns_process=True, times=TIMES)
        return 0

    end_with(work)


def meet(words: Sequence[str]) -> None:
    """Meet the others of a launch, as a session does when it begins; several times, as a sweep in one process does."""
    (seconds,) = words

    def work() -> int:
        for _ in range(4):
            with process_session({}, owns_process=True, times=replace(TIMES, meet=float(seconds))):
                pass
        return 0

    end_with(work)


def walk(words: Sequence[str]) -> None:
    """Make steps in time with the others, so many a second, for longer than anybody is waited for."""
    (rate,) = words
    processes = start_processes()
    with HealthMonitor(processes, TIMES) as health:
        end = time.monotonic() + 2 * TIMES.silent
        while time.monotonic() < end:
            health.at("training", int(time.time() * float(rate)))
            time.sleep(0.005)


def fail(words: Sequence[str]) -> None:
    """Train in name; fail with an error of its own some beats after a file is there."""
    (sign,) = map(Path, words)

    def work() -> int:
        with process_session({}, owns_process=True, times=TIMES) as together:
            together.health.at("training", 5)
            sign.with_suffix(f".{together.processes.process_index}").touch()
            while not sign.exists():
                time.sleep(0.01)
            time.sleep(3 * TIMES.beat)
            raise ValueError("a sum that never came")

    end_with(work)


def stand(words: Sequence[str]) -> None:
    """Do nothing but say where this process stands: training or evaluating."""
    (doing,) = words
    processes = start_processes()
    with HealthMonitor(processes, TIMES) as health:
        health.at(doing, 5)  # type: ignore[arg-type]
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
