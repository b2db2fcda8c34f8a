"""Depthwise convolutions on a CPU: in training they are computed in float32, also where the rest is in bf16.

oneDNN's backward pass of these in bf16 takes up to ten times as long as the one in float32 (EfficientNet-Lite0's fifth stage:
202 against 37 ms for the weights, its second 320 against 25 ms for the input, one core of an Intel Xeon with avx512_bf16 and amx_bf16, torch
2.14; of whole steps `benchmarks/depthwise.py` tells),
more than bf16 gains in all the rest of such a network.

Not for: GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _LearnsInFloat32(nn.Module):
    """Comes before a convolution's class: under autocast it is taken out of it where there will be a backward pass."""

    weight: Tensor

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not learns or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x, *others, **named)
        with torch.autocast("cpu", enabled=False):
            answer: Tensor = super().forward(x.float(), *others, **named)
        return answer.to(torch.get_autocast_dtype("cpu"))


def learn_depthwise_in_float32(network: nn.Module) -> None:
    """Have a network's depthwise convolutions learn in float32 on a CPU; elsewhere, and without autocast, nothing changes.

    Args:
        network: any; its parameters, their names and what it answers when asked alone stay the same.
    """
    for module in network.modules():
        is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if is_depthwise and not isinstance(module, _LearnsInFloat32):
            kind = type(module)
            # As torch's parametrizations do; hooks, copies and checks of the type go on as before.
            module.__class__ = type(kind.__name__, (_LearnsInFloat32, kind), {"__module__": kind.__module__})
