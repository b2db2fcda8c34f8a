"""`accel-flowers selfcheck`: a machine that keeps the promises is said to, and a program that breaks one is found out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.cli.launch_config import launch_configs
from accel_flowers.cli.selfcheck import selfcheck_command
from accel_flowers.core.errors import UserError
from accel_flowers.selfcheck import pixels, promises
from accel_flowers.selfcheck.bench import Bench
from accel_flowers.selfcheck.command import chosen
from accel_flowers.selfcheck.compare import differences, far_apart
from accel_flowers.selfcheck.finding import Finding, OutOfTime, PartFailed
from accel_flowers.selfcheck.machine import Machine, choose_machine
from accel_flowers.selfcheck.part import Part
from accel_flowers.selfcheck.parts import PARTS
from accel_flowers.selfcheck.processes import Started
from accel_flowers.selfcheck.table import merged, parse_promises, promises_of_page, table
from tests.runs import PROJECT
from tests.test_mutate import MUTATE

FACTS: dict[str, Any] = {
    "versions": {}, "too_old": [], "cuda_of_torch": "13.0", "device": "cpu", "devices": [], "nccl": None, "bf16": True,
    "cpu": "a CPU", "cores": 2, "shared_memory": 2**30, "gpu_without_torch": False,
}  # fmt: skip
GPUS = {**FACTS, "device": "cuda", "devices": ["a GPU"] * 4}
SHIPPED = launch_configs()


def selfcheck(*words: str, root: Path = PROJECT, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; nothing of it may be left in the temporary folder where all is well."""
    return subprocess.run(
        [sys.executable, "-m", "accel_flowers", "selfcheck", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        check=False,
    )


# --- From end to end


@pytest.mark.slow
@pytest.mark.holds("A machine is tried by one command")
def test_one_part_on_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RANK", "3")  # left over from another launch
    done = selfcheck("--launch", "cpu", "--only", "frozen", "losses")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frozen   ok        training of the last layer alone" in done.stderr
    assert "  holds          training of the last layer alone" in done.stdout
    not_tried = f"  not tried      {promises.SAME_LOSSES}\n                 because: one process: it needs two\n"
    assert not_tried in done.stdout
    assert list(tmp_path.glob("accel-flowers-selfcheck-*")) == []


@pytest.mark.holds("A machine is tried by one command")
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1900)
@pytest.mark.parametrize("launch", ["cpu", "cpu_2_processes"])
def test_all_parts(launch: str) -> None:
    done = selfcheck("--launch", launch, "--minutes", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "because: time" not in done.stdout
    for part in PARTS:
        for what in part.tries:
            assert any(line.startswith(f"{part.name:<9}") and what in line for line in done.stderr.splitlines()), what
    assert done.stdout.count("holds  ") >= (14 if launch == "cpu" else 20)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mutation", "part", "promise"),
    [
        ("gradients-not-averaged", "losses", promises.SAME_LOSSES),
        ("average-buffers", "scores", promises.BATCH_NORM),
        ("stream-starts-anew", "signal", promises.SIGNAL),
        ("augmentation-without-sample", "pixels", promises.CHANCE),
        ("order-without-epoch", "pixels", promises.ORDER),
    ],
)
def test_it_says_what_is_broken(mutation: str, part: str, promise: str) -> None:
    (broken,) = (each for each in MUTATE.MUTATIONS if each.name == mutation)
    with MUTATE.copied() as root:
        MUTATE.mutate(broken, root)
        done = selfcheck("--only", part, "--minutes", "14", root=root)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = done.stdout.replace("\n                 ", " ")
    assert f"  DOES NOT HOLD  {promise} seen: " in failed, done.stdout
    folder = Path(done.stderr.split("stays in ")[1].split(";")[0])
    assert folder.is_dir()
    shutil.rmtree(folder)


def test_ctrl_c_ends_its_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accel_flowers", "selfcheck", "--launch", "cpu", "--only", "frozen"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=PROJECT, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as running:
        while not list(tmp_path.glob("*/probe.log")):
            assert running.poll() is None
            time.sleep(0.02)
        (log,) = tmp_path.glob("*/probe.log")
        running.send_signal(signal.SIGTERM)
        assert running.stderr is not None
        said = running.stderr.read()
        assert running.wait(30) == 75
    assert "stopped by SIGTERM while it tried this machine" in said
    assert not any(f"ACCEL_FLOWERS_SELFCHECK={log}".encode() in environ for environ in environments())


def environments() -> Iterator[bytes]:
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield file.read_bytes()
        except OSError:
            continue


# --- Parts


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Machine(FACTS, SHIPPED["cpu_2_processes"], 2, "cpu"), tmp_path, tmp_path, time.monotonic() + 600)


def test_every_promise_is_one_of_the_page() -> None:
    """A part that tries a promise names it as docs/guarantees.md does, and every part tries something."""
    known = {promise for rows in promises_of_page().values() for promise in rows}
    capitals = {value for name, value in vars(promises).items() if name.isupper() and isinstance(value, str)}
    tried = [what for part in PARTS for what in part.tries]
    assert len(known) > 60
    assert capitals, "the promises are constants of the module"
    assert capitals - known == set()
    assert capitals <= set(tried), "no promise is named and not tried"
    assert len(set(tried)) == len(tried)
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_a_part_comes_to_a_finding_for_each_thing_whatever_happens(bench: Bench) -> None:
    def fails(_: Bench) -> Iterator[Finding]:
        yield Finding("a", "held")
        raise PartFailed("it hangs")

    def runs_out(_: Bench) -> Iterator[Finding]:
        yield Finding("a", "held")
        raise OutOfTime

    def found(part: Part) -> list[tuple[str, str, str]]:
        return [(each.what, each.outcome, each.seen) for each in part.findings(bench)]

    assert found(Part("x", ("a", "b"), "do", 1, fails)) == [("a", "held", ""), ("b", "failed", "it hangs")]
    assert found(Part("x", ("a", "b"), "do", 1, runs_out)) == [("a", "held", ""), ("b", "not tried", "time")]
    assert found(Part("x", ("a",), "do", 10**6, fails)) == [("a", "not tried", "time")]
    assert found(Part("x", ("a",), "do", 1, fails, lambda _: "no GPU")) == [("a", "not tried", "no GPU")]


def test_a_part_that_is_not_there() -> None:
    assert [part.name for part in chosen(["kill", "pixels"])] == ["pixels", "kill"]
    assert chosen([]) == list(PARTS)
    with pytest.raises(UserError, match=r"no part 'kil'\. Did you mean 'kill'\?"):
        chosen(["kil"])
    for words in (["--minutes", "0"], ["--minutes", "-1"]):
        with pytest.raises(UserError, match="--minutes"):
            selfcheck_command(words)


# --- Processes


def test_a_process_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """With what it started in sessions of their own."""
    child = "import subprocess, sys, time; print('child', flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    with Started([sys.executable, "-c", code], tmp_path / "log") as started:
        while "child" not in started.said():
            time.sleep(0.01)
        with pytest.raises(PartFailed, match=r"had not ended after 0 s; the last it said:\n    child"):
            started.wait(0.1)
        assert len(started._alive()) == 2
    assert started._alive() == {}


def test_what_is_left_over_is_told(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    left_over = r"1 processes were left over after 0 s: \d+ \(.*python"
    with (
        Started([sys.executable, "-c", code], tmp_path / "log") as started,
        pytest.raises(PartFailed, match=left_over),
    ):
        started.wait(60, left_behind=0.3)
    assert started._alive() == {}


def test_the_code_that_is_tried_is_this_one(tmp_path: Path) -> None:
    """Whatever lies in the folder in which it runs, and whatever a launch has left over."""
    os.environ["WORLD_SIZE"] = "8"
    try:
        code = "import os, accel_flowers; print(accel_flowers.__file__, os.environ.get('WORLD_SIZE'))"
        with Started([sys.executable, "-c", code], tmp_path / "log") as started:
            assert started.wait(60) == 0
            assert started.said().split() == [str(PROJECT / "accel_flowers/__init__.py"), "None"]
    finally:
        del os.environ["WORLD_SIZE"]


# --- The machine


def test_the_configuration_that_fits() -> None:
    def chosen_for(facts: dict[str, Any], asked: Path | None = None) -> tuple[str, int, str]:
        machine = choose_machine(facts, asked, SHIPPED)
        return machine.file.stem, machine.processes, machine.device

    assert chosen_for(FACTS) == ("cpu_2_processes", 2, "cpu")
    assert chosen_for({**GPUS, "devices": ["a GPU"]}) == ("single_gpu", 1, "cuda")
    assert chosen_for(GPUS) == ("multi_gpu", 4, "cuda")
    assert chosen_for(GPUS, SHIPPED["multi_gpu"]) == ("multi_gpu", 4, "cuda"), "not the eight that it says"
    assert chosen_for(GPUS, SHIPPED["cpu_2_processes"]) == ("cpu_2_processes", 2, "cpu")
    assert chosen_for(FACTS, SHIPPED["cpu"]) == ("cpu", 1, "cpu")
    assert choose_machine(GPUS, SHIPPED["cpu"], SHIPPED).environment == {"ACCELERATE_USE_CPU": "true"}


@pytest.mark.parametrize(
    ("facts", "text", "told"),
    [
        (FACTS, "num_processes: 2", "is for GPUs, and torch sees none here (this torch wants CUDA 13.0"),
        ({**FACTS, "cuda_of_torch": None}, "num_processes: 2", "built without CUDA"),
        (GPUS, "num_processes: 6", "starts 6 processes, and this machine has 4 GPUs"),
        (GPUS, "num_machines: 2", "is for 2 machines"),
        (GPUS, "num_processes: many", "num_processes: 'many'"),
        (GPUS, "- 1", "is no launch configuration"),
        (GPUS, "a: [", "is not valid YAML"),
        (GPUS, None, "cannot be read: No such file"),
    ],
)
def test_a_configuration_that_does_not_fit(facts: dict[str, Any], text: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        choose_machine(facts, file, SHIPPED)
    assert told in str(error.value)


# --- Order, chance, runs side by side


def test_chance_and_order_that_forget_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel_flowers.data import dataset, sampler
    from accel_flowers.data.sources.load import load_images
    from tests.conftest import make_folder

    table = load_images(str(make_folder(tmp_path / "photos", per_class=2)))
    assert list(pixels.order_problems()) == list(pixels.chance_problems(table)) == []
    monkeypatch.setattr(dataset, "random_key", lambda *_: 1)
    every, two = "each epoch does the same to a sample", "the same is done to two samples"
    assert list(pixels.chance_problems(table)) == [every, two]
    monkeypatch.setattr(dataset, "random_key", lambda seed, what, epoch, sample: sample)
    assert list(pixels.chance_problems(table)) == [every]
    monkeypatch.setattr(dataset, "random_key", lambda seed, what, epoch, sample: epoch)
    assert list(pixels.chance_problems(table)) == [two]
    monkeypatch.setattr(sampler, "random_key", lambda *_: 1)
    sampler.epoch_order.cache_clear()
    assert list(pixels.order_problems()) == ["two epochs have the same order"]
    sampler.epoch_order.cache_clear()


def test_losses_that_are_no_numbers_are_far_apart(tmp_path: Path) -> None:
    def run(name: str, *losses: float) -> Path:
        (tmp_path / name).mkdir()
        rows = [{"step": step, "train/loss": loss, "speed/x": step + losses[0]} for step, loss in enumerate(losses)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / name

    one = run("one", 1.0, 0.5)
    assert far_apart(one, run("close", 1.0, 0.500001)) == []
    assert far_apart(one, run("far", 1.0, 0.6)) == ["step 1: train/loss 0.5 and 0.6"]
    assert far_apart(one, run("nan", 1.0, float("nan"))) == ["step 1: train/loss 0.5 and nan"]
    assert far_apart(one, run("short", 1.0)) == ["steps of metrics.jsonl"]
    assert differences.__module__ == far_apart.__module__


# --- The table


def test_the_page_is_read_as_it_is() -> None:
    page = "## One\n| promise | how far | test |\n|---|---|---|\n| A | x | t |\n\n## Two\n| promise | test |\n|---|---|\n| B | t |\n"
    assert parse_promises(page) == {"One": ["A"], "Two": ["B"]}
    assert len(promises_of_page()) >= 6


def test_the_worst_of_several_findings_counts() -> None:
    found = [Finding("A", "not tried", "time"), Finding("A", "held"), Finding("B", "failed"), Finding("B", "held")]
    assert merged(found) == [Finding("A", "held"), Finding("B", "failed")]


def test_the_table_says_what_to_do() -> None:
    found = [
        Finding("training in bf16", "held"),
        Finding("A", "failed", "exit code 1:\n    a line of the log", "Do this."),
        Finding("B", "not tried", "time"),
    ]
    said = table(found, {"One": ["A", "B"], "Two": ["C", "D"]})
    assert said.splitlines() == [
        "What was tried here",
        "  holds          training in bf16",
        "",
        "One (docs/guarantees.md)",
        "  DOES NOT HOLD  A",
        "                 seen: exit code 1:",
        "                     a line of the log",
        "                 do: Do this.",
        "  not tried      B",
        "                 because: time",
        "",
        "Not tried, because no part of the self-check tries them; the project's tests hold them: Two 2.",
    ]
