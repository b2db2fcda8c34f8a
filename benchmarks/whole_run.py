#!/usr/bin/env python
"""A whole training run, second by second: from the start of the process to the model on the disk.

Starts the program as anybody would, notes when it says what, and prints the stretches between. What follows `--` is the
command line after `accel-flowers train`.

  python benchmarks/whole_run.py -- resnet18-finetune --data.path photos --train.epochs 25
  python benchmarks/whole_run.py --launch accelerate_configs/single_gpu.yaml -- resnet18-finetune --data.path photos

Run it twice: the second time the files are in the machine's memory, and what is remembered between runs is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PROJECT, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", metavar="FILE", help="configuration for accelerate launch; default: no launcher")
    parser.add_argument("--repeats", type=int, default=1, help="default %(default)s")
    parser.add_argument("words", nargs="+", help="after --: what follows `accel-flowers train`")
    asked = parser.parse_args()
    print(machine("torch", "torchvision", "accelerate"))
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as folder:
            time_one_run(asked.words, asked.launch, Path(folder) / "run")


def time_one_run(words: list[str], launch: str | None, run_dir: Path) -> None:
    """Run it once and print when it said what, and what its files tell."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", launch] if launch else []
    command = [sys.executable, *launcher, "-m", "accel_flowers", "train", *words, "--run-dir", str(run_dir)]
    begun, said = time.perf_counter(), []
    wall = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append((time.perf_counter() - begun, line.rstrip()))
    ended = time.perf_counter() - begun
    if process.returncode:
        sys.exit("\n".join(line for _, line in said[-20:]))
    print(f"\n{' '.join(words)}\n{'at':>8}{'took':>8}")
    before = 0.0
    for at, line in [*said, (ended, "the process ends")]:
        print(f"{at:7.2f}s{at - before:7.2f}s  {line[:150]}")
        before = at
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line)
    waits = sorted(line["speed/data_wait"] for line in lines if "speed/data_wait" in line)
    model = (run_dir / "model" / "model.safetensors").stat().st_mtime - wall
    print(
        f"model/ written after {model:.2f} s, the process ended after {ended:.2f} s; in training, median of "
        f"{len(rates)} lines: {rates[len(rates) // 2]:.0f} images/s, {waits[len(waits) // 2]:.1%} of it waiting for pictures",
        flush=True,
    )


if __name__ == "__main__":
    main()
