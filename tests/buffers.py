"""What each of several processes does in tests of batch norm and DDP; an assertion that fails is its exit code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from accel_flowers.distributed.ddp import average_buffers, disable_buffer_broadcast, warm_up_ddp_buckets
from accel_flowers.distributed.launch import build_accelerator


def main(words: Sequence[str]) -> None:
    """Run one of the functions below."""
    {"average": average, "buckets": buckets}[words[0]]()


def average() -> None:
    """Running statistics become the mean of all processes'; those of a frozen layer stay each process's own."""
    accelerator = build_accelerator()
    rank, size = accelerator.process_index, accelerator.num_processes
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    for buffer in network.buffers():
        buffer.fill_(rank)
    average_buffers(network, accelerator)
    mean = (size - 1) / 2
    assert size == 3
    assert network[0].running_mean.tolist() == [mean] * 4
    assert network[0].running_var.tolist() == [mean] * 4
    assert network[1].running_mean.tolist() == [rank] * 4
    before = [buffer.clone() for buffer in network.buffers()]
    average_buffers(network, accelerator)
    assert all(map(torch.equal, before, network.buffers())), "to do it twice changes nothing"


def buckets() -> None:
    """After the warm-up the first step's gradients are summed as those of later ones; statistics and weights stay."""
    accelerator = build_accelerator()
    for warm in (True, False):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9)]
        network = nn.Sequential(*layers)
        model = accelerator.prepare_model(network)
        disable_buffer_broadcast(model)
        torch.manual_seed(accelerator.process_index)
        pixels = torch.randn(2, 3, 8, 8)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items() if "num_batches" not in name}
        if warm:
            warm_up_ddp_buckets(model, network, pixels)
            assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())
        gradients = [gradient_of(model, pixels) for _ in range(4)]
        assert torch.equal(gradients[0], gradients[3]) == warm, "without it the first steps are summed in another order"
        network[1].running_mean.fill_(accelerator.process_index)
        model.eval()
        model(pixels)  # which updates no statistics; DDP would broadcast those of process 0
        assert network[1].running_mean.unique().tolist() == [accelerator.process_index]


def gradient_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Of all parameters, after DDP has averaged it."""
    model(pixels).square().sum().backward()
    gradient = torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])
    model.zero_grad()
    return gradient
