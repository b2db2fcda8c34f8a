"""The head alone, then everything: what trains when, what moves, and that a resume and several processes change nothing."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from accel_flowers.config.effects import fit_warmup, settings_without_effect
from accel_flowers.config.schema import Config, ScheduleConfig, TrainConfig
from accel_flowers.core.errors import UserError
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.layers import layers_of
from accel_flowers.training.optim import build_lr_schedule
from accel_flowers.training.phases import build_phases, num_training_at
from accel_flowers.training.run import Run
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.faults import Forked, differences, far_apart, fault_recipe, phased_recipe
from tests.ranks import finish
from tests.runs import tiny_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def test_what_trains_when() -> None:
    at_once = TrainConfig(head_epochs=2)
    assert [num_training_at(epoch, at_once, 6) for epoch in (0, 1.99, 2, 9)] == [1, 1, 6, 6]
    slowly = TrainConfig(head_epochs=1, unfreeze_every_epochs=2)
    epochs = (0, 0.9, 1, 2.9, 3, 5, 7, 8.9, 9, 90)
    assert [num_training_at(epoch, slowly, 6) for epoch in epochs] == [1, 1, 2, 2, 3, 4, 5, 5, 6, 6]
    assert num_training_at(0, TrainConfig(), 6) == 6
    assert num_training_at(5, slowly, 1) == 1


def test_phases_go_back_and_never_free_what_is_frozen() -> None:
    name = "shufflenet_v2_x0_5"
    network, backbone = build_network(name, 3)[0], find_backbone(name)
    freeze(network, 2, backbone)
    phases = build_phases(network, list(layers_of(network, backbone).values()), TrainConfig(head_epochs=1))

    def training() -> set[str]:
        return {path.split(".")[0] for path, parameter in network.named_parameters() if parameter.requires_grad}

    assert phases.enter(0)
    assert training() == {"fc"}
    assert not phases.enter(0.5)
    assert phases.enter(1)
    assert training() == {"stage3", "stage4", "conv5", "fc"}
    assert phases.enter(0.9), "a rollback"
    assert training() == {"fc"}


def test_the_schedule_begins_behind_the_head() -> None:
    config = ScheduleConfig(name="cosine", warmup_epochs=1)
    whole = build_lr_schedule(config, lr=0.4, epochs=10, head_epochs=2, step=0.1)
    behind = build_lr_schedule(config, lr=0.4, epochs=8, step=0.1)
    assert [whole(epoch / 10) for epoch in range(20)] == [0.4] * 20
    assert [whole(2 + epoch / 8) for epoch in range(65)] == [behind(epoch / 8) for epoch in range(65)]


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"head_epochs 3 is no less than train\.epochs 3.*--model\.freeze backbone"):
        fit_warmup(Config(train=TrainConfig(epochs=3, head_epochs=3)))
    with pytest.raises(ValueError, match=r"add head_epochs: 1 or --train\.head-epochs 1"):
        TrainConfig(unfreeze_every_epochs=1)
    told = Config.model_validate({"model": {"freeze": "backbone"}, "train": {"head_epochs": 1}})
    assert "train.head_epochs 1.0, because model.freeze is backbone" in settings_without_effect(told, {})[0]
    config, lines = fit_warmup(
        Config(train=TrainConfig(epochs=3, head_epochs=2), schedule=ScheduleConfig(warmup_epochs=1))
    )
    assert config.schedule.warmup_epochs == 0.2
    assert "train.epochs 3 without train.head_epochs 2" in lines[0]


@pytest.mark.holds("The head trains alone for as long as a recipe says")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_backbone_stays_to_the_bit_and_moves_later(
    photos: Path, tmp_path: Path, optimizer: str, every_checkpoint: None
) -> None:
    """Statistics of batch norm, too; neither weight decay nor an optimizer's state acts on it."""
    config = tiny_config(
        photos, tmp_path / "run", model={"name": "shufflenet_v2_x0_5"},
        optim={"name": optimizer, "lr": 1e-2, "weight_decay": 0.1},
        train={"epochs": 3, "head_epochs": 1}, checkpoint={"keep_last": 100, "every_steps": 1},
    )  # fmt: skip
    train(config)
    folders = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    states = [load_file(folder / "model.safetensors") for folder in folders]
    change = int(next(index for index, folder in enumerate(folders) if int(folder.name[5:]) * 8 >= 28))
    names = [name for name in states[0] if not name.startswith("fc.")]
    assert all(torch.equal(states[0][name], states[change][name]) for name in names)
    assert not torch.equal(states[0]["fc.weight"], states[change]["fc.weight"])
    moved = [name for name in names if not torch.equal(states[change][name], states[change + 1][name])]
    assert len(moved) > 0.9 * len(names)
    of_head, of_all = (
        torch.load(folders[at] / "optimizer.pt", weights_only=True)["optimizer"]["state"] for at in (change, change + 1)
    )
    assert len(of_head) == 2, "weight and bias of the head"
    assert len(of_all) > 100
    if optimizer == "adamw":
        assert sorted({int(each["step"]) for each in of_all.values()}) == [1, change + 2]


@pytest.mark.multiprocess
@pytest.mark.holds("The head trains alone for as long as a recipe says")
@pytest.mark.holds("The same on another number of processes")
@pytest.mark.parametrize("starts", [((2, 2), (1, 8)), pytest.param(((1, 2), (4, 8), (2, 10)), marks=pytest.mark.slow)])
def test_resumed_in_each_phase_on_any_number_of_processes(
    photos: Path, tmp_path: Path, starts: tuple[tuple[int, int], ...]
) -> None:
    """Killed while the head trains and when all does: 29 images, so that the head alone trains in 6 steps of 8."""
    words: list[str | Path] = [phased_recipe(tmp_path / "recipe.yaml"), "--data.path", photos]
    of_one, of_all = tmp_path / "one", tmp_path / "all"
    finish(tmp_path, ["train", *words, "--run-dir", of_one])
    for processes, step in starts:
        with Forked(processes, of_all, *words) as run:
            run.wait_for_step(step)
            for rank in range(processes):
                run.signal(rank, signal.SIGKILL)
            assert run.steps_seen() < (6 if step == 2 else 15), "killed too late to prove anything"
    finish(tmp_path, ["train", *words, "--run-dir", of_all, "--resume", "auto"], processes=2)
    assert far_apart(of_one, of_all) == []


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.holds("The head trains alone for as long as a recipe says")
def test_three_processes_go_on_bit_for_bit_in_each_phase(photos: Path, tmp_path: Path) -> None:
    """With batch norm; DDP is wrapped anew in mid-run in one run, and never in the other."""
    phases = ["--train.head-epochs", "1", "--train.unfreeze-every-epochs", "0.5", "--train.global-batch-size", "12"]
    phases += ["--soup.start", "0.3"]
    words: list[str | Path] = [fault_recipe(tmp_path / "recipe.yaml"), "--data.path", photos, *phases]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(tmp_path, ["train", *words, "--run-dir", whole], processes=3)
    for step in (1, 6):
        with Forked(3, killed, *words) as run:
            run.wait_for_step(step)
            for rank in range(3):
                run.signal(rank, signal.SIGKILL)
    finish(tmp_path, ["train", *words, "--run-dir", killed, "--resume", "auto"], processes=3)
    assert differences(whole, killed) == []


def test_a_rollback_goes_back_to_the_phase_of_its_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is one of the head's phase: from there on the head trains alone again, and then all."""
    at_steps: list[tuple[int, int]] = []
    entered = Run.enter_phase

    def note(run: Run, step: int) -> None:
        entered(run, step)
        at_steps.append((step, run.phases.num_training))
        if (step, run.state.rollbacks) == (6, 0):
            next(run.network.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Run, "enter_phase", note)
    config = tiny_config(
        photos, tmp_path / "run", optim={"lr": 1e-3},
        train={"epochs": 2, "head_epochs": 1.2, "on_nan": "rollback", "micro_batch_size": 8},
    )  # fmt: skip
    train(config)
    steps = [step for step, _ in at_steps]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]
    assert [number == 1 for _, number in at_steps] == [step <= 4 for step in steps]
