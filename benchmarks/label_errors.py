#!/usr/bin/env python
"""How many labels that were made wrong on purpose stand among the first candidates of `accel-flowers labels`.

For each seed it links the photos of a folder into a temporary one, N of them (drawn by lot) under another class (drawn, too), runs
`accel-flowers probe` and `accel-flowers labels --csv` on it, and counts the flipped ones among the first N and 2N. First of all it does
so without a flip: what stands there are the photos' own wrong labels, or what the probe takes for such; they also stand among the
first of the flipped, so those counts are told beside. Features are kept, so all probes but the first take seconds.
Whatever follows `--` goes to `probe`.

  python benchmarks/label_errors.py --data.path photos --flips 30 --seeds 0 1 2 3 4
  python benchmarks/label_errors.py --data.path photos --own own.txt -- --backbones resnet18 --weights resnet18.safetensors
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

import numpy as np
from common import PROJECT, machine, spread

from accel_flowers.data.sources.load import load_images

FLIPPED = "flipped"
"""Begins the name of a photo whose label was made wrong."""


def link_photos(source: str, folder: Path, *, flips: int, seed: int) -> set[str]:
    """Link all photos into a folder, some of them under a wrong class.

    Returns:
        Names of those, as they are there.
    """
    table = load_images(source)
    generator = np.random.default_rng(seed)
    wrong = set(generator.permutation(len(table.files))[:flips].tolist())
    names = set()
    for row, file in enumerate(table.files):
        label, name = int(table.labels[row]), f"{row:07d}-{Path(file).name}"
        if row in wrong:
            label = (label + int(generator.integers(1, len(table.class_names)))) % len(table.class_names)
            name = f"{FLIPPED}-from-{file.split('/')[0]}-{name}"
            names.add(f"{table.class_names[label]}/{name}")
        place = folder / table.class_names[label] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path(source).expanduser().absolute() / file)
    return names


def candidates_of(photos: Path, out: Path, words: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """Rows of the CSV, the most doubtful first, and the probe's accuracy in words."""
    _run("probe", str(photos), "--out", str(out), *words)
    _run("labels", str(out), "--csv", str(out / "fixes.csv"))
    with (out / "fixes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    accuracy = json.loads((out / "probe.json").read_text())["accuracy"]["value"]
    return rows, f"accuracy {100 * accuracy:.1f} % (of the labels as they stand there)"


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "accel_flowers", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"accel-flowers {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="source", required=True, help="folder of photos, one sub-folder a class")
    parser.add_argument("--flips", type=int, default=30, help="labels that are made wrong")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of which labels, and what they become")
    parser.add_argument("--own", type=Path, help="write the photos' own candidates there, all of them")
    parser.add_argument("words", nargs="*", help="for probe, behind --")
    asked = parser.parse_args()
    words = asked.words
    source = str(Path(asked.source).expanduser().absolute())
    print(machine("torch", "cleanlab"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_photos(source, folder / "own", flips=0, seed=0)
        own, accuracy = candidates_of(folder / "own", folder / "own-probe", words)
        print(f"as they are: {len(own)} candidates; {accuracy}")
        lines = [f"{row['file']}: {row['suggested']} {row['p_suggested']} (label {row['p_given']})" for row in own]
        print("\n".join(f"  {line}" for line in lines[: 2 * asked.flips]), flush=True)
        if asked.own:
            asked.own.write_text("\n".join(lines) + "\n")
        own_names = {row["file"].split("/")[1] for row in own}
        shares = []
        for seed in asked.seeds:
            flipped = link_photos(source, folder / f"seed-{seed}", flips=asked.flips, seed=seed)
            rows, accuracy = candidates_of(folder / f"seed-{seed}", folder / f"probe-{seed}", words)
            counts = [len(flipped & {row["file"] for row in rows[:most]}) for most in (asked.flips, 2 * asked.flips)]
            again = sum(row["file"].split("/")[1] in own_names for row in rows[: 2 * asked.flips])
            shares.append(100 * counts[1] / asked.flips)
            print(
                f"seed {seed}: of {asked.flips} flipped {counts[0]} among the first {asked.flips}, {counts[1]} among the first "
                f"{2 * asked.flips} of {len(rows)}, where {again} are candidates as they are, too; {accuracy}",
                flush=True,
            )
        print(f"flipped among the first {2 * asked.flips}: {spread(shares, 0)} %")


if __name__ == "__main__":
    main()
