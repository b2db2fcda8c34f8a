#!/usr/bin/env python
"""A probe's learning curve beside what fewer photos really give: each share of them, drawn by lot, probed as if there were no more.

The curve comes from heads that learn from parts of the folds' training photos and are asked about all held-out ones. A folder of
so many photos has fewer to hold out as well, so its own accuracy has a wider interval. Whatever follows `--` goes to `probe`.

  python benchmarks/halving.py --data.path photos --shares 0.5 0.25 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import PROJECT, machine

from accel_flowers.data.sources.load import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="source", required=True, help="folder of photos, one sub-folder a class")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="default 0.5 0.25")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of which photos; default 0 1 2")
    parser.add_argument("words", nargs="*", help="for probe, behind --")
    asked = parser.parse_args()
    print(machine("torch", "scikit-learn"))
    curve = probe(asked.source, asked.words)["learning_curve"]
    for images, accuracy in zip(curve["images"], curve["accuracy"], strict=True):
        print(f"curve: heads that learn from {images:,.0f} photos: {in_words(accuracy)}")
    with tempfile.TemporaryDirectory() as folder:
        for share in asked.shares:
            found = []
            for seed in asked.seeds:
                fixes = Path(folder) / f"{share}-{seed}.csv"
                leave_out(asked.source, share, seed, fixes)
                told = probe(asked.source, [*asked.words, "--label-fixes", str(fixes)])
                found.append(told["accuracy"]["value"])
                learned = told["learning_curve"]["images"][-1]
                print(
                    f"{share:.0%} of the photos, seed {seed}: {told['num_images']:,} photos, heads learn from {learned:,.0f}: "
                    f"{in_words(told['accuracy'])}",
                    flush=True,
                )
            print(f"{share:.0%} of the photos: mean {100 * mean(found):.1f} %")


def leave_out(source: str, share: float, seed: int, fixes: Path) -> None:
    """Write label fixes that leave all but a share of each class out."""
    table, generator = load_images(source), np.random.default_rng(seed)
    with fixes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        for label in range(len(table.class_names)):
            rows = generator.permutation(np.flatnonzero(table.labels == label)).tolist()
            writer.writerows([table.files[row], ""] for row in rows[round(share * len(rows)) :])


def probe(source: str, words: Sequence[str]) -> Any:
    """What `accel-flowers probe --json` says."""
    command = [sys.executable, "-m", "accel_flowers", "probe", source, "--json", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"accel-flowers probe ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def in_words(accuracy: dict[str, float]) -> str:
    return f"{100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"


if __name__ == "__main__":
    main()
