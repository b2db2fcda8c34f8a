#!/usr/bin/env python
"""What depthwise convolutions cost a CPU's training in bf16: a step with them in bf16, all in float32, and with them alone in float32.

The last is what a run does (`models/depthwise.py`). The three take turns, so that other work on the machine slows all alike; told
is the fastest of the rounds, and the ratios to it.

  OMP_NUM_THREADS=1 python benchmarks/depthwise.py --models timm/tf_efficientnet_lite0 mobilenet_v2 convnext_tiny
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from common import machine
from torch import nn
from torch.nn.functional import cross_entropy

from accel_flowers.core.allocator import freed_memory_is_kept
from accel_flowers.models.depthwise import learn_depthwise_in_float32
from accel_flowers.models.find import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["timm/tf_efficientnet_lite0", "mobilenet_v2", "convnext_tiny"])
    parser.add_argument("--images", type=int, default=32, help="in a step; default 32")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side; default 224")
    parser.add_argument("--rounds", type=int, default=4, help="default 4; the first is a warm-up")
    asked = parser.parse_args()
    print(
        f"{machine('torch', 'torchvision')}; {torch.get_num_threads()} threads, {asked.images} pictures of {asked.size} pixels"
    )
    for name in asked.models:
        network, _ = build_network(name, 5)
        ways = {"bf16": network, "float32": copy.deepcopy(network), "as a run": copy.deepcopy(network)}
        learn_depthwise_in_float32(ways["as a run"])
        best = dict.fromkeys(ways, float("inf"))
        with freed_memory_is_kept():
            for number in range(asked.rounds):
                for way, model in ways.items():
                    seconds = step(model, asked.images, asked.size, bf16=way != "float32")
                    best[way] = min(best[way], seconds) if number else best[way]
        ours = best["as a run"]
        told = ", ".join(f"{way} {seconds:.2f} s (x {seconds / ours:.2f})" for way, seconds in best.items())
        print(f"{name}: {told}", flush=True)


def step(network: nn.Module, images: int, size: int, *, bf16: bool) -> float:
    """Seconds of a forward and a backward pass."""
    network.train().to(memory_format=torch.channels_last)
    network.zero_grad()
    pixels = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(images) % 5
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        scores = network(pixels)
    cross_entropy(scores.float(), labels).backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
