"""Signals before, between and after the steps, seen from inside."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from accelerate import Accelerator, PartialState

from accel_flowers.cli import main as cli
from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import Interrupted, Stopped
from accel_flowers.core.signals import leave_undisturbed, seconds_waited, signals_stop
from accel_flowers.data.loader import each_batch
from accel_flowers.data.workers import end_with_the_training
from accel_flowers.distributed import launcher as launcher_module
from accel_flowers.distributed import preemption as preemption_module
from accel_flowers.distributed.health import HealthMonitor
from accel_flowers.distributed.launcher import Launcher, catches, stopping_with
from accel_flowers.distributed.preemption import PreemptionHandler
from tests.flags import LATE
from tests.ranks import Ranks


@pytest.fixture
def preemption() -> Iterator[PreemptionHandler]:
    with PreemptionHandler(Accelerator(cpu=True), CheckpointConfig(), HealthMonitor(PartialState())) as handler:
        yield handler


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # where Python looks for signals


@pytest.mark.holds("A signal before the first step or after the last is told")
@pytest.mark.parametrize("number", Interrupted.SIGNALS)
def test_a_signal_outside_of_the_steps_is_told(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr("accel_flowers.cli.train.load_recipe", lambda name: send(number))
    with pytest.raises(SystemExit) as end:
        cli(["train", "quickstart"])
    assert end.value.code == Interrupted.RESUME_ME
    said = capsys.readouterr().err
    assert said.startswith(f"accel-flowers: stopped by {number.name} while no step was done; what was saved is kept")
    assert "--resume auto" in said
    assert signal.getsignal(number) == before


def test_a_second_signal_does_not_disturb_the_way_out() -> None:
    way_out: list[str] = []

    def work() -> None:
        with signals_stop("in the test"):
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGHUP)
                way_out.append("done")

    with pytest.raises(Stopped, match="SIGTERM in the test"):
        work()
    assert way_out == ["done"]


def test_what_is_ignored_stays_ignored(preemption: PreemptionHandler) -> None:
    """As nohup and a shell's background jobs have it."""
    preemption.__exit__()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_stop("in the test"), preemption:
            send(signal.SIGHUP)
        assert preemption.after_step(1) == (False, False)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.holds("A signal to stop, to any process")
def test_a_second_ctrl_c_does_not_wait(preemption: PreemptionHandler) -> None:
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert preemption.after_step(1) == (False, True)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


BY_ELASTIC = {"TORCHELASTIC_RUN_ID": "x"}
BY_ACCELERATE = {"ACCELERATE_DYNAMO_BACKEND": "no", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this process one whose parent has ended."""
    monkeypatch.setattr(launcher_module, "_LOOK_EVERY", 0.02)
    return lambda: monkeypatch.setattr(os, "getppid", lambda: 1)


@pytest.mark.holds("Processes do not outlive their launcher")
@pytest.mark.parametrize("variables", [BY_ELASTIC, BY_ACCELERATE])
def test_a_launcher_that_is_gone_is_noticed(
    variables: dict[str, str], preemption: PreemptionHandler, gone: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with stopping_with(Launcher()):
        time.sleep(0.1)
        assert preemption.after_step(1) == (False, False)
        gone()
        time.sleep(0.2)
        assert preemption.after_step(2) == (False, True)


@pytest.mark.holds("Processes do not outlive their launcher")
def test_it_is_noticed_where_no_step_is_done(gone: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """While processes meet, pictures are looked at, a model is fetched. Not on the way out, which nothing may disturb."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with signals_stop("in the test"), stopping_with(Launcher()):
        leave_undisturbed()
        gone()
        time.sleep(0.2)
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    launcher = Launcher()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(Stopped, match="SIGTERM in the test"), signals_stop("in the test"), stopping_with(launcher):
        time.sleep(20)


def test_a_shell_may_be_closed(gone: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*BY_ELASTIC, "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launcher = Launcher()
    gone()
    assert not launcher.is_gone()


LISTENS = "signal.signal(signal.SIGTERM, print)"


@pytest.mark.parametrize(("line", "listens"), [(LISTENS, True), ("", False)], ids=["listens", "does not"])
def test_a_process_that_drops_signals_is_known(line: str, listens: bool) -> None:
    program = f"import signal, time; {line}\nprint(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert catches(process.pid, signal.SIGTERM) is listens
        assert catches(process.pid, signal.SIGINT), "as Python does by itself"
        process.kill()


@pytest.mark.holds("A signal to stop, to any process")
def test_a_batch_that_does_not_come_keeps_nobody(
    preemption: PreemptionHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs: there is no step that could answer the signal."""

    class Hangs:
        def __iter__(self) -> Iterator[None]:
            time.sleep(30)
            return iter(())

    monkeypatch.setattr(preemption_module, "_LONGEST_WAIT", 0.2)
    monkeypatch.setattr(preemption_module, "_LOOK_EVERY", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    send(signal.SIGTERM)
    time.sleep(0.4)  # a step may take as long as it does
    with pytest.raises(Stopped, match="waited for pictures"):
        next(each_batch(Hangs()))  # type: ignore[arg-type]
    assert seconds_waited() == 0
    preemption.__exit__()
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.multiprocess
@pytest.mark.holds("A signal to stop, to any process")
def test_flags_are_answered_at_the_next_call_and_nobody_waits_for_them(tmp_path: Path) -> None:
    """Two flags of two processes at each call: the answer is that of the call before, but for what is acted on."""
    calls = ["0000", "1000", "0001", "0000", "1010", "1111", "1111", "0000", "0100", "0000", "0000"]
    with Ranks(tmp_path, *[[tmp_path, *calls]] * 2, entry="tests.flags:main") as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["answers"] == told[1]["answers"], "all act at the same call"
    assert told[0]["answers"][0] == [False, False]
    for call, (before, answer) in zip(calls, pairwise(told[0]["answers"]), strict=True):
        raised = ["1" in call[flag::2] for flag in range(2)]
        assert answer == [new and not acted for new, acted in zip(raised, before, strict=True)]
    assert told[0]["seconds"][0] < LATE / 2, "it does not wait for one that comes later to the same call"
    assert told[0]["seconds"][1] > LATE / 2, "but it is never two calls ahead"


def _work_until_told(started: Event) -> None:
    """What a loader's worker is."""
    end_with_the_training(0)
    started.set()
    while True:
        time.sleep(0.01)


@pytest.mark.holds("A signal to stop, to any process")
def test_a_worker_hears_the_training_alone() -> None:
    """A launcher and a terminal send a signal to all; a worker that went would take the step with it that is to be saved."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    worker = context.Process(target=_work_until_told, args=(started,))
    worker.start()
    assert started.wait(60)
    for _ in range(5):  # each might find another thread
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        worker.join(0.2)
        assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
