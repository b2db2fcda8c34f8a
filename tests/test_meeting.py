"""Processes that wait for others at the start: for minutes, and saying for whom. Here seconds, in real processes."""

from __future__ import annotations

import platform
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accel_flowers.core.errors import RankLost
from accel_flowers.distributed import meeting
from tests.conftest import make_folder
from tests.impatient import ENTRY, TIMES
from tests.ranks import Ranks
from tests.runs import write_recipe

MEET = "tests.impatient:meet"
SECONDS = 1.2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher says to a process, whose others are not there. In a pod it may all be left over."""
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip


@pytest.mark.holds("Whoever waits for others at the start says for whom, and not for ever")
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("rank", "missing"), [(0, "2 of 3 processes (1, 2)"), (1, "the main process of 3")], ids=["main", "other"]
)
def test_a_process_whose_others_do_not_come_ends(rank: int, missing: str, tmp_path: Path) -> None:
    port = free_port()
    began = time.monotonic()
    with Ranks(tmp_path, [str(SECONDS)], variables=place(rank, 3, port), entry=MEET) as alone:
        assert alone.codes(SECONDS + 20) == [1]
        said = alone.said(0)
    assert time.monotonic() - began >= SECONDS
    assert f"waiting for {missing}, 1 s of 1" in said
    assert f"{missing} did not come within 1 s" in said
    assert f"127.0.0.1:{port}" in said
    assert "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT" in said
    assert "Traceback" not in said


@pytest.mark.holds("Whoever waits for others at the start says for whom, and not for ever")
@pytest.mark.multiprocess
def test_who_has_met_waits_as_long_as_it_takes(tmp_path: Path) -> None:
    """The time to meet is over when all are there, also where that is not the first run of the processes; and a port that is taken is told."""
    own = [str(TIMES.meet)]
    with Ranks(tmp_path, own, own, entry=MEET) as both:
        assert both.codes(30) == [0, 0], both.output()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Ranks(tmp_path, own, variables=place(0, 2, port), entry=MEET) as alone:
            assert alone.codes(20) == [2], alone.output()
            assert f"Port {port}, at which the processes are to meet, is taken" in alone.said(0)


def test_a_launcher_that_takes_the_store_with_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program could not start, so it left: nobody will come any more."""
    held = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    for name, value in {**place(0, 2, held.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    asked: list[float] = []

    def leave(seconds: float) -> None:
        nonlocal held
        asked.append(seconds)
        held = None

    sleep: Callable[[float], None] = leave
    monkeypatch.setattr(meeting.time, "sleep", sleep)
    with pytest.raises(RankLost, match="lost each other before they had met"):
        next(meeting._meet("", meeting.timedelta(seconds=20)))
    assert asked


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})
    return ["train", recipe, "--data.path", make_folder(tmp_path / "photos", per_class=4), "--resume", "auto"]


def apart(words: list[str | Path], tmp_path: Path) -> str:
    """Two processes with a run directory each, which must refuse; returns what the main one says."""
    own = [[*words, "--run-dir", tmp_path / disk / "run"] for disk in ("mine", "yours")]
    with Ranks(tmp_path, *own, entry=ENTRY) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.output()
        said = ranks.said(0)
    assert "The processes do not share the run directory" in said
    assert f"by process 1 on {platform.node()}, in\n'{tmp_path}/yours/run'" in said
    assert "--run-dir DIR" in said
    assert not list(tmp_path.rglob(".shared-*"))
    return said


@pytest.mark.holds("A machine with a run directory of its own is told before the first step")
@pytest.mark.multiprocess
def test_processes_without_a_common_run_directory_do_not_start(words: list[str | Path], tmp_path: Path) -> None:
    apart(words, tmp_path)
    assert not list(tmp_path.glob("*/run/checkpoints/*")), "no step was done"


@pytest.mark.holds("A machine with a run directory of its own is told before the first step")
@pytest.mark.multiprocess
@pytest.mark.slow
def test_nor_do_they_go_on_from_copies_of_a_run(words: list[str | Path], tmp_path: Path) -> None:
    """Or from nothing, beside the run of another machine."""
    mine, yours = tmp_path / "mine/run", tmp_path / "yours/run"
    with Ranks(tmp_path, *[[*words, "--run-dir", mine]] * 2, entry=ENTRY) as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
    assert "going on after step" not in apart(words, tmp_path)
    shutil.copytree(mine, yours, symlinks=True)
    assert "going on after step" not in apart(words, tmp_path)
