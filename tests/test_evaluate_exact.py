"""The guard of evaluation: it lets a part through whose images were all seen once, and names what is wrong else."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accel_flowers.inference.loop import check_every_image_once, predict_loader


def complaint(samples: list[int], num_images: int) -> dict[str, list[int]]:
    """The three lists of the message."""
    with pytest.raises(RuntimeError) as caught:
        check_every_image_once(np.array(samples, dtype=np.int64), num_images)
    found = re.fullmatch(
        rf"Evaluation did not see each of {num_images} pictures once: "
        r"missing \[(.*)\], seen more than once \[(.*)\], beyond the end \[(.*)\]\.",
        str(caught.value),
    )
    assert found, str(caught.value)
    lists = [[int(word) for word in group.split(", ") if word] for group in found.groups()]
    return dict(zip(("missing", "doubled", "beyond"), lists, strict=True))


@pytest.mark.parametrize(
    ("samples", "missing", "doubled", "beyond"),
    [
        ([0, 1, 3], [2], [], []),
        ([], [0, 1, 2, 3], [], []),
        ([0, 1, 2, 3, 1], [], [1], []),
        ([3, 3, 3, 2], [0, 1], [3], []),
        ([0, 1, 2, 3, 6], [], [], [6]),
        ([0, 1, 2, 4], [3], [], [4]),
        ([0, 0, 1, 5, 5], [2, 3], [0], [5]),
    ],
    ids=["missing", "nothing seen", "doubled", "tripled", "beyond", "off by one", "all at once"],
)
def test_the_message_says_which(samples: list[int], missing: list[int], doubled: list[int], beyond: list[int]) -> None:
    assert complaint(samples, 4) == {"missing": missing, "doubled": doubled, "beyond": beyond}


def test_the_message_stays_short() -> None:
    assert complaint([], 1000)["missing"] == list(range(20))


def test_every_image_once_passes_in_any_order() -> None:
    check_every_image_once(np.random.default_rng(0).permutation(100), 100)


@settings(max_examples=100)
@given(samples=st.lists(st.integers(0, 6), max_size=7))
def test_it_passes_exactly_the_permutations(samples: list[int]) -> None:
    if sorted(samples) == list(range(5)):
        check_every_image_once(np.array(samples), 5)
    else:
        assert any(complaint(samples, 5).values())


def test_it_takes_its_ways_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of cuDNN's finds other ways at other times, and with them other last digits."""
    seen: list[bool] = []

    class Network(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.benchmark)
            return pixels

    batch = {"rows": torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "micro_batch": 0, "pixels": torch.eye(2)}
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    found = predict_loader(Network(), [batch], lambda given: given["pixels"], Accelerator(cpu=True), num_images=2)  # type: ignore[arg-type]
    assert found.labels.tolist() == [0, 1]
    assert seen == [False]
    assert torch.backends.cudnn.benchmark, "as it was"
