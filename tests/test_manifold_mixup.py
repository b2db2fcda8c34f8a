"""Manifold mixup: what is mixed where, that chance follows from the place alone, and what it is refused with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers.config.schema import Config, LossConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.layers import ends_of_stages
from accel_flowers.training import precision
from accel_flowers.training.build_task import build_task
from accel_flowers.training.graph import graphed
from accel_flowers.training.manifold_mixup import ManifoldMixup, find_cuts, mix, mixed_behind
from accel_flowers.training.step import LocalEngine, TrainStep, loaded_whole
from accel_flowers.training.tasks import TaskContext
from accel_flowers.training.train import train
from tests.conftest import CLASSES, make_folder
from tests.runs import metrics, tiny_config

CONTEXT = TaskContext(
    LossConfig(task="manifold_mixup"), torch.tensor([0, 1, 2]), CLASSES, torch.device("cpu"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25),
    image_size=(8, 8), seed=3,
)  # fmt: skip


class Line(nn.Module):
    """Three linear stages and a head without nonlinearity: mixing anywhere mixes the scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.fc = nn.Linear(3 * 64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.three(self.two(self.one(inputs))).flatten(1))
        return scores


class Detour(Line):
    """A way leads around its second stage."""

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.one(inputs)
        scores: Tensor = self.fc(self.three(self.two(first) + first).flatten(1))
        return scores


def made(network: nn.Module, **options: Any) -> ManifoldMixup:
    stages = {f"stage_{number}": end for number, end in enumerate(list(network.children())[:-1], start=1)}
    config = LossConfig(task="manifold_mixup", task_options=options)
    task = build_task(replace(CONTEXT, config=config, network=network, stages=stages))
    assert isinstance(task, ManifoldMixup)
    return task


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=8)


@pytest.mark.parametrize("stages", [1, 3])
def test_scores_and_targets_are_mixed_by_the_same_shares(stages: int) -> None:
    """By hand: a linear network's scores are the mean of both pictures' by the drawn share, wherever it mixes, and the loss is that of
    the labels' mean by the same share."""
    network = Line()
    task = made(network, alpha=1.0, stages=stages)
    inputs, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 3
    output = task.at(32)(network, inputs, labels)
    plain, hot = network(inputs), functional.one_hot(labels, 3).float()
    draws = [task.draw(place) for place in range(32, 48, 2)]
    shares = torch.tensor([draw.share for draw in draws]).repeat_interleave(2)[:, None]
    other = torch.arange(16) ^ 1
    torch.testing.assert_close(output.logits, shares * plain + (1 - shares) * plain[other])
    torch.testing.assert_close(
        output.loss, functional.cross_entropy(output.logits, shares * hot + (1 - shares) * hot[other])
    )
    assert output.mixed
    assert {draw.stage for draw in draws} <= set(range(stages + 1))
    assert not any(module._forward_hooks for module in network.modules()), "nothing is left in the network"


def test_stages_are_even_and_shares_beta_distributed() -> None:
    task = made(Line(), alpha=2.0, stages=3)
    draws = [task.draw(place) for place in range(0, 8000, 2)]
    assert np.bincount([draw.stage for draw in draws]) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    shares = np.array([draw.share for draw in draws])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / 20, abs=0.005), "of Beta(2, 2)"


@pytest.mark.holds("Mixing inside the network follows from the place in the stream")
def test_a_pair_is_mixed_alike_in_any_micro_batch() -> None:
    network, _ = build_network("squeezenet1_1", 3)
    network.eval()
    stages = ends_of_stages(network, find_backbone("squeezenet1_1"))
    task = build_task(replace(CONTEXT, network=network, stages=stages, image_size=(32, 32)))
    assert isinstance(task, ManifoldMixup)
    assert len(task.ends) == 3
    inputs, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    whole = task.at(16)(network, inputs, labels)
    pieces = [task.at(16 + at)(network, inputs[at : at + 2], labels[at : at + 2]) for at in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat([piece.logits for piece in pieces]), whole.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.stack([piece.loss for piece in pieces]).mean(), whole.loss, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(task.at(24)(network, inputs, labels).logits, whole.logits, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_type_and_layout_stay(layout: torch.memory_format) -> None:
    values = torch.randn(4, 5, 6, 7).to(torch.bfloat16).contiguous(memory_format=layout)
    mixed = mix(values, torch.tensor([0.25, 0.25, 1.0, 1.0]))
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=layout)
    assert torch.equal(mixed[2:], values[2:])
    torch.testing.assert_close(mixed[0].float(), 0.25 * values[0].float() + 0.75 * values[1].float(), atol=0.02, rtol=0)
    rows = torch.randn(2, 9, 4)
    assert torch.equal(mix(rows, torch.zeros(2)), rows.flip(0)), "a transformer's rows of patches, too"


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "vit_b_32", "swin_t"])
def test_stages_of_real_networks_are_cuts(name: str) -> None:
    """Of two pictures that are exchanged behind a stage the answers are exchanged."""
    torch.manual_seed(0)
    network, _ = build_network(name, 3)
    ends = dict(list(ends_of_stages(network, find_backbone(name)).items())[:4])
    size = (224, 224) if name == "vit_b_32" else (64, 64)
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert list(find_cuts(network, ends, size)) == list(ends)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_stage_that_another_way_leads_around_is_left_out() -> None:
    told: list[str] = []
    network = Detour()
    stages = {"stage_1": network.one, "stage_2": network.two}
    task = build_task(replace(CONTEXT, network=network, stages=stages, tell=told.append))
    assert isinstance(task, ManifoldMixup)
    assert task.ends == (network.one,)
    assert told == ["manifold_mixup: not behind stage_2, which a part of a picture goes around"]
    with pytest.raises(UserError, match="none that a whole picture goes through"):
        build_task(replace(CONTEXT, network=network, stages={"stage_2": network.two}))


def test_hooks_go_with_an_error() -> None:
    network = Line()
    with pytest.raises(RuntimeError), mixed_behind(network.one, torch.ones(4)):
        network(torch.randn(2, 3, 8, 8))
    assert not network.one._forward_hooks


@pytest.mark.parametrize(
    ("options", "micro_batch", "words"),
    [
        ({}, 7, "a forward pass holds 7: take an even --train.micro-batch-size"),
        ({"alpha": 0}, 8, r"alpha is a number from 0\.01"),
        ({"stages": 0}, 8, "stages is a number of first stages"),
        ({"beta": 1}, 8, "unexpected keyword argument 'beta'"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], micro_batch: int, words: str) -> None:
    config = LossConfig(task="manifold_mixup", task_options=options)
    with pytest.raises(UserError, match=words):
        build_task(replace(CONTEXT, config=config, network=Line(), micro_batch=micro_batch))
    with pytest.raises(UserError, match="even"):
        made(Line()).at(0)(Line(), torch.randn(3, 3, 8, 8), torch.arange(3))


def test_neither_compiled_nor_a_graph(photos: Path, tmp_path: Path) -> None:
    loss = {"task": "manifold_mixup"}
    with pytest.raises(UserError, match=r"manifold_mixup draws for each batch.*leave --train\.compile out"):
        train(tiny_config(photos, tmp_path / "run", loss=loss, train={"compile": True}))
    config = Config.model_validate({"loss": loss, "train": {"cuda_graph": "on"}})
    step = TrainStep(LocalEngine(), Line(), None, made(Line()), loaded_whole, torch.Tensor.float)
    with pytest.raises(UserError, match="manifold_mixup draws for each batch"):
        graphed(step, config, device=torch.device("cuda"), plan=BatchPlan(100, 1, 8))


def test_the_step_gives_the_place_and_counts_no_right_answers() -> None:
    """The network learns of what is mixed: gradients are those of the mixed loss."""
    network = Line()
    task = made(network)
    step = TrainStep(
        LocalEngine(), network, torch.optim.SGD(network.parameters(), 0.0), task, loaded_whole, torch.Tensor.float
    )
    pixels, labels = torch.randint(9, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    output = step(Batch(pixels=pixels, labels=labels, samples=labels, micro_batch=5))
    torch.testing.assert_close(output.loss, task.at(20)(network, pixels.float(), labels).loss)
    assert "accuracy" not in output.parts


def test_the_trial_of_precisions_mixes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    drawn = ManifoldMixup.draw
    monkeypatch.setattr(ManifoldMixup, "draw", lambda self, place: asked.append(place) or drawn(self, place))
    monkeypatch.setattr(precision, "BUDGET_SECONDS", 0.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny_config(photos, tmp_path / "run", loss={"task": "manifold_mixup"})
    assert precision.try_precisions(config, num_processes=1) is not None
    assert asked


@pytest.mark.holds("Mixing inside the network follows from the place in the stream")
def test_losses_do_not_depend_on_the_micro_batch(photos: Path, tmp_path: Path) -> None:
    losses = []
    for micro_batch in (8, 2):
        config = tiny_config(
            photos, tmp_path / str(micro_batch), model={"dropout": 0.0}, train={"micro_batch_size": micro_batch},
            loss={"task": "manifold_mixup", "task_options": {"alpha": 1.0}}, ema={"decay": 0.9},
        )  # fmt: skip
        train(config)
        losses.append(metrics(tmp_path / str(micro_batch), "train/loss"))
        assert metrics(tmp_path / str(micro_batch), "train/accuracy") == []
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4, rtol=0)
