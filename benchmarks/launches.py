#!/usr/bin/env python
"""Kernel launches, copies and waits of a training step on a GPU: what the host has to do for each, whatever the kernels take.

At small batches a step is as long as the host needs to start its kernels. They are counted here for the recipes, and for other
networks with the first recipe's transforms: drawn pictures that lie on the device, one process, `train`'s own step.

  pixels         crops, flips and colours: the store of decoded pictures to uint8
  normalisation  uint8 to the network's input
  step           all of it: the two above, forward, backward, gradients' norm, optimizer
  copies         memory copies and fills in a step; they are no kernels
  waits          times a step that the host waits for the device

  python benchmarks/launches.py
  python benchmarks/launches.py --recipes resnet18-finetune --models '' --kernels 40 -- --train.cuda-graph on

Words behind `--` are `train`'s. torch's profiler counts, by the calls of the CUDA runtime and the driver. Where it sees no device,
another way of counting can be given as `--counter FILE.py`, with functions `begin()` and `end() -> dict[str, int]`: name of a call
(`launch NAME`, `copy NAME` or `wait NAME`) -> times since `begin`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import runpy
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from common import PROJECT, machine

sys.path.insert(0, str(PROJECT))

import torch
from torch.profiler import ProfilerActivity, profile

from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.data.dataset import Batch
from accel_flowers.data.loader import each_batch
from accel_flowers.distributed.launch import build_accelerator
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.samples.draw import draw_sample
from accel_flowers.training.build import build_run
from accel_flowers.training.optim import set_lr
from accel_flowers.training.run import Run

RECIPES = "resnet18-finetune,resnet18-dropout,resnet18-frozen,resnet18-multistep,resnet50-adam"
MODELS = (
    "resnet34,resnet101,mobilenet_v2,mobilenet_v3_small,efficientnet_b0,convnext_tiny,densenet121,regnet_y_400mf,"
    "squeezenet1_1,vit_b_16"
)
WARM_UP, STEPS = 6, 4


class Counting(Protocol):
    """A way of counting calls."""

    def begin(self) -> None: ...
    def end(self) -> dict[str, int]: ...


class Profiler:
    """By torch's profiler."""

    def begin(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self._profile.start()

    def end(self) -> dict[str, int]:
        torch.cuda.synchronize()  # the profiler's stop is to find the kernels done
        self._profile.stop()
        counts: Counter[str] = Counter()
        for event in self._profile.events() or ():
            if kind := kind_of_call(event.name):
                counts[f"{kind} {event.name}"] += 1
            elif event.device_type == torch.autograd.DeviceType.CUDA:
                counts[f"kernel {event.name}"] += 1
        counts["wait cudaDeviceSynchronize"] -= 1  # the one above
        return +counts


def kind_of_call(name: str) -> str | None:
    """What a call of the CUDA runtime (cuda...) or driver (cu...) is to a step; None = nothing."""
    if name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")):
        return "launch"
    if name.startswith(("cudaMemcpyAsync", "cudaMemset", "cudaMemcpy2D", "cuMemcpy", "cuMemset")):
        return "copy"
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuCtxSynchronize")
    return "wait" if name in waits or name.startswith("cuStreamSynchronize") else None


def of_kind(counts: dict[str, int], kind: str) -> int:
    """All calls of a kind."""
    return sum(times for name, times in counts.items() if name.startswith(kind + " "))


def build(recipe: str, photos: Path, words: list[str]) -> Run:
    """A run of a recipe, whose pixels lie on the device."""
    given = f"--data.path {photos} --run-dir {photos}-run --model.weights none --data.pixels-from device".split()
    flags = [*given, "--data.num-workers", "0", "--train.epochs", "1000", *words]
    config, _ = settle_preprocessing(config_from_flags(load_recipe(recipe), flags, program="launches.py"))
    run = build_run(config, build_accelerator(mixed_precision="bf16"))
    set_training_mode(run.network)
    set_lr(run.optimizer, run.lr_of_step(0))
    return run


def count(counter: Counting, work: Callable[[Batch], object], batches: Iterator[Batch]) -> dict[str, int]:
    """Calls of a few times `work`, and no others: the batches are there before."""
    there = list(islice(batches, STEPS))
    torch.cuda.synchronize()
    counter.begin()
    for batch in there:
        work(batch)
    return counter.end()


def counts_of(run: Run, counter: Counting) -> dict[str, dict[str, int]]:
    """Part of a step → its calls in `STEPS` steps."""
    batches = each_batch(run.loaders["train"])
    to_pixels, normalizer = run.to_pixels["train"], run.normalizer
    pixels = to_pixels(next(batches))
    with fast_arithmetic(run.accelerator.device):
        for batch in islice(batches, WARM_UP):
            run.train_step(batch)
        return {
            "pixels": count(counter, to_pixels, batches),
            "normalisation": count(counter, lambda _: normalizer(pixels), batches),
            "step": count(counter, run.train_step, batches),
        }


def show(name: str, counts: dict[str, dict[str, int]], num_kernels: int) -> None:
    """A row of the table, and what is launched most often."""
    launches = [f"{of_kind(counts[part], 'launch') / STEPS:g}" for part in ("pixels", "normalisation", "step")]
    others = [f"{of_kind(counts['step'], kind) / STEPS:g}" for kind in ("copy", "wait")]
    print(f"| {' | '.join([name, *launches, *others])} |", flush=True)
    for part in ("pixels", "normalisation", "step") if num_kernels else ():
        kernels = Counter({key: times for key, times in counts[part].items() if not key.startswith("launch cu")})
        for kernel, times in kernels.most_common(num_kernels):
            print(f"    {part:<14}{times / STEPS:6g}  {kernel[:150]}")


def main() -> None:
    own, _, theirs = "\0".join(sys.argv[1:]).partition("\0--\0")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", default=RECIPES, help="with commas between them")
    parser.add_argument(
        "--models", default=MODELS, help="other networks, with the first recipe's transforms; '' = none"
    )
    parser.add_argument("--kernels", type=int, default=0, help="also show so many of the kernels launched most often")
    parser.add_argument("--counter", type=Path, default=None, help="another way of counting than torch's profiler")
    options = parser.parse_args(own.split("\0") if own else [])
    words = theirs.split("\0") if theirs else []
    counter: Counting = Profiler()
    if options.counter:
        counter = argparse.Namespace(**runpy.run_path(str(options.counter)))  # type: ignore[assignment]
    if not torch.cuda.is_available():
        sys.exit("Launches are those of a CUDA GPU, and none is visible here.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for told in ("data.transforms", "training.graph"):  # what was not to be had here
        logging.getLogger(f"accel_flowers.{told}").setLevel(logging.INFO)
    print(machine("torch", "torchvision", "accelerate", gpu=True), *words, sep="\n", end="\n\n")
    print("| launches of | pixels | normalisation | step | copies | waits |\n|---|---|---|---|---|---|")
    recipes, models = (list(filter(None, text.split(","))) for text in (options.recipes, options.models))
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_sample(Path(folder) / "photos", images_per_class=16, image_size=280)
        for recipe, model in [*((recipe, None) for recipe in recipes), *((recipes[0], model) for model in models)]:
            run = build(recipe, photos, [*(["--model.name", model] if model else []), *words])
            show(model or recipe, counts_of(run, counter), options.kernels)
            del run
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
