"""Checkpoints: what is the best, which are kept, that all comes back, and that a crash or a damaged file does no harm."""

from __future__ import annotations

import copy
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_flowers import checkpoint
from accel_flowers.checkpoint import BEST, LAST, Checkpoints, TrainState
from accel_flowers.errors import UserError


@pytest.fixture
def accelerator() -> Accelerator:
    """A real one, on the CPU."""
    return Accelerator(cpu=True)


@dataclass
class Training:
    """A tiny run: every `step` changes weights, batch norm statistics and the optimizer's state."""

    network: nn.Module
    optimizer: Any
    checkpoints: Checkpoints
    state: TrainState
    root: Path

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.state.step += 1
            self.network(torch.full((4, 3), float(self.state.step)) * torch.rand(4, 1)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, *, is_best: bool = False) -> None:
        self.checkpoints.save(self.network, self.optimizer, self.state, is_best=is_best)

    def links(self) -> dict[str, str]:
        return {name: os.readlink(self.root / name) for name in (LAST, BEST) if (self.root / name).is_symlink()}

    def everything(self) -> list[str]:
        return sorted(entry.name for entry in self.root.iterdir())


@pytest.fixture
def training(tmp_path: Path, accelerator: Accelerator) -> Training:
    return begin(tmp_path, accelerator)


def begin(run_dir: Path, accelerator: Accelerator, *, seed: int = 0) -> Training:
    torch.manual_seed(seed)
    network = tiny_network(5)
    optimizer = accelerator.prepare(torch.optim.AdamW(network.parameters(), lr=0.1))
    return Training(network, optimizer, Checkpoints(run_dir, accelerator), TrainState(), run_dir / "checkpoints")


def tiny_network(width: int) -> nn.Module:
    """With a head of the name that torchvision gives it."""
    layers = {"conv": nn.Linear(3, width), "norm": nn.BatchNorm1d(width), "fc": nn.Linear(width, 1)}
    return nn.Sequential(OrderedDict(layers))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


# What is the best


@pytest.mark.parametrize(
    ("lower_is_better", "values", "bests"),
    [
        (False, [0.5, 0.4, 0.6, 0.6, 0.7], [True, False, True, False, True]),
        (True, [0.5, 0.6, 0.4, 0.4, 0.3], [True, False, True, False, True]),
        (False, [0.0, 0.0], [True, False]),
        (True, [0.0, 0.0], [True, False]),
        (True, [-1.0, -2.0], [True, True]),
    ],
    ids=["higher", "lower", "tie of zeros, higher", "tie of zeros, lower", "below zero"],
)
def test_the_first_of_equal_values_is_the_best(lower_is_better: bool, values: list[float], bests: list[bool]) -> None:
    state = TrainState()
    best = 0
    for place, (value, is_best) in enumerate(zip(values, bests, strict=True), start=1):
        state.step = 10 * place
        best = place if is_best else best
        assert state.take(value, epoch=place, lower_is_better=lower_is_better) is is_best
        assert asdict(state) == {
            "step": 10 * place,
            "best_value": values[best - 1],
            "best_epoch": best,
            "best_step": 10 * best,
            "epochs_without_gain": place - best,
        }


# Which are kept


def test_nothing_to_go_on_from(training: Training) -> None:
    assert training.checkpoints.load_state() is None
    assert training.checkpoints.load_state(BEST) is None


def test_last_moves_on_best_stays_and_the_rest_is_removed(training: Training) -> None:
    seen = []
    for is_best in (True, False, False, True, False):
        training.step()
        training.save(is_best=is_best)
        seen.append((training.links(), training.everything()))
    step = [f"step-{number:08d}" for number in range(6)]
    assert seen == [
        ({LAST: step[1], BEST: step[1]}, [BEST, LAST, step[1]]),
        ({LAST: step[2], BEST: step[1]}, [BEST, LAST, step[1], step[2]]),
        ({LAST: step[3], BEST: step[1]}, [BEST, LAST, step[1], step[3]]),
        ({LAST: step[4], BEST: step[4]}, [BEST, LAST, step[4]]),
        ({LAST: step[5], BEST: step[4]}, [BEST, LAST, step[4], step[5]]),
    ]


def test_a_run_directory_can_be_moved(training: Training, tmp_path: Path) -> None:
    training.step()
    training.save(is_best=True)
    moved = tmp_path / "moved"
    moved.mkdir()
    training.root.rename(moved / "checkpoints")
    state = Checkpoints(moved, Accelerator(cpu=True)).load_state()
    assert state == training.state


# What comes back


def test_state_weights_and_optimizer_come_back(training: Training, accelerator: Accelerator) -> None:
    training.step(3)
    training.state.take(0.5, epoch=1, lower_is_better=True)
    training.save(is_best=True)
    best = weights(training.network)
    training.step(2)
    training.save()

    again = begin(training.root.parent, accelerator, seed=1)
    assert again.checkpoints.load_state() == training.state
    assert again.checkpoints.load_state(BEST) == TrainState(3, 0.5, 1, 3, 0)
    again.checkpoints.load_weights(again.network, BEST)
    torch.testing.assert_close(weights(again.network), best, rtol=0, atol=0)

    again.checkpoints.load_weights(again.network, LAST)
    again.checkpoints.load_optimizer(again.optimizer)
    again.state = again.checkpoints.load_state() or TrainState()
    torch.testing.assert_close(again.optimizer.state_dict(), training.optimizer.state_dict(), rtol=0, atol=0)
    for run in (training, again):  # both go on alike
        torch.manual_seed(7)
        run.step(3)
    torch.testing.assert_close(weights(again.network), weights(training.network), rtol=0, atol=0)


def test_the_files_hold_nothing_that_runs_code(training: Training) -> None:
    training.step()
    training.save()
    last = training.root / LAST
    assert sorted(file.name for file in last.iterdir()) == ["model.safetensors", "optimizer.pt", "state.json"]
    assert torch.load(last / "optimizer.pt", weights_only=True).keys() == {"optimizer", "scaler"}
    assert json.loads((last / "state.json").read_text()) == asdict(training.state)


# A crash while a checkpoint is written


@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "same step"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(checkpoint, "save_file"), (checkpoint.torch, "save"), (checkpoint, "_flush_to_disk")],
    ids=["weights", "optimizer", "flush"],
)
def test_an_interrupted_write_leaves_the_one_before_whole(
    training: Training, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, same_step: bool
) -> None:
    training.step(2)
    training.save(is_best=True)
    before, state, links = weights(training.network), copy.copy(training.state), training.links()
    if not same_step:
        training.step(2)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut_the_power)
        with pytest.raises(KeyboardInterrupt):
            training.save(is_best=True)

    assert training.links() == links
    for which in (LAST, BEST):
        assert training.checkpoints.load_state(which) == state
        loaded = copy.deepcopy(training.network)
        training.checkpoints.load_weights(loaded, which)
        torch.testing.assert_close(weights(loaded), before, rtol=0, atol=0)
    training.checkpoints.load_optimizer(training.optimizer)

    training.save(is_best=True)
    assert training.everything() == sorted([BEST, LAST, f"step-{training.state.step:08d}"]), "nothing half is left"
    assert training.checkpoints.load_state() == training.state


def test_a_crash_during_the_first_write_leaves_none(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.step()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_flush_to_disk", cut_the_power)
        with pytest.raises(KeyboardInterrupt):
            training.save(is_best=True)
    assert training.checkpoints.load_state() is None
    training.save(is_best=True)
    assert training.everything() == [BEST, LAST, "step-00000001"]


def cut_the_power(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# Damaged files


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "Expecting value"),
        (b'{"step": 3, "best_va', "Unterminated|Expecting"),
        (b"\xff\xfe", "can't decode"),
        (b"[1, 2]", ""),
        (b"null", ""),
        (b"{}", "it lacks best_epoch, best_step, best_value, epochs_without_gain, step"),
        (b'{"step": 3}', "it lacks best_epoch"),
        (b'{"step": 1, "best_value": 1, "best_epoch": 1, "best_step": 1, "epochs_without_gain": 1, "mood": 1}', "mood"),
    ],
    ids=["empty", "cut off", "not text", "a list", "null", "no fields", "fields missing", "unknown field"],
)
def test_a_damaged_state_is_told(training: Training, content: bytes, cause: str) -> None:
    training.step()
    training.save()
    path = training.root / LAST / "state.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"The checkpoint {path} is damaged: .*({cause})"):
        training.checkpoints.load_state()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "garbage", "missing"])
@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_a_damaged_file_is_told(training: Training, name: str, damage: str) -> None:
    training.step()
    training.save()
    path = training.root / LAST / name
    spoil(path, damage)
    load: Callable[[], None] = {
        "optimizer.pt": lambda: training.checkpoints.load_optimizer(training.optimizer),
        "model.safetensors": lambda: training.checkpoints.load_weights(training.network, LAST),
    }[name]
    with pytest.raises(UserError, match=f"{path} (cannot be read|is damaged)"):
        load()


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            path.write_bytes(content[:4] + bytes(255 - byte for byte in content[4:64]) + content[64:])
        case "garbage":
            path.write_bytes(b"\x80\x05hello")
        case "missing":
            path.unlink()


@pytest.mark.parametrize("content", [{"something": 1}, [1, 2], {"optimizer": {}, "scaler": None}], ids=str)
def test_an_optimizer_file_of_another_form_is_told(training: Training, content: Any) -> None:
    training.step()
    training.save()
    torch.save(content, training.root / LAST / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt is damaged or of another optimizer"):
        training.checkpoints.load_optimizer(training.optimizer)


def test_weights_of_another_network_are_told(training: Training) -> None:
    training.step()
    training.save(is_best=True)
    other = tiny_network(4)
    before = weights(other)
    with pytest.raises(UserError, match=r"model\.safetensors does not fit.*conv\.weight \(5, 3\) for \(4, 3\)"):
        training.checkpoints.load_weights(other)
    torch.testing.assert_close(weights(other), before)
