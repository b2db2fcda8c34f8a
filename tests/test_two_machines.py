"""Two machines do what one does, and neither waits for ever when the other is gone: `scripts/two_machines.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import PROJECT

pytestmark = pytest.mark.multiprocess
SKIPPED = 77


def try_parts(*parts: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/two_machines.py", *parts],
        capture_output=True,
        text=True,
        timeout=220,
        cwd=PROJECT,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().removeprefix("skipped: "))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.holds("Two machines end as one")
@pytest.mark.slow
def test_a_run_over_two_machines_is_the_run_on_one() -> None:
    try_parts("same")


@pytest.mark.slow
def test_launchers_on_both_machines_start_a_failed_run_again() -> None:
    try_parts("restart")


@pytest.mark.holds("One process sleeps, or the link is cut")
@pytest.mark.slow
def test_both_machines_end_when_the_cable_is_cut() -> None:
    try_parts("cut")


@pytest.mark.holds("One process sleeps, or the link is cut")
@pytest.mark.slow
def test_a_machine_ends_when_the_other_one_is_gone() -> None:
    try_parts("kill")
