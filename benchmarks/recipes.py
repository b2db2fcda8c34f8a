#!/usr/bin/env python
"""Recipes and changes of one, on the same splits: test accuracy for each seed, and the difference from the first.

Each entry is what follows `accel-flowers train`: a recipe, and flags where it is changed. The seed draws split, first weights,
order and augmentation, so the runs of one seed are pairs on the same pictures. "probe" is the plain reference: features of the
network with its own weights, of each picture and its mirror image, under a logistic regression whose strength validation
chooses, and the mean of both answers. Runs stay in --out and are not done twice: what was interrupted goes on. The test part is
scored once by each run, at its end.

  python benchmarks/recipes.py --out runs/compared --common "--data.path photos --model.name resnet18 --model.weights W" \\
      flagship resnet18-finetune probe
  python benchmarks/recipes.py --out runs/ablations --common "..." flagship "flagship --model.tta none" "flagship --ema.decay None"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from common import PROJECT, machine

_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--split", default="60/20/20", help="shares of train, val and test; default 60/20/20")
    parser.add_argument("--common", default="", help="flags of all of them, in quotes")
    parser.add_argument("--out", required=True, type=Path, help="directory of the runs")
    parser.add_argument("entries", nargs="+", help="recipes, each with its flags in quotes, or probe")
    asked = parser.parse_args()
    common = [*shlex.split(asked.common), "--data.split", asked.split]
    print(f"{machine('torch', 'torchvision', 'timm')}\n{shlex.join(common)}", flush=True)
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in asked.entries:
        found[entry] = [scores_of(entry, common, seed, asked.out) for seed in asked.seeds]
        first = found[asked.entries[0]]
        print(in_words(entry, found[entry], first if entry != asked.entries[0] else None), flush=True)


def scores_of(entry: str, common: list[str], seed: int, out: Path) -> tuple[float, float]:
    """Test accuracy and seconds of one run, or what an earlier call has noted of it."""
    key = hashlib.sha256(shlex.join([entry, *common]).encode()).hexdigest()[:8]
    run_dir = out / f"{Path(entry.split()[0]).stem}-{key}-{seed}"
    noted = run_dir / "compared.json"
    if not noted.exists():
        started = time.perf_counter()
        if entry == "probe":
            accuracy = probe(common, seed, run_dir)
        else:
            train([*shlex.split(entry), *common], seed, run_dir)
            accuracy = json.loads((run_dir / "model/config.json").read_text())["accel_flowers"]["scores"]["test"][
                "accuracy"
            ]
        noted.write_text(json.dumps({"test": accuracy, "seconds": time.perf_counter() - started}))
    told = json.loads(noted.read_text())
    return told["test"], told["seconds"]


def train(words: list[str], seed: int, run_dir: Path) -> None:
    """The program's own run; of one that was interrupted the rest."""
    own = ["--train.seed", str(seed), "--run-dir", str(run_dir), "--resume", "auto", "--tracking.no-report"]
    command = [sys.executable, "-m", "accel_flowers", "train", *words, *own]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=os.environ, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stderr}")


def probe(common: list[str], seed: int, run_dir: Path) -> float:
    """Test accuracy of a linear probe on the same split."""
    import numpy as np
    import torch
    from accelerate import Accelerator
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from accel_flowers.config.loading import config_from_flags
    from accel_flowers.config.schema import Config
    from accel_flowers.data.sampler import SequentialBatchSampler
    from accel_flowers.models.find import find_backbone
    from accel_flowers.models.preprocessing import settle_preprocessing
    from accel_flowers.training.build import build_run

    seeded = [*common, "--train.seed", str(seed)]
    config, _ = settle_preprocessing(config_from_flags(Config(), seeded, program="probe"))
    evaluation = config.data.model_copy(update={"train_transforms": config.data.eval_transforms})
    run = build_run(config.model_copy(update={"data": evaluation}), Accelerator(cpu=True), split_file=None)
    network = run.network.eval().to(memory_format=torch.channels_last)
    head = network.get_submodule(find_backbone(config.model.name).head(network))
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    features, labels = {}, {}
    for part, images in run.parts.items():
        seen.clear()
        labels[part] = images.labels.numpy()
        with torch.inference_mode():
            for keys in SequentialBatchSampler(len(images), 32):
                pixels = run.normalizer(images.__getitems__(keys)["pixels"]).contiguous(
                    memory_format=torch.channels_last
                )
                network(pixels)
                network(pixels.flip(-1))
        features[part] = [torch.cat(seen[side::2]).float().numpy() for side in (0, 1)]

    def accuracy(model: object, part: str) -> float:
        told = sum(model.predict_log_proba(view) for view in features[part])  # type: ignore[attr-defined]
        return float((told.argmax(axis=1) == labels[part]).mean())

    both = np.concatenate(features["train"]), np.tile(labels["train"], 2)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(*both)
        for strength in _STRENGTHS
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    return accuracy(max(models, key=lambda model: accuracy(model, "val")), "test")


def in_words(entry: str, scores: list[tuple[float, float]], first: list[tuple[float, float]] | None) -> str:
    values = [accuracy for accuracy, _ in scores]
    line = f"{100 * mean(values):5.1f} %  {' '.join(f'{100 * value:.1f}' for value in values)}  {mean(s for _, s in scores):5.0f} s  {entry}"
    if first and len(values) > 1:
        gains = [value - other for value, (other, _) in zip(values, first, strict=True)]
        line += f"  {100 * mean(gains):+.1f} points, standard error {100 * stdev(gains) / math.sqrt(len(gains)):.1f}"
    return line


if __name__ == "__main__":
    main()
