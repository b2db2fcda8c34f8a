#!/usr/bin/env python
"""Classes of unlike sizes: what class weights, balanced sampling and logit adjustment are worth, on a long-tailed subset of a folder.

For each seed it links photos into train, val and test folders: of each class equally many, drawn by lot, for val and test, and for
train from all that are left in one class down to a share of them in another (in between evenly on a scale of powers; which class is
how rare is drawn, too). So test accuracy is the mean recall over the classes. Each way trains the same recipe on the same pictures.

  python benchmarks/long_tail.py --out runs/tail --data.path photos --ratio 10 -- flagship-fast --model.weights W
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from common import machine
from recipes import train

from accel_flowers.data.sources.load import load_images

WAYS = {
    "as they are": [],
    "class weights": ["--loss.class-weights", "balanced"],
    "balanced sampling": ["--data.sampling", "balanced"],
    "logit adjustment": ["--loss.name", "logit_adjusted"],
}


def main() -> None:
    given = sys.argv[1:]
    behind = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="photos", required=True, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="directory of the folders and the runs")
    parser.add_argument("--ratio", type=float, default=10.0, help="largest class by smallest, in training; default 10")
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="share of each class in val, and in test; default 0.2"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    asked, words = parser.parse_args(given[:behind]), given[behind + 1 :]
    print(machine("torch", "torchvision", "timm"), flush=True)
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in asked.seeds:
        folder = asked.out / f"photos-{seed}"
        order = link_long_tail(asked.photos, folder, ratio=asked.ratio, held_out=asked.held_out, seed=seed)
        for way, flags in WAYS.items():
            found[way].append(
                scores_of(folder, order, [*words, *flags], seed, asked.out / f"{way.replace(' ', '-')}-{seed}")
            )
    print(
        f"{'':<18}  accuracy            " + "".join(f"{'class ' + str(place + 1):>10}" for place in range(len(order)))
    )
    for way, rows in found.items():
        accuracy, *recalls = (100 * np.array(column) for column in zip(*rows, strict=True))
        spread = f"± {stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
        print(f"{way:<18}  {mean(accuracy):5.1f} % {spread:<12}" + "".join(f"{mean(each):10.1f}" for each in recalls))
    print("Recall of each class in %, the most frequent first.")


def link_long_tail(source: str, folder: Path, *, ratio: float, held_out: float, seed: int) -> list[str]:
    """Make the folder.

    Returns:
        Its classes, the most frequent in training first.
    """
    table = load_images(source)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(table.class_names)).tolist()
    shutil.rmtree(folder, ignore_errors=True)
    for rank, label in enumerate(order):
        rows = generator.permutation(np.flatnonzero(table.labels == label)).tolist()
        few = round(held_out * len(rows))
        left = len(rows) - 2 * few
        kept = round(left * ratio ** (-rank / (len(order) - 1)))
        parts = {"val": rows[:few], "test": rows[few : 2 * few], "train": rows[2 * few : 2 * few + kept]}
        for part, chosen in parts.items():
            place = folder / part / table.class_names[label]
            place.mkdir(parents=True)
            for row in chosen:
                file = table.files[row]
                (place / Path(file).name).symlink_to(Path(source).expanduser().absolute() / file)
    return [table.class_names[label] for label in order]


def scores_of(folder: Path, order: Sequence[str], words: Sequence[str], seed: int, run_dir: Path) -> list[float]:
    """Test accuracy, and the recall of each class; of a run that was done before what it has left."""
    spec = run_dir / "model/config.json"
    if not spec.exists() or "test" not in json.loads(spec.read_text())["accel_flowers"]["scores"]:
        train([*words, "--data.path", str(folder)], seed, run_dir)
    scores = json.loads(spec.read_text())["accel_flowers"]["scores"]["test"]
    return [scores["accuracy"], *(scores["per_class"][name]["recall"] for name in order)]


if __name__ == "__main__":
    main()
