"""An evaluation whose processes wait for each other in each forward pass; what every one is told goes to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accel_flowers.inference.loop import predict_loader


class Together(nn.Module):
    """Waits for the others in each forward pass, as a network does whose weights are spread over the processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)
        )
        self.passes = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.passes += 1
        there = torch.ones(1)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(there)
            assert there == torch.distributed.get_world_size()
        scores: Tensor = self.body(pixels)
        return scores


def main(words: Sequence[str]) -> None:
    """Score as many images as each word after the folder says; DIR/SIZE-PROCESSES-RANK.npz gets what was found."""
    folder, *sizes = words
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    pixels = torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    for num_images in map(int, sizes):
        _score(accelerator, pixels, num_images, folder)
    accelerator.end_training()


def _score(accelerator: Accelerator, pixels: Tensor, num_images: int, folder: str) -> None:
    def pack(chosen: list[tuple[int, int]]) -> dict[str, Any]:
        return {"rows": torch.tensor(chosen).double(), "micro_batch": 0}

    rows = [(sample, sample % 4) for sample in range(num_images)]
    loader = accelerator.prepare(DataLoader(rows, batch_size=4, collate_fn=pack))  # type: ignore[arg-type]
    network, rounds = Together(), []
    found = predict_loader(
        network, loader, lambda batch: pixels[batch["samples"]], accelerator,
        num_images=num_images, after_round=lambda: rounds.append(1),
    )  # fmt: skip
    assert accelerator.gradient_state.active_dataloader is None, "the loader came to its end"
    assert len(rounds) == network.passes == -(-num_images // (4 * accelerator.num_processes))
    np.savez(
        f"{folder}/{num_images}-{accelerator.num_processes}-{accelerator.process_index}.npz",
        labels=found.labels, probabilities=found.probabilities, losses=found.losses,
    )  # fmt: skip
