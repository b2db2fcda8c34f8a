"""Batch norm on several processes: each keeps statistics of what it saw, and they are averaged before they count."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from accel_flowers.config.loading import load_recipe
from accel_flowers.core import registry
from accel_flowers.distributed.ddp import disable_buffer_broadcast
from accel_flowers.training.build import build_run
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import PROJECT, write_recipe

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on two processes whose network has batch norm: an epoch is 3 steps and a bit, a checkpoint comes each step."""
    folder = tmp_path_factory.mktemp("norm")
    photos = make_folder(folder / "photos", per_class=10)
    recipe = write_recipe(
        folder / "recipe.yaml",
        model={"name": "my/tiny"},
        checkpoint={"every_steps": 1, "keep_last": 100},
        train={"epochs": 2},
    )
    words = ["train", recipe, "--import", PROJECT / "examples/my_parts.py", "--data.path", photos]
    finish(folder, [*words, "--run-dir", folder / "run"], processes=2, entry="tests.every_checkpoint:main")
    return folder / "run/checkpoints"


def rows_at(checkpoint: Path) -> torch.Tensor:
    """Running statistics of each process, [2, values]."""
    return load_file(checkpoint / "buffers.safetensors")["model.safetensors"]


@pytest.mark.holds(
    "Each process keeps the batch-norm statistics of what it saw, and their mean is what is scored and saved"
)
def test_inside_an_epoch_each_process_has_its_own(checkpoints: Path) -> None:
    own = rows_at(checkpoints / "step-00000002")
    assert own.shape[0] == 2
    assert not torch.equal(own[0], own[1])


@pytest.fixture
def _own_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's parts, in this process and for one test."""
    monkeypatch.setattr(registry, "_parts", {})
    registry.import_parts([str(PROJECT / "examples/my_parts.py")])
    yield
    sys.modules.pop("my_parts", None)


@pytest.mark.holds(
    "Each process keeps the batch-norm statistics of what it saw, and their mean is what is scored and saved"
)
@pytest.mark.usefixtures("_own_parts")
def test_they_are_what_it_saw_alone(checkpoints: Path) -> None:
    """Replayed in one process: the first steps' micro-batches, dealt out, with the weights of those steps. DDP, left to
    itself, begins each step on every process with the statistics of process 0."""
    run_dir = checkpoints.parent
    run = build_run(load_recipe(str(run_dir / "config.yaml")), Accelerator(cpu=True), split_file=run_dir / "split.json")
    expected = []
    for rank in (0, 1):
        network = copy.deepcopy(run.network).train()
        body = nn.Sequential(*list(network)[:2])
        for step in (0, 1):
            if step:
                weights = load_file(checkpoints / f"step-{step:08d}/model.safetensors")
                body[0].load_state_dict({name: weights[f"0.{name}"] for name in ("weight", "bias")})
            keys = run.stream.micro_batch_at(2 * step + rank)
            body(run.input_of("train")(run.parts["train"].__getitems__(keys)))  # type: ignore[arg-type]
        expected.append(torch.cat([body[1].running_mean, body[1].running_var]))
    own = rows_at(checkpoints / "step-00000002")
    torch.testing.assert_close(own, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert (own[0] - own[1]).abs().max() > 1e-3, "else this would prove little"


@pytest.mark.holds(
    "Each process keeps the batch-norm statistics of what it saw, and their mean is what is scored and saved"
)
def test_after_an_evaluation_all_have_the_mean(checkpoints: Path) -> None:
    steps = sorted(checkpoints.glob("step-*"))
    same = [step.name for step in steps if torch.equal(*rows_at(step))]
    assert same == ["step-00000003", "step-00000006"], "at the ends of both epochs, and only there"
    weights = load_file(checkpoints / "step-00000006/model.safetensors")
    statistics = torch.cat([weights["1.running_mean"], weights["1.running_var"]])
    assert torch.equal(statistics, rows_at(checkpoints / "step-00000006")[0])


@pytest.mark.holds(
    "Each process keeps the batch-norm statistics of what it saw, and their mean is what is scored and saved"
)
def test_the_mean_is_one_of_all_processes(tmp_path: Path) -> None:
    with Ranks(tmp_path, *[["average"]] * 3, entry="tests.buffers:main") as ranks:
        assert ranks.codes(60) == [0, 0, 0], ranks.output()


@pytest.mark.holds("The first step, also after a resume, sums gradients as later ones")
def test_the_first_step_sums_in_the_order_of_the_others(tmp_path: Path) -> None:
    """From three processes on DDP rebuilds its buckets after the first backward pass, unless they were laid out before."""
    with Ranks(tmp_path, *[["buckets"]] * 3, entry="tests.buffers:main") as ranks:
        assert ranks.codes(60) == [0, 0, 0], ranks.output()


def test_a_wrapper_that_is_not_known_does_not_go_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled around DDP is looked into; several processes without it are a bug that is told, not passed over."""
    network = nn.Linear(2, 2)
    disable_buffer_broadcast(network)  # one process
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(AssertionError, match="Linear is not DistributedDataParallel"):
        disable_buffer_broadcast(network)
    ddp = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(ddp)
    ddp.broadcast_buffers = True
    disable_buffer_broadcast(torch.compile(ddp, backend="eager"))
    assert not ddp.broadcast_buffers
