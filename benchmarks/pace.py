#!/usr/bin/env python
"""What makes a fast step wait: runs of steps of a few milliseconds, by this checkout and by another one, in turn.

  steps   the median time of a step, and what of it the processes' agreement takes (whether to stop or to save)
  epochs  the mean time of a short epoch with its evaluation and its checkpoint, on a disk whose every flush takes --flush-ms more

Two processes over gloo train SqueezeNet on drawn flowers of 32 pixels. The last lines give medians over the rounds, their spread, and
the ratio this / other of neighbouring runs.

  git worktree add --detach BEFORE 7fcd61e
  python benchmarks/pace.py --other BEFORE --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common import PROJECT, machine, ratio, spread

PROGRAM = """
import json, os, sys, time
from accel_flowers.cli.main import main
from accel_flowers.distributed.preemption import PreemptionHandler
from accel_flowers.training import loop

flush_ms, out = float(sys.argv[1]), sys.argv[2]
fsync, after_step, end_epoch = os.fsync, PreemptionHandler.after_step, loop.end_epoch
agreements, epochs = [], []

def slow_fsync(descriptor):
    time.sleep(flush_ms / 1000)
    fsync(descriptor)

def noted_agreement(self, step):
    begun = time.perf_counter()
    answer = after_step(self, step)
    agreements.append((begun, time.perf_counter()))
    return answer

def noted_epoch(session):
    line = end_epoch(session)
    epochs.append(time.perf_counter())
    return line

os.fsync, PreemptionHandler.after_step, loop.end_epoch = slow_fsync, noted_agreement, noted_epoch
try:
    main(sys.argv[3:])
finally:
    if os.environ["RANK"] == "0":
        with open(out, "w") as file:
            json.dump({"agreements": agreements, "epochs": epochs}, file)
"""


def run(checkout: Path, photos: Path, folder: Path, flush_ms: float, *flags: str) -> dict[str, list[Any]]:
    """Train on two processes with the code of a checkout; gives what the main one noted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = folder / "out.json"
    words = ["train", "quickstart", "--data.path", str(photos), "--run-dir", str(folder / "run"), "--train.seed", "1"]
    small = [
        "--data.num-workers",
        "0",
        "--tracking.no-report",
        "--train.precision",
        "no",
        "--model.name",
        "squeezenet1_1",
    ]
    small += ["--data.train-transforms", "[{Resize: {size: [32, 32]}}]", "--data.eval-transforms", "[{Resize: {size: [32, 32]}}]"]  # fmt: skip
    started = []
    for rank in range(2):
        several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        place = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        variables = {**os.environ, **several, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
        program = [sys.executable, "-c", PROGRAM, str(flush_ms), str(out), *words, *small, *flags]
        started.append(
            subprocess.Popen(program, env=variables, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
    codes = [process.wait() for process in started]
    if codes != [0, 0]:
        raise SystemExit(f"a run of {checkout} ended with {codes}")
    found: dict[str, list[Any]] = json.loads(out.read_text())
    return found


KINDS = {
    "steps": ["--train.epochs", "2", "--train.global-batch-size", "4", "--checkpoint.every-steps", "1000"],
    "epochs": ["--train.epochs", "12", "--train.global-batch-size", "120"],
}
"""Kind of run → its flags."""
UNITS = {"step": "ms a step", "agreement": "us of it for the agreement", "epoch": "ms an epoch"}


def figures(kind: str, found: dict[str, list[Any]]) -> dict[str, float]:
    """What a run is measured by, in `UNITS`."""
    if kind == "epochs":  # the first warms up
        return {"epoch": 1000 * fmean(later - sooner for sooner, later in pairwise(found["epochs"][1:]))}
    steps = [later[1] - sooner[1] for sooner, later in pairwise(found["agreements"])]
    agreements = [ended - begun for begun, ended in found["agreements"]]
    return {"step": 1000 * median(steps), "agreement": 1e6 * median(agreements)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flush-ms", type=float, default=30.0, help="what each flush takes more")
    given = parser.parse_args()
    print(machine("torch", "accelerate"))
    measured: dict[str, dict[str, list[float]]] = {name: {"this": [], "other": []} for name in UNITS}
    with tempfile.TemporaryDirectory() as root:
        photos = Path(root, "photos")
        drawn = [sys.executable, "-m", "accel_flowers", "sample", str(photos), "--images-per-class", "60"]
        subprocess.run(drawn, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
        for _ in range(given.rounds):
            for kind, flags in KINDS.items():
                for name, checkout in (("this", PROJECT), ("other", given.other)):
                    with tempfile.TemporaryDirectory() as folder:
                        flush_ms = given.flush_ms if kind == "epochs" else 0.0
                        found = run(checkout, photos, Path(folder), flush_ms, *flags)
                    for figure, value in figures(kind, found).items():
                        measured[figure][name].append(value)
    for figure, unit in UNITS.items():
        this, other = measured[figure]["this"], measured[figure]["other"]
        print(f"{unit:27} this {spread(this, 1)}  other {spread(other, 1)}  this / other {ratio(this, other)}")


if __name__ == "__main__":
    main()
