"""How a device's libraries compute: TensorFloat-32, cuDNN's choice of algorithms, a CPU's memory, which half precision is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from accel_flowers.core.allocator import freed_memory_is_kept

HalfPrecision = Literal["bf16", "fp16", "no"]
"""In Accelerate's words; "no" is float32."""


def fast_precision(device: torch.device) -> HalfPrecision:
    """What a device is fast in. torch computes bf16 on NVIDIA's older GPUs, too, by way of float32, which is slower than that."""
    if device.type == "cpu":
        return "no"  # whether its bf16 is faster depends on the network
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return precision_before_bf16(torch.cuda.get_device_capability(device))


def precision_before_bf16(capability: tuple[int, int]) -> HalfPrecision:
    """The same by NVIDIA's number of the architecture, for those before Ampere (8.0), the first that has bf16.

    fp16 is fast since Pascal's P100 (6.0), but a 64th of float32 on the other Pascals (6.1 and 6.2).
    """
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability == (6, 0) or capability >= (7, 0) else "no"


@contextmanager
def cudnn_heuristics() -> Iterator[None]:
    """Let cuDNN take its ways by rule and not by trial while the block lasts: the scores of a model are then the same each
    time, and a last batch of fewer images costs no search of its own."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def fast_arithmetic(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """On a GPU, while the block lasts: TensorFloat-32 where float32 is multiplied, and the convolution that a first try
    finds fastest; not where the same bits are wanted each time. On a CPU the same bits in less time: freed memory is kept."""
    if device.type == "cpu":
        with freed_memory_is_kept():
            yield
        return
    if device.type != "cuda" or deterministic:
        yield
        return
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)
