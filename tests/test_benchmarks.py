"""The benchmarks run; what they measure on a busy machine says nothing, so it is not judged."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_folder
from tests.runs import PROJECT


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_exactness(processes: int, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=20)
    small = "--model squeezenet1_1 --size 64 --precision no --steps 3 --epochs 2 --batch 16 --micro-batch 8"
    rounds = ["--val-pictures", "7", "--repeats", "1", "--threads", "1", "--processes", str(processes)]
    done = run("exactness", "--data.path", str(photos), *small.split(), *rounds)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exact / plain") == 3


@pytest.mark.slow
def test_start() -> None:
    small = "--pictures 100 200 --side 32 --recipe quickstart --repeats 1 --timeline -- --train.global-batch-size 8"
    done = run("start", *small.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 pictures of 10 classes: " in done.stdout
    assert done.stdout.count(": median loop ") == 2
    assert " bytes a picture" in done.stdout


@pytest.mark.slow
def test_start_tells_why_there_is_none() -> None:
    done = run("start", "--data.path", "no-such-folder")
    assert done.returncode == 1
    assert "There is no folder" in done.stderr


@pytest.mark.slow
def test_whole_run(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    done = run("whole_run", "--", *quick(photos, epochs=2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout
    assert "model/ written after" in done.stdout


@pytest.mark.slow
def test_depthwise() -> None:
    done = run("depthwise", "--models", "mobilenet_v3_small", "--images", "4", "--size", "64", "--rounds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^mobilenet_v3_small: bf16 .*, float32 .*, as a run [\d.]+ s \(x 1\.00\)$", done.stdout, re.M)


@pytest.mark.slow
def test_long_tail(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=20)
    recipe, _, _, *flags = quick(photos, epochs=1)
    out = ["--out", str(tmp_path / "out"), "--data.path", str(photos), "--ratio", "4", "--seeds", "0"]
    done = run("long_tail", *out, "--", recipe, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        len(
            re.findall(
                r"^(?:as they are|class weights|balanced sampling|logit adjustment) +[\d.]+ %", done.stdout, re.M
            )
        )
        == 4
    )
    sizes = sorted(len(list(each.iterdir())) for each in (tmp_path / "out/photos-0/train").iterdir())
    assert sizes == [3, 6, 12]


@pytest.mark.slow
def test_accuracy(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    done = run("accuracy", "--seeds", "0", "1", "--", *quick(photos, epochs=1))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^test files .*; files - reference: [+-][\d.]+ points, standard error [\d.]+$", done.stdout, re.M)


@pytest.mark.slow
def test_training() -> None:
    done = run("training", "--models", "squeezenet1_1,resnet18", "--size", "64", "--batch", "4", "--seconds", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("squeezenet1_1", "resnet18"):
        assert re.search(
            rf"^{name}: ours in (bf16|no), channels last \(trial: float32 is [\d.]+ times", done.stdout, re.M
        )
        assert re.search(rf"^{name}: images/s ours .* plain .*; ours / plain [\d.]+ \(", done.stdout, re.M)


@pytest.mark.slow
def test_peers(tmp_path: Path) -> None:
    """A peer that is not installed is left out with a word; `timm` is none of what this project needs."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    small = (
        "--device cpu --size 64 --batch 4 --steps 2 --warmup 1 --repeats 1 --threads 1 --workers 0 --precision own no"
    )
    done = run("peers", "--data.path", str(photos), *small.split())
    assert done.returncode == 0, done.stdout + done.stderr
    has_timm = importlib.util.find_spec("timm") is not None
    assert ("timm: left out, because timm is not installed here" in done.stdout) != has_timm
    assert re.search(r"^ours, precision own \((bf16|no)\): images/s [\d.]+ \(", done.stdout, re.M)
    assert re.search(
        r"^transformers, precision no \(no\): images/s .*; ours / transformers [\d.]+ \(", done.stdout, re.M
    )
    too_few = run("peers", "--data.path", str(photos), "--steps", "100")
    assert too_few.returncode == 1
    assert "30 training photos are less than" in too_few.stderr


def quick(photos: Path, *, epochs: int) -> list[str]:
    """What follows `accel-flowers train` for a run of seconds."""
    short = f"--train.epochs {epochs} --schedule.warmup-epochs 0 --train.global-batch-size 8"
    return ["quickstart", "--data.path", str(photos), *short.split()]


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *words],
        capture_output=True, text=True, timeout=220, cwd=PROJECT, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_label_errors(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    small = "--flips 3 --seeds 0 -- --backbones shufflenet_v2_x0_5 --weights none --size 32 --mirror no --num-workers 0"
    done = run("label_errors", "--data.path", str(photos), "--own", str(tmp_path / "own.txt"), *small.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^seed 0: of 3 flipped \d among the first 3, \d among the first 6", done.stdout, re.M)
    assert (tmp_path / "own.txt").exists()
