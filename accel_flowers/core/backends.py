"""How a GPU's libraries compute: TensorFloat-32, cuDNN's choice of algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    finds fastest; not where the same bits are wanted each time. A CPU computes as it does."""
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
