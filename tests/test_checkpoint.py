"""Checkpoints: what is the best, which are kept, that all comes back, and that a crash or a damaged file does no harm."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core import files
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.ddp import gather_buffers, set_buffers
from accel_flowers.training import checkpoint
from accel_flowers.training.checkpoint import Checkpoints
from accel_flowers.training.checkpoint_folders import BEST, LAST, describe_files
from accel_flowers.training.state import TrainState
from tests.runs import PROJECT


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
        if is_best:
            self.state.best_step = self.state.step
        self.checkpoints.save(self.network, self.optimizer, self.state)
        self.checkpoints.wait()

    def newest(self) -> TrainState | None:
        return self.checkpoints.find_newest()[0]

    def links(self) -> dict[str, int]:
        """Link → step."""
        links = [self.root / name for name in (LAST, BEST) if (self.root / name).is_symlink()]
        return {link.name: int(os.readlink(link).removeprefix("step-")) for link in links}

    def kept(self) -> list[int]:
        """Steps of what is there; nothing else may be."""
        names = {entry.name for entry in self.root.iterdir()} - {LAST, BEST}
        return sorted(int(name.removeprefix("step-")) for name in names)

    def directory(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"


@pytest.fixture
def training(tmp_path: Path, accelerator: Accelerator) -> Training:
    return begin(tmp_path, accelerator)


def begin(run_dir: Path, accelerator: Accelerator, *, seed: int = 0, **config: int) -> Training:
    torch.manual_seed(seed)
    network = tiny_network(5)
    optimizer = accelerator.prepare(torch.optim.AdamW(network.parameters(), lr=0.1))
    checkpoints = Checkpoints(run_dir, accelerator, CheckpointConfig(**config))
    return Training(network, optimizer, checkpoints, TrainState(), run_dir / "checkpoints")


def tiny_network(width: int) -> nn.Module:
    """With a head of the name that torchvision gives it."""
    layers = {"conv": nn.Linear(3, width), "norm": nn.BatchNorm1d(width), "fc": nn.Linear(width, 1)}
    return nn.Sequential(OrderedDict(layers))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


# What is the best


@pytest.mark.holds("Of equally good epochs that with the lower loss is kept")
def test_ties_are_broken_by_the_loss() -> None:
    """With few validation images ties are the rule: they are no reason to keep an early epoch, or to stop."""
    state = TrainState()
    found = []
    for epoch, (value, loss) in enumerate([(0.9, 0.7), (0.9, 0.5), (0.9, 0.6), (0.8, 0.1), (0.9, 0.4)], start=1):
        state.step = epoch
        found.append(state.update_best(value, loss=loss, epoch=epoch, lower_is_better=False))
    assert found == [True, True, False, False, True]
    assert (state.best_epoch, state.best_step, state.best_loss, state.epochs_since_improvement) == (5, 5, 0.4, 0)
    state.update_best(0.5, loss=1.0, epoch=8, lower_is_better=False)
    assert state.epochs_since_improvement == 3, "where a step is longer than an epoch, not each has an evaluation"
    earlier = TrainState(best_value=0.9, best_epoch=3, best_step=3)  # as an earlier version wrote it
    assert not earlier.update_best(0.9, loss=0.1, epoch=4, lower_is_better=False)
    assert earlier.update_best(0.95, loss=0.2, epoch=5, lower_is_better=False)
    assert earlier.best_loss == 0.2


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
    """Where their losses are equal, too."""
    state = TrainState()
    best = 0
    for place, (value, is_best) in enumerate(zip(values, bests, strict=True), start=1):
        state.step = 10 * place
        best = place if is_best else best
        assert state.update_best(value, loss=1.5, epoch=place, lower_is_better=lower_is_better) is is_best
        assert asdict(state) == {
            "step": 10 * place,
            "best_value": values[best - 1],
            "best_loss": 1.5,
            "best_epoch": best,
            "best_step": 10 * best,
            "ranked": [],
            "start_step": None,
            "epochs_since_improvement": place - best,
            "epochs_scored": place,
            "evaluations": place,
            "skipped_steps": 0,
            "rollbacks": 0,
            "micro_batch_size": None,
            "num_steps": None,
            "pending_losses": [],
            "pending_parts": [],
        }


# Which are kept


def test_nothing_to_go_on_from(training: Training) -> None:
    assert training.checkpoints.find_newest() == (None, [])


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, [[1], [1, 2], [1, 2, 3], [1, 3, 4], [4, 5], [4, 5, 6], [4, 6, 7]]),
        ({"keep_last": 1}, [[1], [1, 2], [1, 3], [4], [4, 5], [4, 6], [4, 7]]),
        ({"keep_last": 3}, [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 3, 4, 5], [4, 5, 6], [4, 5, 6, 7]]),
        ({"keep_last": 1, "keep_best": 2}, [[1], [1, 2], [1, 3], [1, 4], [1, 4, 5], [1, 4, 6], [1, 4, 7]]),
    ],
    ids=str,
)
def test_newest_and_best_are_kept(
    tmp_path: Path, accelerator: Accelerator, config: dict[str, int], kept: list[list[int]]
) -> None:
    """Steps 1 and 4 are best when they come; what a kept checkpoint calls its best is kept with it."""
    training = begin(tmp_path, accelerator, **config)
    seen, links = [], []
    for _ in range(7):
        training.step()
        training.save(is_best=training.state.step in (1, 4))
        seen.append(training.kept())
        links.append(training.links())
    assert seen == kept
    assert links == [{LAST: step, BEST: 1 if step < 4 else 4} for step in range(1, 8)]


def test_a_run_directory_can_be_moved(training: Training, tmp_path: Path) -> None:
    training.step()
    training.save(is_best=True)
    moved = tmp_path / "moved"
    moved.mkdir()
    training.root.rename(moved / "checkpoints")
    state, _ = Checkpoints(moved, Accelerator(cpu=True), CheckpointConfig()).find_newest()
    assert state == training.state


# What comes back


def test_state_weights_and_optimizer_come_back(training: Training, accelerator: Accelerator) -> None:
    training.step(3)
    training.state.update_best(0.5, loss=1.0, epoch=1, lower_is_better=True)
    training.save()
    best = weights(training.network)
    training.step(2)
    training.state.pending_losses = [[0.1 + 0.2, 0.7]]
    training.save()

    again = begin(training.root.parent, accelerator, seed=1)
    state = again.newest()
    assert state == training.state
    assert state is not None
    again.checkpoints.load_weights(again.network, state.best_step)
    torch.testing.assert_close(weights(again.network), best, rtol=0, atol=0)

    again.checkpoints.load(again.network, again.optimizer, state.step)
    again.state = state
    torch.testing.assert_close(again.optimizer.state_dict(), training.optimizer.state_dict(), rtol=0, atol=0)
    for run in (training, again):  # both go on alike
        torch.manual_seed(7)
        run.step(3)
    torch.testing.assert_close(weights(again.network), weights(training.network), rtol=0, atol=0)


def test_a_state_takes_the_memory_order_and_the_kernel_of_its_optimizer(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    """A fused step reads parameter and state side by side; one written in another order, or before steps were fused,
    goes on as the same numbers."""

    def build(*, last: bool, fused: bool | None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        layers = OrderedDict(conv=nn.Conv2d(3, 4, 3), pool=nn.Flatten(), fc=nn.Linear(4 * 9, 2))
        network = nn.Sequential(layers).to(memory_format=torch.channels_last if last else torch.contiguous_format)
        return network, accelerator.prepare(torch.optim.AdamW(network.parameters(), lr=0.1, fused=fused))

    def step(network: nn.Module, optimizer: Any) -> None:
        network(torch.arange(75.0).reshape(1, 3, 5, 5) / 75).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    before, optimizer = build(last=False, fused=None)
    step(before, optimizer)
    checkpoints = Checkpoints(tmp_path, accelerator, CheckpointConfig())
    checkpoints.save(before, optimizer, TrainState(step=1))
    after, fused = build(last=True, fused=True)
    checkpoints.load(after, fused, 1)
    assert all(group["fused"] is True for group in fused.param_groups)
    for parameter in after.parameters():
        assert fused.state[parameter]["exp_avg"].stride() == parameter.stride()
    for _ in range(2):
        step(before, optimizer)
        step(after, fused)
    torch.testing.assert_close(weights(after), weights(before), rtol=1e-4, atol=1e-5)


def test_batch_norm_statistics_are_each_process_own() -> None:
    """Rows are processes: as many as there were take their own, another number takes the mean."""
    rows = torch.arange(20.0).reshape(2, 10)  # mean and variance of 5 channels
    for processes, index, expected in ((2, 0, rows[0]), (2, 1, rows[1]), (1, 0, rows.mean(0)), (3, 2, rows.mean(0))):
        network = tiny_network(5)
        set_buffers(network, rows, SimpleNamespace(num_processes=processes, process_index=index))  # type: ignore[arg-type]
        torch.testing.assert_close(network.get_buffer("norm.running_mean"), expected[:5], rtol=0, atol=0)
        torch.testing.assert_close(network.get_buffer("norm.running_var"), expected[5:], rtol=0, atol=0)


def test_a_network_without_statistics_has_none_to_gather() -> None:
    """Between GPUs a row without values could not be gathered: nothing is asked of the processes."""
    several = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    assert gather_buffers(nn.Linear(2, 2), several).shape == (2, 0)  # type: ignore[arg-type]
    network = nn.Linear(2, 2)
    set_buffers(network, torch.empty(2, 0), SimpleNamespace(num_processes=1, process_index=0))  # type: ignore[arg-type]


def test_the_files_hold_nothing_that_runs_code(training: Training) -> None:
    training.step()
    training.save()
    last = training.root / LAST
    assert {file.name for file in last.iterdir()} == {
        "buffers.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "state.json",
    }  # fmt: skip
    assert torch.load(last / "optimizer.pt", weights_only=True).keys() == {"optimizer", "scaler"}
    assert json.loads((last / "state.json").read_text()) == asdict(training.state)


# It is written while the training goes on


@pytest.mark.holds("It holds the step at which it was taken")
def test_what_is_written_is_the_step_at_which_it_was_begun(
    training: Training, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step(2)
    training.state.update_best(0.5, loss=1.0, epoch=1, lower_is_better=True)
    before = copy.deepcopy((weights(training.network), training.optimizer.state_dict(), training.state))
    may_write = hold_the_disk(monkeypatch)
    training.checkpoints.save(training.network, training.optimizer, training.state)
    training.step(3)
    training.state.update_best(0.4, loss=1.0, epoch=2, lower_is_better=True)
    assert not training.links(), "it is still being written"
    may_write.set()

    again = begin(training.root.parent, accelerator, seed=1)
    training.checkpoints.close()
    assert again.newest() == before[2]
    again.checkpoints.load(again.network, again.optimizer, 2)
    torch.testing.assert_close((weights(again.network), again.optimizer.state_dict()), before[:2], rtol=0, atol=0)


@pytest.mark.holds("No epoch waits for the disk")
@pytest.mark.parametrize(
    ("config", "bests", "written"),
    [
        ({}, (), [1, 6]),
        ({}, (3,), [1, 3, 6]),
        ({}, (2, 4), [1, 4, 6]),
        ({}, (6,), [1, 6]),
        ({}, (1,), [1, 6]),
        ({"keep_best": 2}, (2, 3, 5), [1, 3, 5, 6]),
        ({"keep_best": 2}, (2, 6), [1, 2, 6]),
    ],
    ids=str,
)
def test_a_slow_disk_holds_nobody_up(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, int],
    bests: tuple[int, ...],
    written: list[int],
) -> None:
    """Six checkpoints while the first is being written: then come the bests and the newest, each as it was."""
    training = begin(tmp_path, accelerator, keep_last=6, **config)
    may_write = hold_the_disk(monkeypatch)
    states, saved = {}, []
    for step in range(1, 7):
        training.step()
        if step in bests:
            training.state.best_step = step
        states[step] = weights(training.network)
        training.checkpoints.save(
            training.network, training.optimizer, training.state, on_saved=lambda _, step=step: saved.append(step)
        )
        until(lambda: len(list(training.root.glob(".step-00000001.part"))) == 1)
    assert not training.links(), "nothing is written yet, and yet all steps are done"
    may_write.set()
    training.checkpoints.wait()
    assert saved == training.kept() == written
    assert training.newest() == training.state
    assert training.links() == {LAST: 6, **({BEST: bests[-1]} if bests else {})}
    for step in written:
        training.checkpoints.load_weights(training.network, step)
        torch.testing.assert_close(weights(training.network), states[step], rtol=0, atol=0)


@pytest.mark.holds("No epoch waits for the disk")
def test_what_waits_behind_a_write_that_failed_is_not_tried(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the last whole one, and the run ends: what comes to the disk after it would belie that."""
    training.step()
    training.save()
    with monkeypatch.context() as patch:
        may_write = hold_the_disk(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        for _ in range(3):
            training.step()
            training.checkpoints.save(training.network, training.optimizer, training.state)
            until(lambda: len(list(training.root.glob(".step-00000002.part"))) == 1)
        may_write.set()
        with pytest.raises(UserError, match=r"checkpoint of step 2 .* No space left on device\. Step 1 is the last"):
            training.checkpoints.wait()
    assert training.kept() == [1]
    training.save()  # there is room again
    assert training.kept() == [1, 4]


def hold_the_disk(monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> threading.Event:
    """Keep whatever is written next from being written until the event is set; then write it, or refuse."""
    may_write = threading.Event()

    def save_later(*of: Any, **how: Any) -> None:
        assert may_write.wait(60)
        if error:
            raise error
        save_file(*of, **how)

    monkeypatch.setattr(checkpoint, "save_file", save_later)
    return may_write


def until(so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.holds("It holds the step at which it was taken")
@pytest.mark.parametrize("asked", ["save", "newest", "load"])
def test_a_write_that_failed_is_told_to_whoever_comes_next(
    training: Training, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    training.step()
    training.save()
    training.step()
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", refuse)
        training.checkpoints.save(training.network, training.optimizer, training.state)
        comes_next = {
            "save": training.save,
            "newest": training.newest,
            "load": lambda: training.checkpoints.load_weights(training.network, 1),
        }
        with pytest.raises(UserError, match=r"checkpoint of step 2 .* No space left on device\. Step 1 is the last"):
            comes_next[asked]()
    assert training.kept() == [1]
    training.save()  # there is room again
    assert training.kept() == [1, 2]


# A crash or a full disk while a checkpoint is written


@pytest.mark.holds("A checkpoint is whole or not there")
@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "same step"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(checkpoint, "save_file"), (checkpoint.torch, "save"), (files, "flush_to_disk")],
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
    assert training.checkpoints.find_newest() == (state, [])
    loaded = copy.deepcopy(training.network)
    training.checkpoints.load_weights(loaded, state.step)
    torch.testing.assert_close(weights(loaded), before, rtol=0, atol=0)
    training.checkpoints.load(training.network, training.optimizer, state.step)

    training.step()  # another one than was cut off
    training.save(is_best=True)
    assert training.kept() == [2, training.state.step], "nothing half is left"
    assert training.newest() == training.state


def test_a_crash_before_the_links_are_set_is_made_good(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.step()
    training.save(is_best=True)
    training.step()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", cut_the_power)
        with pytest.raises(KeyboardInterrupt):
            training.save(is_best=True)
    assert training.links() == {LAST: 1, BEST: 1}
    assert training.checkpoints.find_newest() == (training.state, [])
    assert training.links() == {LAST: 2, BEST: 2}


def test_a_crash_during_the_first_write_leaves_none(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.step()
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", cut_the_power)
        with pytest.raises(KeyboardInterrupt):
            training.save(is_best=True)
    assert training.newest() is None
    training.save(is_best=True)
    assert training.kept() == [1]


def cut_the_power(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from accelerate import Accelerator
from accel_flowers.core.errors import UserError
from tests.test_checkpoint import begin
training = begin(Path(sys.argv[1]), Accelerator(cpu=True))
training.step()
training.save(is_best=True)
training.step()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails instead
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    training.save(is_best=True)
except UserError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
    print(training.kept(), training.checkpoints.find_newest()[0].step)
"""


@pytest.mark.holds("A full disk ends the run with the cause")
@pytest.mark.parametrize("limit", [1500], ids="no file over {} bytes".format)
def test_a_disk_that_refuses_to_write_is_told(tmp_path: Path, limit: int) -> None:
    """The kernel refuses every write over the limit, in whichever library it happens."""
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=PROJECT, timeout=120)
    assert done.returncode == 0, done.stderr
    message, kept = done.stdout.strip().rsplit("\n", 1)
    assert f"The checkpoint of step 2 in '{tmp_path / 'checkpoints'}' cannot be written: " in message
    assert "File too large" in message
    assert "Step 1 is the last whole one; make room and go on with --resume auto." in message
    assert kept == "[1] 1"


# Damaged checkpoints are passed over


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(path: Path) -> None:
    """By something that can be read."""
    path.write_text("{}")


FILES = ("model.safetensors", "optimizer.pt", "buffers.safetensors", "state.json", "manifest.json")
DAMAGES = (cut, empty, flip, replace, Path.unlink)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over(training: Training, name: str, damage: Callable[[Path], None]) -> None:
    training.step()
    training.save(is_best=True)
    before = copy.copy(training.state)
    training.step()
    training.save()
    damage(training.directory(2) / name)
    state, (line,) = training.checkpoints.find_newest()
    assert state == before
    assert line.startswith(f"{training.directory(2)} is damaged: ")
    assert training.links() == {LAST: 1, BEST: 1}
    assert name in line or name == "manifest.json"  # which then wrongs any of the others

    # The run goes on from there, and what it saves is the newest, whatever number the damaged one has.
    training.state = copy.copy(before)
    training.save()
    assert training.kept() == [1]
    assert training.newest() == before


def test_digests_of_an_earlier_version_are_checked(training: Training) -> None:
    training.step()
    training.save()
    training.step()
    training.save()
    for step in (1, 2):
        described = describe_files(training.directory(step), "blake2b")
        assert all("blake2b" in entry and "xxh3_128" not in entry for entry in described.values())
        (training.directory(step) / "manifest.json").write_text(json.dumps(described))
    assert training.checkpoints.find_newest() == (training.state, [])
    flip(training.directory(2) / "optimizer.pt")
    state, (line,) = training.checkpoints.find_newest()
    assert state is not None
    assert state.step == 1
    assert line.endswith("optimizer.pt is not what was written")


UNKNOWN = json.dumps({name: {"bytes": 1, "crc": "0"} for name in ("model.safetensors", "optimizer.pt", "buffers.safetensors", "state.json")})  # fmt: skip


@pytest.mark.parametrize("content", ["[1, 2]", "null", "{", '{"model.safetensors": 1}', UNKNOWN, UNKNOWN.replace('{"bytes"', '1, "x": {"bytes"')])  # fmt: skip
def test_a_garbled_manifest_is_damage(training: Training, content: str) -> None:
    training.step()
    training.save()
    (training.directory(1) / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json (is incomplete|cannot be read|has no digests)"):
        training.checkpoints.find_newest()


@pytest.mark.parametrize("content", ["{}x", '{"mood": 1}', "[1]", "null", "5"])
def test_a_state_of_another_version_is_passed_over(training: Training, content: str) -> None:
    """Whole, by a manifest that fits, and yet with other fields."""
    training.step()
    training.save()
    training.step()
    training.save()
    newest = training.directory(2)
    (newest / "state.json").write_text(content)
    (newest / "manifest.json").write_text(json.dumps(describe_files(newest)))
    state, (line,) = training.checkpoints.find_newest()
    assert state is not None
    assert state.step == 1
    assert line.endswith("state.json cannot be read")


def test_a_damaged_best_one_spoils_those_that_rely_on_it(training: Training) -> None:
    """The run would end with those weights."""
    training.step()
    training.save(is_best=True)
    training.step()
    training.save(is_best=True)
    training.step()
    training.save()
    flip(training.directory(2) / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)No whole checkpoint.*step-00000003 .*step-00000002 .*checkpoints'"):
        training.checkpoints.find_newest()


def test_what_is_no_checkpoint_is_ignored(training: Training) -> None:
    training.step()
    training.save(is_best=True)
    for name in (".step-00000009.part", "step-9", "step-00000009.old", "notes"):
        (training.root / name).mkdir()
    (training.root / "notes.txt").touch()
    assert training.checkpoints.find_newest() == (training.state, [])


# What a reader says where the file is of something else


@pytest.mark.parametrize("content", [{"something": 1}, [1, 2], {"optimizer": {}, "scaler": None}], ids=str)
def test_an_optimizer_file_of_another_form_is_told(training: Training, content: Any) -> None:
    training.step()
    training.save()
    torch.save(content, training.root / LAST / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt is damaged or of another optimizer"):
        training.checkpoints.load(training.network, training.optimizer, 1)


def test_weights_of_another_network_are_told(training: Training) -> None:
    training.step()
    training.save(is_best=True)
    other = tiny_network(4)
    before = weights(other)
    with pytest.raises(UserError, match=r"model\.safetensors does not fit.*conv\.weight \(5, 3\) for \(4, 3\)"):
        training.checkpoints.load_weights(other, 1)
    torch.testing.assert_close(weights(other), before)


@pytest.mark.holds("A file system that lacks a convenience ends no run")
@pytest.mark.parametrize("lacks", ["symlink", "fsync", "chmod", "rmdir"])
def test_a_file_system_that_lacks_something_ends_no_run(
    lacks: str, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT, SMB shares and Google Drive have no links, permissions or flush of folders; NFS keeps open files' folders."""
    really = getattr(os, lacks)

    def refuse(*given: Any, **words: Any) -> Any:
        if lacks == "fsync" and not Path(f"/proc/self/fd/{given[0]}").is_dir():
            return really(*given, **words)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(given[0]))

    training.step()
    training.save(is_best=True)
    monkeypatch.setattr(os, lacks, refuse)
    for _ in range(3):
        training.step()
        training.save(is_best=True)
    assert training.links() == ({} if lacks == "symlink" else {LAST: 4, BEST: 4})
    newest = training.newest()
    assert newest is not None
    assert newest.step == 4
    assert training.directory(1).exists() == (lacks == "rmdir")
    assert {path.name for path in training.root.glob(".*")} <= {".step-00000001.part"}


@pytest.mark.holds("A file system that lacks a convenience ends no run")
def test_a_copy_in_which_links_became_folders_goes_on(training: Training) -> None:
    training.step()
    training.save(is_best=True)
    (training.root / LAST).unlink()
    shutil.copytree(training.directory(1), training.root / LAST)
    training.step()
    training.save()
    newest = training.newest()
    assert newest is not None
    assert newest.step == 2


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_all_files_of_a_checkpoint_have_the_permissions_that_were_asked_for(umask: int, training: Training) -> None:
    before = os.umask(umask)
    try:
        training.step()
        training.save()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in training.directory(1).iterdir()}
    assert modes == {0o666 & ~umask}
