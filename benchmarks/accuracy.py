#!/usr/bin/env python
"""Whether speed costs accuracy: one recipe on the reference way of pixels and on the quick ones, several seeds each.

Every run is the program's own, in a process of its own; the seeds draw the split, the first weights, the order and the
augmentation, and are the same on each way. So the runs of one seed are pairs that differ in their pixels alone. Prints the
best validation accuracy and, where there is one, the test accuracy of every run, and the mean difference between the ways
with its standard error over the seeds.

  python benchmarks/accuracy.py --seeds 0 1 2 -- resnet18-finetune --data.path photos --train.epochs 4
  python benchmarks/accuracy.py --ways plain files cache --launch accelerate_configs/cpu.yaml -- quickstart --data.path drawn
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from common import PROJECT, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ways", nargs="+", default=["reference", "files"], help="the first is the reference; default reference files"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--launch", metavar="FILE", help="configuration for accelerate launch; default: no launcher")
    parser.add_argument("words", nargs="+", help="after --: what follows `accel-flowers train`")
    asked = parser.parse_args()
    print(f"{machine('torch', 'torchvision', 'pillow', 'simplejpeg')}\n{' '.join(asked.words)}")
    print(f"{'seed':>4}  " + "  ".join(f"{way:>22}" for way in asked.ways))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in asked.ways}
    for seed in asked.seeds:
        for way in asked.ways:
            found[way].append(accuracies(asked.words, way, seed, asked.launch))
        print(f"{seed:4}  " + "  ".join(f"{in_words(scores[-1]):>22}" for scores in found.values()), flush=True)
    reference = asked.ways[0]
    for way, part in ((way, part) for way in asked.ways for part in found[reference][0]):
        values = [scores[part] for scores in found[way]]
        line = f"{part} {way:<8} mean {100 * mean(values):.1f} %, {100 * min(values):.1f} to {100 * max(values):.1f}"
        if way != reference and len(values) > 1:
            gains = [value - scores[part] for value, scores in zip(values, found[reference], strict=True)]
            error = stdev(gains) / math.sqrt(len(gains))
            line += f"; {way} - {reference}: {100 * mean(gains):+.1f} points, standard error {100 * error:.1f}"
        print(line)


def accuracies(words: list[str], way: str, seed: int, launch: str | None) -> dict[str, float]:
    """Part → accuracy of one run."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", launch] if launch else []
    with tempfile.TemporaryDirectory() as folder:
        own = [
            "--data.pixels-from",
            way,
            "--train.seed",
            str(seed),
            "--run-dir",
            f"{folder}/run",
            "--tracking.no-report",
        ]
        command = [sys.executable, *launcher, "-m", "accel_flowers", "train", *words, *own]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=os.environ, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    parts = {
        part: [line[f"{part}/accuracy"] for line in lines if f"{part}/accuracy" in line] for part in ("val", "test")
    }
    return {part: max(values) for part, values in parts.items() if values}


def in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{part} {100 * value:.1f} %" for part, value in scores.items())


if __name__ == "__main__":
    main()
