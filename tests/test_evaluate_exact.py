"""The guard of evaluation: it lets a part through whose images were all seen once, and names what is wrong else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accel_flowers.inference.loop import check_every_image_once, predict_loader
from tests.ranks import Ranks


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


@pytest.mark.holds("Every picture is scored once")
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


@pytest.mark.holds("All processes make equally many forward passes in an evaluation")
@pytest.mark.multiprocess
def test_all_processes_make_equally_many_forward_passes(tmp_path: Path) -> None:
    """33 images in batches of 4 are five rounds for one of two processes and four for the other; of 3 images the other
    gets none at all. What every process is told is to the last digit what one finds alone."""
    sizes = ["33", "3", "32", "5"]
    for processes in (1, 2):
        with Ranks(tmp_path, *[[tmp_path, *sizes]] * processes, entry="tests.rounds:main") as ranks:
            assert ranks.codes(60) == [0] * processes, ranks.output()
    for size in sizes:
        alone, *others = (np.load(tmp_path / f"{size}-{name}.npz") for name in ("1-0", "2-0", "2-1"))
        assert len(alone["labels"]) == int(size)
        for other in others:
            for name in ("labels", "probabilities", "losses"):
                np.testing.assert_array_equal(alone[name], other[name])


@pytest.mark.holds("Every picture is scored once")
@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ([0, 1, 2, 3], None),
        ([0, 1, 1, 3], r"missing \[2\], seen more than once \[1\]"),
        ([0, 1, 2], r"missing \[3\]"),
        ([0, 1, 2, 3, 4], r"beyond the end \[4\]"),
    ],
)
def test_an_evaluation_refuses_what_a_wrong_loader_gives(samples: list[int], told: str | None) -> None:
    """The guard stands in the evaluation itself, not only beside it."""
    rows = torch.tensor([[float(sample), 0.0] for sample in samples])
    batch = {"rows": rows, "micro_batch": 0, "pixels": torch.zeros(len(samples), 2)}
    accelerator = Accelerator(cpu=True)

    def score() -> None:
        predict_loader(nn.Identity(), [batch], lambda batch: batch["pixels"], accelerator, num_images=4)  # type: ignore[arg-type]

    if told is None:
        score()
    else:
        with pytest.raises(RuntimeError, match=told):
            score()
