"""One function over many items: results in order, only a few at a time, errors where they belong."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.core.parallel import ProcessDied, map_in_order
from tests.runs import PROJECT

WAYS: list[dict[str, int]] = [{}, {"threads": 1}, {"threads": 3}]


def squared(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number * number


def fail_at_150(number: int) -> int:
    if number == 150:
        raise UserError("150")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_results_come_in_order_and_a_mistake_ends_it(way: dict[str, Any]) -> None:
    assert list(map_in_order(squared, range(100), **way)) == [number * number for number in range(100)]
    assert list(map_in_order(squared, [], **way)) == []
    found: list[int] = []
    results = map_in_order(fail_at_150, range(200), **way)
    with pytest.raises(UserError, match="150"):
        found.extend(results)
    assert found == list(range(150))


@pytest.mark.parametrize(("way", "most"), [({}, 1), ({"threads": 2}, 4), ({"threads": 2, "ahead": 7}, 7)], ids=str)
def test_no_more_is_taken_than_is_wanted(way: dict[str, int], most: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_in_order(squared, items(), **way)
    for wanted in range(20):
        assert next(results) == wanted * wanted
        assert len(taken) <= wanted + most + 1
    results.close()


def test_whoever_wants_only_the_first_waits_for_no_others() -> None:
    done = threading.Event()
    results = map_in_order(lambda number: number if number == 0 else done.wait(20), range(100), threads=2)
    assert next(results) == 0
    threading.Timer(0.2, done.set).start()
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 10


@pytest.mark.multiprocess
def test_processes_do_the_same_and_tell_when_one_dies() -> None:
    assert list(map_in_order(squared, range(50), processes=2)) == [number * number for number in range(50)]
    found: list[int] = []
    results = map_in_order(die_at_five, range(50), processes=2, ahead=3)
    with pytest.raises(ProcessDied) as caught:
        found.extend(results)
    assert caught.value.done == len(found) <= 5


ASLEEP = """
import os, time
from accel_flowers.core.parallel import map_in_order

def sleep(number):
    os.write(1, b".")
    time.sleep(600)

if __name__ == "__main__":
    list(map_in_order(sleep, range(9), processes=2))
"""


@pytest.mark.holds("Nothing of a run that is killed lives on")
@pytest.mark.multiprocess
def test_no_process_outlives_the_one_that_was_killed(tmp_path: Path) -> None:
    """Seen by who reads its output: the end comes when the last process that holds the pipe is gone."""
    program = tmp_path / "asleep.py"
    program.write_text(ASLEEP)
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}
    ) as asleep:
        assert asleep.stdout is not None
        assert asleep.stdout.read(2) == b"..", "both are at work"
        asleep.kill()
        assert select.select([asleep.stdout], [], [], 20)[0], "somebody lives on"
        assert asleep.stdout.read() == b""


FORKS = """
import os, sys
from pathlib import Path
from tests.ranks import Ranks

ranks = Ranks(Path(sys.argv[1]), ["600"], entry="tests.test_parallel:sleep_for")
print(ranks.pids[0], flush=True)
os.kill(os.getpid(), 9)
"""


def sleep_for(words: list[str]) -> None:
    time.sleep(float(words[0]))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_no_process_outlives_the_tests_that_were_killed(tmp_path: Path) -> None:
    """The processes that tests fork are children of a server, which is one of the tests'."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, tmp_path], capture_output=True, text=True, timeout=120, cwd=PROJECT, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(done.stdout)}").exists()
