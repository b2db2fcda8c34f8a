"""Checkpoints of a run: `checkpoints/last` and `checkpoints/best`, from which any number of processes can go on.

A checkpoint is the network, the optimizer, the gradient scaler and `TrainState`: order and randomness follow from the
step, so there is no file per process and no generator to save. Each is a directory of its own, written under a
temporary name and renamed when whole; `last` and `best` are links to them, replaced in one instruction.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from accel_flowers.errors import UserError
from accel_flowers.models import clean_state_dict, load_state
from accel_flowers.saved_model import WEIGHTS, read_state

_STATE = "state.json"
_OPTIMIZER = "optimizer.pt"
LAST, BEST = "last", "best"


@dataclass
class TrainState:
    """Where a run stands; all else follows from it and the configuration."""

    step: int = 0
    """Optimizer steps done."""
    best_value: float | None = None
    """Best value of the metric that names the best epoch."""
    best_epoch: int = 0
    """Epoch (from 1) of the best value."""
    best_step: int = 0
    """Optimizer step of the best value."""
    epochs_without_gain: int = 0
    """Evaluations since the best value."""

    def take(self, value: float, *, epoch: int, lower_is_better: bool) -> bool:
        """Take in the value of an evaluation; of equal ones the first stays the best.

        Returns:
            Whether it is the best so far.
        """
        best = self.best_value
        is_best = best is None or (value < best if lower_is_better else value > best)
        if is_best:
            self.best_value, self.best_epoch, self.best_step, self.epochs_without_gain = value, epoch, self.step, 0
        else:
            self.epochs_without_gain += 1
        return is_best


class Checkpoints:
    """The `checkpoints/` directory of one run.

    Args:
        run_dir: the run's directory.
        accelerator: its processes; the main one writes, all wait.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator) -> None:
        self._root = run_dir / "checkpoints"
        self._accelerator = accelerator

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, *, is_best: bool) -> None:
        """Write a checkpoint, make it `last`, and `best` where it is; collective.

        Args:
            network: unwrapped, so that its keys are plain names.
            optimizer: as prepared.
            state: where the run stands.
            is_best: whether this state has the best value so far.
        """
        if self._accelerator.is_main_process:
            self._write(network, optimizer, state, is_best=is_best)
        self._accelerator.wait_for_everyone()

    def _write(self, network: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, *, is_best: bool) -> None:
        target = self._root / f"step-{state.step:08d}"
        partial = target.with_name(f".{target.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(clean_state_dict(network), partial / WEIGHTS, metadata={"format": "pt"})
        scaler = self._accelerator.scaler
        torch.save(
            {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None},
            partial / _OPTIMIZER,
        )
        (partial / _STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
        for file in partial.iterdir():
            _flush_to_disk(file)
        shutil.rmtree(target, ignore_errors=True)  # of the same step, if there is one
        partial.rename(target)
        self._point(LAST, target)
        if is_best:
            self._point(BEST, target)
        self._remove_unreferenced()
        _flush_to_disk(self._root)

    def _point(self, name: str, target: Path) -> None:
        fresh = self._root / f".{name}.part"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target.name, target_is_directory=True)
        fresh.replace(self._root / name)

    def _remove_unreferenced(self) -> None:
        kept = {os.readlink(self._root / name) for name in (LAST, BEST) if (self._root / name).is_symlink()}
        for entry in self._root.iterdir():
            if entry.is_dir() and not entry.is_symlink() and entry.name not in kept:
                shutil.rmtree(entry)

    def load_state(self, which: str = LAST) -> TrainState | None:
        """Where the run stood at its last checkpoint; None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = self._root / which / _STATE
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = dict(json.loads(path.read_text()))
            if lacking := sorted(asdict(TrainState()).keys() - values.keys()):
                raise ValueError(f"it lacks {', '.join(lacking)}")
            return TrainState(**values)
        except (ValueError, TypeError) as error:
            raise UserError(f"The checkpoint {path} is damaged: {error}.") from None

    def load_weights(self, network: nn.Module, which: str = BEST) -> None:
        """Put a checkpoint's weights into an unwrapped network.

        Raises:
            UserError: the file is missing, damaged, or of another network.
        """
        path = self._root / which / WEIGHTS
        load_state(network, read_state(path), source=str(path))

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the last checkpoint's optimizer and scaler state back.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self._root / LAST / _OPTIMIZER
        try:
            with warnings.catch_warnings(action="ignore"):  # they announce what ends as an error anyway
                saved = torch.load(path, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(saved["optimizer"])
        except OSError as error:
            raise UserError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
            raise UserError(
                f"The checkpoint {path} is damaged or of another optimizer: {type(error).__name__}."
            ) from None
        if self._accelerator.scaler is not None and saved["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
