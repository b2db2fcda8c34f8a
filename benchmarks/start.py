#!/usr/bin/env python
"""From the start of the process to the first training step: seconds, processor seconds, and the most memory.

Starts `python -m accel_flowers train` on a folder, waits for the first step in `metrics.jsonl`, and ends that process.
Each start is a first one: the caches of `datasets` are empty; the images lie in the system's file cache (one start
goes before those that count). Prints every start, medians and ranges:

  loop   until all is built and the training loop begins
  step   until the first optimizer step is done and written down
  CPU    processor seconds, user and system, of the process until it was ended: other work on the machine moves them less
  built  the most memory that the process had until the loop began, and
  peak   until it was ended: the training itself needs more

With `--images N ...` it draws folders of N small JPEGs in 10 classes, each image another one, and tells by how many
bytes "built" grew from the smallest to the largest for each image. `--timeline` shows when each line was told.
Whatever follows `--` goes to `train`.

  python benchmarks/start.py --data.path photos
  python benchmarks/start.py --images 1000 10000 100000 --repeats 3
  python benchmarks/start.py --data.path photos --timeline -- --data.on-bad-image skip
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from common import PROJECT, machine, spread
from PIL import Image

NUM_CLASSES = 10
LOOP_BEGINS = "; a step is "
"""In the line that the training tells then."""
TIME_LIMIT = 600
"""Seconds after which a start is given up."""


@dataclass(frozen=True)
class Start:
    """One start; times in seconds."""

    loop: float
    step: float
    cpu: float
    built_mib: float
    peak_mib: float
    told: list[tuple[float, str]]
    """Lines of standard error, and when they came."""


def draw(folder: Path, count: int, side: int) -> None:
    """Blurred spots around a colour pattern of each class: small files, no two alike."""
    chance = np.random.default_rng(0)
    patterns = chance.integers(0, 256, (NUM_CLASSES, 8, 8, 3))
    for label in range(NUM_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        label = number % NUM_CLASSES
        spots = (patterns[label] + chance.integers(-60, 61, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"class{label}" / f"{number:07d}.jpg", quality=90)


def most_memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def wait_for_first_step(pid: int, written: Path, begun: float) -> float | None:
    """Seconds from `begun` to the first training loss in a metrics.jsonl; None = the process ended before, or never will."""
    while time.perf_counter() - begun < TIME_LIMIT:
        if written.exists() and b"train/loss" in written.read_bytes():
            return time.perf_counter() - begun
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return None
        time.sleep(0.01)
    return None


def start(folder: str, words: list[str]) -> Start:
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        command = [
            sys.executable, "-m", "accel_flowers", "train", *words, "--data.path", str(Path(folder).absolute()), "--run-dir", str(run_dir),
            "--train.log-every-steps", "1", "--tracking.no-report",
        ]  # fmt: skip
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, "HF_DATASETS_CACHE": f"{scratch}/datasets"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stderr is not None
        told: list[tuple[float, str]] = []
        loops: list[tuple[float, float]] = []
        lines = process.stderr

        def listen() -> None:
            for line in lines:
                told.append((time.perf_counter() - begun, line.rstrip("\n").rpartition("\r")[2]))
                if LOOP_BEGINS in line:
                    loops.append((told[-1][0], most_memory_mib(process.pid)))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            step = wait_for_first_step(process.pid, run_dir / "metrics.jsonl", begun)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it has a group of its own: loader workers go with it
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL  # waited for: nothing is left for `Popen` to do
            listener.join()
            lines.close()
        if step is None or not loops:
            raise SystemExit("no first step:\n" + "\n".join(line for _, line in told))
        loop, built = loops[0]
        return Start(loop, step, used.ru_utime + used.ru_stime, built, used.ru_maxrss / 1024, told)


def measure(name: str, folder: str, words: list[str], *, repeats: int, timeline: bool) -> float:
    """Start several times and tell; returns the median of "built" in MiB."""
    start(folder, words)
    starts = []
    for number in range(1, repeats + 1):
        starts.append(start(folder, words))
        last = starts[-1]
        print(
            f"{number:2}  loop {last.loop:6.2f}  step {last.step:6.2f}  CPU {last.cpu:6.2f}  "
            f"built {last.built_mib:6.0f}  peak {last.peak_mib:6.0f} MiB",
            flush=True,
        )
    if timeline:
        print("\n".join(f"    {seconds:6.2f}  {line}" for seconds, line in starts[-1].told))
    columns = {
        "loop": [each.loop for each in starts],
        "step": [each.step for each in starts],
        "CPU": [each.cpu for each in starts],
    }
    medians = "  ".join(f"{key} {spread(of, 2)} s" for key, of in columns.items())
    built, peak = median(each.built_mib for each in starts), median(each.peak_mib for each in starts)
    print(f"{name}: median {medians}  built {built:.0f}  peak {peak:.0f} MiB", flush=True)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data.path", dest="folder", help="folder with one sub-folder of pictures a class")
    which.add_argument("--pictures", type=int, nargs="+", help="draw folders of so many pictures")
    parser.add_argument("--side", type=int, default=96, help="pixels of a drawn picture's sides; default %(default)s")
    parser.add_argument("--recipe", default="resnet18-finetune", help="default %(default)s")
    parser.add_argument("--weights", default="none", help="model.weights; default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default %(default)s")
    parser.add_argument("--timeline", action="store_true", help="when each line of the last start was told")
    parser.add_argument("words", nargs="*", help="further words for train, after --")
    asked = parser.parse_args()
    # Ended from outside, it must end the training, too, which has a group of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    words = [asked.recipe, "--model.weights", asked.weights, *asked.words]
    print(machine("torch", "torchvision", "datasets", "pillow", "simplejpeg"))
    if asked.folder:
        measure(asked.folder, asked.folder, words, repeats=asked.repeats, timeline=asked.timeline)
        return
    built = {}
    for count in sorted(set(asked.pictures)):
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), count, asked.side)
            name = f"{count:,} pictures of {asked.side} x {asked.side}"
            built[count] = measure(name, folder, words, repeats=asked.repeats, timeline=asked.timeline)
    fewest, most = min(built), max(built)
    if fewest < most:
        print(f"memory: {(built[most] - built[fewest]) * 2**20 / (most - fewest):.0f} bytes a picture")


if __name__ == "__main__":
    main()
