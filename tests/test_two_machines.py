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


@pytest.mark.holds("One process sleeps, or the link is cut")
@pytest.mark.slow
def test_a_machine_ends_when_the_other_one_dies_in_mid_step() -> None:
    try_parts("dies-in-mid-step")


@pytest.mark.holds("Whoever waits for others at the start says for whom, and not for ever")
@pytest.mark.slow
def test_a_machine_ends_when_the_program_of_the_other_cannot_start() -> None:
    try_parts("never-starts")


@pytest.mark.holds("A machine with a run directory of its own is told before the first step")
@pytest.mark.slow
def test_machines_without_a_common_directory_do_not_start() -> None:
    try_parts("no-shared-directory")
