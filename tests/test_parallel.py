"""One function over many items: results in order, only a few at a time, errors where they belong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.core.parallel import ProcessDied, map_in_order

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
