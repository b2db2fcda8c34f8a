#!/usr/bin/env python
"""Training speed on this device, loading left out: this project's step beside a plain loop, one process.

  ours   what a run does with each micro-batch: the project's network, normalisation, objective and optimizer, prepared by
         Accelerate, channels last where the network wants it, in the precision of `accelerate_configs/cpu.yaml` and
         `single_gpu.yaml`, bf16, unless the trial before a run (`accel_flowers.training.precision`) finds float32 faster on this CPU
  plain  a loop as tutorials have it: float32, contiguous, torchvision's network, torch.optim.SGD as it comes

Both get the same random uint8 images, which are on the device already, and take a step of SGD with momentum from random
weights. They run in turn (A B A B ...), after a warm-up. Prints images a second of every round, medians, spread and the
median of the ratios of neighbouring rounds. Other work on the machine spoils single rounds.

  python benchmarks/training.py
  python benchmarks/training.py --models resnet18 --size 128 --rounds 9

Goals on a CPU with AVX512-BF16 or AMX: 3 times as fast for ResNet-18 at 224 pixels, never slower for any network.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable

from common import PROJECT, machine, ratio, spread

sys.path.insert(0, str(PROJECT))

import torch
from torch import Tensor
from torchvision import models

from accel_flowers.config.schema import Config
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.data.dataset import Batch
from accel_flowers.distributed.launch import build_accelerator, start_processes
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.find import build_network
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.training.optim import build_optimizer
from accel_flowers.training.precision import try_precisions
from accel_flowers.training.step import TrainStep, loaded_whole
from accel_flowers.training.tasks import build_criterion, classification

MODELS = "resnet18,resnet50,mobilenet_v2,mobilenet_v3_small,efficientnet_b0,convnext_tiny"
CLASSES = 5
Step = Callable[[], None]


def build_ours(config: Config, pixels: Tensor, labels: Tensor) -> tuple[Step, str]:
    """The step of a run, and a word on its precision."""
    precision, found = "bf16", ""
    if start_processes().device.type == "cpu":
        choice = try_precisions(config, num_processes=1)
        if choice is not None:
            precision, found = choice.precision, f" (trial: float32 is {choice.ratio:.2f} times as fast as bf16)"
    accelerator = build_accelerator(mixed_precision=precision)
    device = accelerator.device
    network, _ = build_network(config.model.name, CLASSES)
    network.to(device)
    channels_last = wants_channels_last(network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    *_, mean, std = config.data.preprocessing()
    normalizer = Normalizer(mean, std, channels_last=channels_last)
    task = classification(build_criterion(config.loss, labels, CLASSES, device))
    model, optimizer = accelerator.prepare(network, build_optimizer(network, config.optim))
    set_training_mode(network)
    batch = Batch(pixels=pixels, labels=labels, samples=torch.arange(len(labels)), micro_batch=0)
    train_step = TrainStep(accelerator, model, optimizer, task, loaded_whole, normalizer)

    def step() -> None:
        with fast_arithmetic(device):
            train_step(batch)

    return step, f"{precision}{', channels last' if channels_last else ''}{found}"


def build_plain(config: Config, pixels: Tensor, labels: Tensor) -> Step:
    """The step of a tutorial."""
    device = pixels.device
    network = models.get_model(config.model.name, num_classes=CLASSES).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=config.optim.lr, momentum=config.optim.momentum)
    criterion = torch.nn.CrossEntropyLoss()
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in config.data.preprocessing()[2:])

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(network((pixels.float() / 255 - mean) / std), labels)
        loss.backward()
        optimizer.step()

    return step


def images_a_second(step: Step, device: torch.device, *, batch: int, seconds: float) -> float:
    """Over whole steps, at least one; the device's queue is empty before and after."""
    synchronize(device)
    begun, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - begun < seconds:
        step()
        steps += 1
        if device.type != "cpu" and steps % 10 == 0:
            synchronize(device)  # or the queue would run far ahead of the clock
    synchronize(device)
    return batch * steps / (time.perf_counter() - begun)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measure(name: str, asked: argparse.Namespace) -> None:
    device = start_processes().device
    size = {"size": asked.size}
    config = Config.model_validate(
        {
            "model": {"name": name, "weights": "none"},
            "data": {"train_transforms": [{"RandomResizedCrop": size}]},
            "train": {"global_batch_size": asked.batch},
        }
    )
    config, _ = settle_preprocessing(config)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (asked.batch, 3, asked.size, asked.size), dtype=torch.uint8).to(device)
    labels = (torch.arange(asked.batch) % CLASSES).to(device)
    ours, precision = build_ours(config, pixels, labels)
    steps = {"ours": ours, "plain": build_plain(config, pixels, labels)}
    print(f"{name}: ours in {precision}", flush=True)
    rates: dict[str, list[float]] = {kind: [] for kind in steps}
    for step in steps.values():
        for _ in range(asked.warmup):
            step()
    for number in range(1, asked.rounds + 1):
        for kind, step in steps.items():
            rates[kind].append(images_a_second(step, device, batch=asked.batch, seconds=asked.seconds))
        print(f"{number:4}  " + "  ".join(f"{kind} {row[-1]:7.1f}" for kind, row in rates.items()), flush=True)
    words = ", ".join(f"{kind} {spread(row, 1)}" for kind, row in rates.items())
    print(f"{name}: images/s {words}; ours / plain {ratio(rates['ours'], rates['plain'])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default=MODELS, help="torchvision's names with commas between; default %(default)s")
    add("--size", type=int, default=224, help="pixels; default %(default)s")
    add("--batch", type=int, default=32, help="pictures a step; default %(default)s")
    add("--rounds", type=int, default=5, help="of each; default %(default)s")
    add("--seconds", type=float, default=3, help="of a round, whole steps; default %(default)s")
    add("--warmup", type=int, default=2, help="steps of each before the first round; default %(default)s")
    asked = parser.parse_args()
    where = machine("torch", "torchvision", "accelerate", gpu=start_processes().device.type == "cuda")
    print(f"{where}; {torch.get_num_threads()} threads, {asked.size} px, {asked.batch} pictures a step", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # so that the trial is one of now
        for name in asked.models.split(","):
            measure(name, asked)


if __name__ == "__main__":
    main()
