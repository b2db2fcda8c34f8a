"""No process of a run waits in silence: one that dies, fails, sleeps or differs ends all of them, with a message."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.tracking import GeneralTracker

from accel_flowers.data.content import content_facts
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.distributed.health import HealthTimes, Heartbeat, diagnose
from accel_flowers.distributed.session import process_session
from accel_flowers.tracking.last_error import read_error
from accel_flowers.training.build_data import dataset_fingerprint
from tests.conftest import make_folder
from tests.impatient import ENTRY, TIMES
from tests.ranks import Ranks
from tests.runs import PROJECT, write_recipe

SOON = 30.0
"""Seconds within which all must have ended."""


def training(step: int = 5, **fields: str) -> Heartbeat:
    return Heartbeat(doing="training", step=step, **fields)  # type: ignore[arg-type]


@pytest.mark.holds("One process takes another way")
@pytest.mark.parametrize(
    ("standings", "silent", "apart", "found"),
    [
        ([training(), training(), training()], [0, 1, 2], [0, 0, 0], None),
        ([training(), training(), training()], [0, HealthTimes.silent + 1, 2], [0, 0, 0], (1, "has not been heard of")),
        ([training(), training(state="done")], [0, 999], [0, 0], None),
        ([training(), training(state="failed", words="no disk")], [0, 0], [0, 0], (1, "failed: no disk")),
        # one that waits for its disk, and one that waits for us
        ([training(6), training(5)], [0, 0], [0, HealthTimes().stuck - 1], None),
        ([training(5), training(6)], [0, 0], [0, HealthTimes().stuck - 1], None),
        ([training(6), training(5)], [0, 0], [0, HealthTimes().stuck + 1], (1, "stands elsewhere")),
        ([training(7), training(5)], [0, 0], [0, HealthTimes.silent + 1], (1, "stands elsewhere")),
        (
            [training(5), Heartbeat(doing="evaluating", step=5)],
            [0, 0],
            [0, HealthTimes.silent + 1],
            (1, "stands elsewhere"),
        ),
        # the one that failed is told before the one that fell silent for it
        ([training(), training(), training(state="failed", words="x")], [0, 99, 0], [0, 0, 0], (2, "failed: x")),
    ],
)
def test_judge(
    standings: list[Heartbeat], silent: list[float], apart: list[float], found: tuple[int, str] | None
) -> None:
    verdict = diagnose(0, standings, silent, apart)
    if found is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert verdict[0] == found[0]
        assert verdict[1].startswith(found[1])


def test_nobody_is_elsewhere_while_one_starts_or_leaves() -> None:
    here = training(5)
    assert here.is_elsewhere(training(6))
    assert not here.is_elsewhere(training(5))
    assert not here.is_elsewhere(Heartbeat())
    assert not here.is_elsewhere(Heartbeat(state="done", doing="training", step=9))


# Real processes


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 400}, checkpoint={"every_steps": 2})
    photos = make_folder(tmp_path / "photos", per_class=12)
    return ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run"]


@pytest.mark.holds("One process dies: all end")
@pytest.mark.multiprocess
def test_a_process_that_is_killed_ends_the_other(words: list[str | Path], tmp_path: Path) -> None:
    with Ranks(tmp_path, words, words, entry=ENTRY) as ranks:
        ranks.wait_for(tmp_path / "run/checkpoints/step-00000004")
        time.sleep(0.5)  # so that each has heard of the other's training
        ranks.signal(1, signal.SIGKILL)
        began = time.monotonic()
        time.sleep(0.2)
        ranks.signal(0, signal.SIGTERM)  # a launcher tells the others at once to stop, sooner than they know why
        codes = ranks.codes(SOON)
        assert codes == [1, -signal.SIGKILL], ranks.said(0)
        assert time.monotonic() - began < SOON
        said = ranks.said(0)
    kept = read_error(tmp_path / "run")
    assert "process 0: process 1 has not been heard of" in kept, (
        "it is there even where the launcher ends who would print it"
    )
    assert kept.partition("process 0: ")[2] in said
    assert "process 1 has not been heard of" in said
    told = said.rpartition("process 1 has not been")[2]
    assert re.search(
        r"last heard of: process 1, (training after step \d+, last batch: .*\.png|evaluating after step)", told
    )
    assert "Traceback" not in said


@pytest.mark.holds("One process dies: all end")
@pytest.mark.multiprocess
@pytest.mark.parametrize("killed", [0, 1])
def test_what_follows_from_a_lost_process_is_not_told_as_the_cause(killed: int, tmp_path: Path) -> None:
    """Between GPUs the host runs ahead of the device: what it then computes ends in errors of any kind."""
    sign = tmp_path / "sign"
    with Ranks(tmp_path, [sign], [sign], entry="tests.impatient:fail") as ranks:
        for rank in range(2):
            ranks.wait_for(sign.with_suffix(f".{rank}"))
        time.sleep(3 * TIMES.beat)
        ranks.signal(killed, signal.SIGKILL)
        sign.touch()
        ranks.codes(SOON)
        said, code = ranks.said(1 - killed), ranks.code(1 - killed)
    assert code == 1
    assert f"process {killed} has not been heard of" in said
    assert "It ended here with: ValueError: a sum that never came" in said
    assert "Traceback" not in said


@pytest.mark.holds("One process fails alone")
@pytest.mark.multiprocess
def test_a_process_that_fails_alone_tells_all(words: list[str | Path], tmp_path: Path) -> None:
    """An image that goes away during the training is missed by the process whose turn it is."""
    with Ranks(tmp_path, words, words, entry=ENTRY) as ranks:
        ranks.wait_for(tmp_path / "run/checkpoints/step-00000004")
        for image in (tmp_path / "photos/rose").iterdir():
            image.write_bytes(b"no picture any more")
        codes = ranks.codes(SOON)
        said = [ranks.said(0), ranks.said(1)]
    assert set(codes) <= {1, 2}
    for words_of_one in said:
        assert "Traceback" not in words_of_one
    assert "rose/" in said[0]
    assert "after step " in said[0]


@pytest.mark.holds("One process sleeps, or the link is cut")
@pytest.mark.slow
def test_a_process_that_sleeps_ends_the_other(words: list[str | Path], tmp_path: Path) -> None:
    with Ranks(tmp_path, words, words, entry=ENTRY) as ranks:
        ranks.wait_for(tmp_path / "run/checkpoints/step-00000004")
        ranks.signal(0, signal.SIGSTOP)  # it holds the store
        began = time.monotonic()
        while ranks.code(1) is None and time.monotonic() - began < SOON:
            time.sleep(0.1)
        assert ranks.code(1) == 1
        assert "process 0 has not been heard of" in ranks.said(1)


@pytest.mark.holds("A job that is suspended goes on")
@pytest.mark.slow
def test_a_job_that_is_suspended_goes_on(words: list[str | Path], tmp_path: Path) -> None:
    """Ctrl-Z, `scontrol suspend`, `docker pause`: all sleep, longer than one alone may be silent."""
    with Ranks(tmp_path, *[[*words, "--train.epochs", "12"]] * 2, entry=ENTRY) as ranks:
        ranks.wait_for(tmp_path / "run/checkpoints/step-00000004")
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in range(2):
                ranks.signal(rank, number)
            if number == signal.SIGSTOP:
                time.sleep(TIMES.silent + 2 * TIMES.beat)
        assert ranks.codes(60) == [0, 0], ranks.output()


STUCK_AT_THE_END = """
import sys, time
from types import SimpleNamespace
from accel_flowers.distributed.launch import destroyed_at_the_end

def destroy():
    print("destroyed", flush=True)
    time.sleep(float(sys.argv[1]))

group = SimpleNamespace(num_processes=2, process_index=1, destroy_process_group=destroy)
with destroyed_at_the_end(group, seconds_to_leave=0.5):
    if sys.argv[2] == "fails":
        raise ValueError("the other one is gone")
print("left")
"""


@pytest.mark.parametrize(
    ("takes", "how", "code", "said"),
    [
        (100, "fails", 1, "process 1: the other one is gone"),
        (1.5, "ends well", 0, ""),
    ],
)
def test_a_process_group_that_cannot_be_destroyed_keeps_nobody(takes: float, how: str, code: int, said: str) -> None:
    """Between GPUs that may wait for ever after an error; where all ended well, whoever is slow is waited for."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK_AT_THE_END, str(takes), how],
        capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout.split() == ["destroyed", *(["left"] if code == 0 else [])]


def test_the_process_group_goes_last_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes trackers must not take it down first, when nobody sees to it that this ends."""
    ends: list[str] = []
    monkeypatch.setattr(PartialState, "destroy_process_group", lambda *_: ends.append("group"))

    class Watches(GeneralTracker):
        name = "watches"
        requires_logging_directory = False
        tracker = None
        main_process_only = False

        def store_init_configuration(self, values: dict[str, object]) -> None:
            del values

        def log(self, values: dict[str, object], step: int | None = None, **_: object) -> None:
            del values, step

        def finish(self) -> None:
            ends.append("tracker")

    def fail() -> None:
        with process_session({}, owns_process=False, times=TIMES) as together:
            together.build_accelerator(trackers=[Watches()]).init_trackers("test")
            raise ValueError("in the test")

    with pytest.raises(ValueError, match="in the test"):
        fail()
    assert ends == ["tracker", "group"]


@pytest.mark.holds("Processes that differ do not start")
@pytest.mark.multiprocess
def test_processes_that_differ_do_not_start(words: list[str | Path], tmp_path: Path) -> None:
    other = [*words, "--optim.lr", "0.5", "--train.log-every-steps", "3"]
    with Ranks(tmp_path, words, other) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.said(0)
        said = ranks.said(0)
    assert "optim.lr: 0.01 on process 0, 0.5 on process 1" in said
    assert "log_every_steps" not in said, "which changes nothing that is learned"
    assert not (tmp_path / "run").exists()


@pytest.mark.holds("Processes that differ do not start")
@pytest.mark.multiprocess
def test_processes_that_see_other_images_do_not_start(words: list[str | Path], tmp_path: Path) -> None:
    fewer = make_folder(tmp_path / "other-disk", per_class=12)
    next((fewer / "rose").iterdir()).unlink()
    with Ranks(tmp_path, words, [*words, "--data.path", fewer]) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.said(0)
        assert "number of pictures: 36 on process 0, 35 on process 1" in ranks.said(0)


@pytest.mark.holds("Processes that differ do not start")
@pytest.mark.multiprocess
def test_processes_that_see_other_names_do_not_start(words: list[str | Path], tmp_path: Path) -> None:
    """As many images, and the same classes: only their names differ."""
    other = make_folder(tmp_path / "other-disk", per_class=12)
    (other / "rose/00.png").rename(other / "rose/99.png")
    with Ranks(tmp_path, words, [*words, "--data.path", other]) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.said(0)
        said = ranks.said(0)
    assert "digest of their names and classes: " in said
    assert "number of pictures" not in said


@pytest.mark.holds("Processes that differ do not start")
@pytest.mark.multiprocess
def test_processes_that_see_other_bytes_do_not_start(words: list[str | Path], tmp_path: Path) -> None:
    """The same names and sizes: only what one of the files holds differs."""
    other = make_folder(tmp_path / "other-disk", per_class=12)
    image = other / "rose/00.png"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    with Ranks(tmp_path, words, [*words, "--data.path", other]) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.said(0)
        said = ranks.said(0)
    assert "content of 'rose/00.png': " in said
    assert said.count(" on process 0, ") == 1


@pytest.mark.holds("Processes that differ do not start")
def test_of_many_images_the_sizes_of_all_are_compared(tmp_path: Path) -> None:
    """More than are read: the sample is the same for all, and one that is in none is known by its size."""
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/b").mkdir()
    for number in range(400):
        (tmp_path / f"photos/{'ab'[number % 2]}/{number:03d}.png").write_bytes(b"%d" % number)
    table = load_images(str(tmp_path / "photos"))
    before = content_facts(table, table.files, seed=0)
    assert content_facts(table, table.files, seed=0) == before
    assert content_facts(table, table.files, seed=1).keys() != before.keys()
    outside = next(file for file in table.files if f"content of '{file}'" not in before)
    (tmp_path / "photos" / outside).write_bytes(b"another size")
    after = content_facts(table, table.files, seed=0)
    assert {name for name in before if after[name] != before[name]} == {"digest of the pictures' sizes"}
    (tmp_path / "photos" / outside).unlink()
    assert content_facts(table, table.files, seed=0).keys() == before.keys()


@pytest.mark.holds("Processes that differ do not start")
def test_images_that_differ_in_anything_are_told_apart(tmp_path: Path) -> None:
    """As many of them, as many in each part: names, classes and parts are compared one by one."""
    table = load_images(str(make_folder(tmp_path / "photos", per_class=3)))
    parts = ("train", "train", "val", "train", "test", "train", "val", "train", "test")
    split = Split(table.class_names, dict(zip(table.files, parts, strict=True)))
    before = dataset_fingerprint(table, split)
    assert dataset_fingerprint(replace(table), replace(split)) == before

    names = (*table.files[:-1], "tulip/99.png")
    renamed = Split(table.class_names, dict(zip(names, parts, strict=True)))
    others = {
        "names": (replace(table, images=replace(table.images, names=names)), renamed),
        "classes": (replace(table, labels=table.labels[::-1].copy()), split),
        "parts": (table, replace(split, parts=dict(zip(table.files, reversed(parts), strict=True)))),
    }
    for what, (other_table, other_split) in others.items():
        now = dataset_fingerprint(other_table, other_split)
        assert [now[name] for name in before if "digest" not in name] == [before[name] for name in before if "digest" not in name]  # fmt: skip
        assert now != before, what


@pytest.mark.holds("One process takes another way")
@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("steps_a_beat", [2, 50])
def test_fast_steps_are_no_other_way(steps_a_beat: int, tmp_path: Path) -> None:
    """What is known of the other is up to a beat old, so both seem to be somewhere else all the time."""
    words = [str(steps_a_beat / TIMES.beat)]
    with Ranks(tmp_path, words, words, entry="tests.impatient:walk") as ranks:
        assert ranks.codes(SOON) == [0, 0], ranks.output()


@pytest.mark.holds("One process takes another way")
@pytest.mark.multiprocess
def test_a_process_that_takes_another_way_ends_all(tmp_path: Path) -> None:
    """Both live and tell of themselves, but they will never meet."""
    with Ranks(tmp_path, ["training"], ["evaluating"], entry="tests.impatient:stand") as ranks:
        began = time.monotonic()
        assert ranks.codes(SOON) == [1, 1]
        assert time.monotonic() - began < 4 * TIMES.silent
        assert "process 1 stands elsewhere since 4 s" in ranks.said(0)
        assert "process 0 stands elsewhere since 4 s" in ranks.said(1)


@pytest.mark.multiprocess
def test_processes_that_stand_together_are_left_alone(tmp_path: Path) -> None:
    with Ranks(tmp_path, ["training"], ["training"], entry="tests.impatient:stand") as ranks:
        time.sleep(1.5 * TIMES.silent)
        assert [ranks.code(rank) for rank in (0, 1)] == [None, None]
