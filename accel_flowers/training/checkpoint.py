"""Checkpoints of a run: whole or not there, from which any number of processes can go on.

A checkpoint is a directory `checkpoints/step-N`: the network, the average of its weights where there is one, the
optimizer, the gradient scaler, each process's own batch-norm statistics and `TrainState`. Order and randomness follow from
the step, so there is no generator to save. It is written under a temporary name while the training goes on, flushed, and
renamed; its manifest holds the size and digest of every file and is checked before anything is read. `last` and `best` are
links for people, where the file system has any; a resume takes the newest whole checkpoint.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.distributed.ddp import gather_buffers, set_buffers
from accel_flowers.distributed.state import (
    is_sharded,
    load_whole_optimizer_state,
    load_whole_state,
    whole_optimizer_state,
    whole_state,
)
from accel_flowers.models.saved import WEIGHTS, read_state
from accel_flowers.models.weights import load_state, tidy_state
from accel_flowers.training.checkpoint_folders import CheckpointFolders
from accel_flowers.training.snapshot_writer import SnapshotWriter
from accel_flowers.training.state import TrainState

AVERAGED = "averaged.safetensors"
_OPTIMIZER, _BUFFERS = "optimizer.pt", "buffers.safetensors"


class Checkpoints:
    """The `checkpoints/` directory of one run.

    Args:
        run_dir: the run's directory.
        accelerator: its processes; the main one writes.
        config: how many are kept.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, config: CheckpointConfig) -> None:
        self._folders = CheckpointFolders(run_dir, config, needed=(WEIGHTS, _OPTIMIZER, _BUFFERS))
        self._accelerator = accelerator
        self._writer = SnapshotWriter(config.keep_best)
        """Of the main process; those of the others have nothing to do."""
        self._begun = False
        """On all of them, whether something may be on its way to the disk."""

    def save(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        averaged: nn.Module | None = None,
        *,
        on_saved: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> None:
        """Begin to write a checkpoint of this step, to become `last`, and `best` where it is; collective.

        What it holds is copied before this returns, and goes to the disk while the training goes on. Where that takes longer
        than until the next one, the newest and the bests wait in memory for their turn, and the others are never written.
        Whatever reads checkpoints waits for all of them.

        Args:
            network: unwrapped, so that its keys are plain names.
            optimizer: as prepared.
            state: where the run stands.
            averaged: the network that holds the moving average of the weights.
            on_saved: called once it is on the disk, on the main process and not in its main thread, with the weights that count:
                the average where there is one; may raise a UserError.

        Raises:
            UserError: one before this could not be written, for example because the disk is full; see `wait`.
        """
        self._once_begun(self._writer.check)
        networks = {WEIGHTS: network} | ({AVERAGED: averaged} if averaged else {})
        buffers = {name: gather_buffers(each, self._accelerator) for name, each in networks.items()}
        weights = {name: weights_to_save(each, self._accelerator) for name, each in networks.items()}
        self._begun = True
        is_main, scaler = self._accelerator.is_main_process, self._accelerator.scaler
        trained = whole_optimizer_state(network, optimizer) if is_main or is_sharded(network) else {}
        if is_main:
            trainers = {"optimizer": trained, "scaler": scaler.state_dict() if scaler else None}
            at = copy.deepcopy(state)

            def write() -> None:
                self._folders.write(at, lambda folder: _fill(folder, {**weights, _BUFFERS: buffers}, trainers))
                if on_saved:
                    on_saved(weights[AVERAGED if averaged else WEIGHTS])

            self._writer.submit(write, is_best=at.best_step == at.step, step=at.step, needed=at.needed_steps)

    def wait(self) -> None:
        """Until the checkpoint that was begun last is on the disk; collective.

        Raises:
            UserError: it cannot be written, or one before it; those that are on the disk are untouched.
        """
        self._once_begun(self._writer.wait)
        self._begun = False

    def _once_begun(self, ask: Callable[[], None]) -> None:
        """Ask the main process's writer; its mistake is every process's."""
        if self._begun:
            broadcast_from_main(self._accelerator, ask)

    def close(self) -> None:
        """Let what was begun come to its end, whatever that is."""
        self._writer.close()

    def find_newest(self) -> tuple[TrainState | None, list[str]]:
        """As `CheckpointFolders.find_newest`, once all that was begun is on the disk; for the main process.

        Raises:
            UserError: also where what was begun cannot be written.
        """
        self._writer.wait()
        return self._folders.find_newest()

    def weights_of(self, step: int, name: str = WEIGHTS) -> Path:
        """The file that holds a checkpoint's weights: WEIGHTS, or AVERAGED for their moving average."""
        return self._folders.directory(step) / name

    def load_weights(self, network: nn.Module, step: int, name: str = WEIGHTS) -> None:
        """Put a checkpoint's weights into an unwrapped network; collective. See `put_weights`.

        Args:
            network: on any device.
            step: of the checkpoint.
            name: as of `weights_of`.

        Raises:
            UserError: the file is missing, damaged, or of another network; what was begun cannot be written.
        """
        put_weights(network, self.read_weights(step, name), source=str(self.weights_of(step, name)))

    def read_weights(self, step: int, name: str = WEIGHTS) -> dict[str, Tensor]:
        """A checkpoint's weights, whole, on the CPU; collective. Arguments and errors are those of `load_weights`."""
        self.wait()
        return read_state(self.weights_of(step, name))

    def load(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, averaged: nn.Module | None = None
    ) -> None:
        """Put back all that a checkpoint holds but its state: the arguments are those of `save`.

        Raises:
            UserError: a file is missing or damaged.
        """
        networks = {WEIGHTS: network} | ({AVERAGED: averaged} if averaged else {})
        for name, each in networks.items():
            self.load_weights(each, step, name)
        path = self._folders.directory(step) / _OPTIMIZER
        try:
            with warnings.catch_warnings(action="ignore"):  # they announce what ends as an error anyway
                saved = torch.load(path, map_location="cpu", weights_only=True)
            load_whole_optimizer_state(network, optimizer, _fitted(saved["optimizer"], optimizer))
            buffers = load_file(path.with_name(_BUFFERS))
            for name, each in networks.items():
                set_buffers(each, buffers[name], self._accelerator)
        except OSError as error:
            raise UserError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
            raise UserError(
                f"The checkpoint {path} is damaged or of another optimizer: {type(error).__name__}."
            ) from None
        if self._accelerator.scaler is not None and saved["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])


def put_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Put whole weights into an unwrapped network on any device; collective where it is sharded.

    Raises:
        UserError: they are of another network; the message names `source`.
    """
    if is_sharded(network):
        load_whole_state(network, weights)
    else:
        load_state(network, weights, source=source)


def _fill(folder: Path, tensors: dict[str, dict[str, Tensor]], trainers: dict[str, Any]) -> None:
    for name, each in tensors.items():
        save_file(each, folder / name, metadata={"format": "pt"})
    with (folder / _OPTIMIZER).open("wb") as file:  # opened here: torch would not tell why a write fails
        torch.save(trainers, file)


def weights_to_save(network: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
    """A copy of a network's state under plain names, for a file that the main process writes; collective.

    Returns:
        Whole contiguous CPU tensors on the main process; elsewhere nothing.
    """
    if accelerator.is_main_process or is_sharded(network):
        return tidy_state(whole_state(network))
    return {}


_IMPLEMENTATION = ("fused", "foreach", "capturable")
"""Settings of an optimizer that say how it computes, not what: they follow from the device and the precision."""


def _fitted(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state as this optimizer can take it: it takes whatever it is given, and would fail, or do something
    else, in its next step. A fused step reads the memory of parameter, gradient and state side by side, so that all
    must lie there in the same order.

    Raises:
        ValueError: settings of other types, or a state that is none of the parameters' own.
    """
    groups = []
    for given, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        given = given | {key: own[key] for key in _IMPLEMENTATION if key in own}
        if any(type(given.get(key, value)) is not type(value) for key, value in own.items()):
            raise ValueError("other settings")
        groups.append(given)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def fitted(value: Any, parameter: Tensor) -> Any:
        if value is None or torch.as_tensor(value).shape == torch.Size():
            return value
        if value.shape != parameter.shape:
            raise ValueError("a state of other shapes")
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)

    state = {
        place: {name: fitted(value, parameters[place]) for name, value in values.items()}
        for place, values in saved["state"].items()
    }
    return {**saved, "param_groups": groups, "state": state}
