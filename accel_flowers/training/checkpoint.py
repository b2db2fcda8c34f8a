"""Checkpoints of a run: whole or not there, from which any number of processes can go on.

A checkpoint is a directory `checkpoints/step-N`: the network, the average of its weights where there is one, the
optimizer, the gradient scaler, each process's own batch-norm statistics and `TrainState`. Order and randomness follow from
the step, so there is no generator to save. It is written under a temporary name while the training goes on, flushed, and
renamed; its manifest holds the size and digest of every file and is checked before anything is read. `last` and `best` are
links for people, where the file system has any; a resume takes the newest whole checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, with_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import flush_to_disk, point_to, remove_entry, replace_folder, restore_folder, writing
from accel_flowers.core.reading import parse_json, read_text
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
from accel_flowers.tracking.run_dir import METRICS_FILE

LAST, BEST = "last", "best"
AVERAGED = "averaged.safetensors"
_STATE, _OPTIMIZER, _BUFFERS, _MANIFEST = "state.json", "optimizer.pt", "buffers.safetensors", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_MAX_JSON_BYTES = 2**24


def _formerly(name: str, now: str) -> Any:
    """A field of state.json that earlier versions wrote under another name."""
    return Field(validation_alias=AliasChoices(now, name))


@dataclass
class TrainState:
    """Where a run stands; all else follows from it and the configuration."""

    step: int = 0
    """Optimizer steps done."""
    best_value: float | None = None
    """Best value of the metric that names the best epoch."""
    best_loss: float | None = None
    """Validation loss of the best epoch, by which ties are broken; None where an earlier version has not written it."""
    best_epoch: int = 0
    """Epoch (from 1) of the best value."""
    best_step: int = 0
    """Optimizer step of the best value."""
    epochs_since_improvement: Annotated[int, _formerly("epochs_without_gain", "epochs_since_improvement")] = 0
    """Epochs since the best one; more than evaluations where a step is longer than an epoch."""
    epochs_scored: int = 0
    """Epochs that were evaluated; less than those that lie behind where a signal cut the evaluation off."""
    evaluations: int | None = None
    """Evaluations done: fewer than epochs where a step is longer than one; None where an earlier version began the run."""
    skipped_steps: int = 0
    """Steps in which fp16's gradients overflowed: they changed no weight and move no schedule."""
    rollbacks: int = 0
    """Returns to a checkpoint because of a loss that was no number; each halved the learning rate."""
    micro_batch_size: int | None = None
    """What was left of train.micro_batch_size where memory was short; None = all of it."""
    pending_losses: Annotated[list[list[float]], _formerly("unread_losses", "pending_losses")] = field(
        default_factory=list
    )
    """Losses since the last line of metrics.jsonl, of each process."""
    pending_parts: list[dict[str, list[float]]] = field(default_factory=list)
    """The same of what else belongs into that line: of each process, name → values."""

    @property
    def lr_factor(self) -> float:
        """What rollbacks left of the learning rate."""
        return 0.5**self.rollbacks

    def update_best(self, value: float, *, loss: float, epoch: int, lower_is_better: bool) -> bool:
        """Take in an evaluation. Of equal values that with the lower loss is the better: few images have few accuracies.

        Args:
            value: of the metric that names the best epoch.
            loss: mean cross-entropy of the same images; of equal ones the first stays the best.
            epoch: from 1.
            lower_is_better: of the metric.

        Returns:
            Whether it is the best so far.
        """
        best = self.best_value
        is_best = best is None or (value < best if lower_is_better else value > best)
        if value == best and self.best_loss is not None:
            is_best = loss < self.best_loss
        if is_best:
            self.best_value, self.best_loss, self.best_epoch, self.best_step = value, loss, epoch, self.step
        self.epochs_since_improvement = epoch - self.best_epoch
        if self.evaluations is not None or not self.epochs_scored:
            self.evaluations = (self.evaluations or 0) + 1
        self.epochs_scored = epoch
        return is_best


_STATE_READER = TypeAdapter(with_config(ConfigDict(extra="forbid"))(TrainState))


class Checkpoints:
    """The `checkpoints/` directory of one run.

    Args:
        run_dir: the run's directory.
        accelerator: its processes; the main one writes.
        config: how many are kept.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, config: CheckpointConfig) -> None:
        self._root = run_dir / "checkpoints"
        self._metrics = run_dir / METRICS_FILE
        self._accelerator = accelerator
        self._config = config
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        """On the main process, what is being written."""
        self._begun = False
        """On all of them, whether something may be."""

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

        What it holds is copied before this returns, and goes to the disk while the training goes on. Whatever reads
        checkpoints waits for it, as does the next one.

        Args:
            network: unwrapped, so that its keys are plain names.
            optimizer: as prepared.
            state: where the run stands.
            averaged: the network that holds the moving average of the weights.
            on_saved: called once it is on the disk, on the main process and not in its main thread, with the weights that count:
                the average where there is one; may raise a UserError.

        Raises:
            UserError: the one before this cannot be written, for example because the disk is full; see `wait`.
        """
        self.wait()
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
                self._write({**weights, _BUFFERS: buffers}, trainers, at)
                if on_saved:
                    on_saved(weights[AVERAGED if averaged else WEIGHTS])

            self._written = self._writer.submit(write)

    def wait(self) -> None:
        """Until the checkpoint that was begun last is on the disk; collective.

        Raises:
            UserError: it cannot be written; those before it are untouched.
        """
        if self._begun:
            broadcast_from_main(self._accelerator, self._wait_here)
            self._begun = False

    def _wait_here(self) -> None:
        written, self._written = self._written, None
        if written:
            written.result()

    def close(self) -> None:
        """Let what was begun come to its end, whatever that is."""
        self._writer.shutdown()

    def _write(self, tensors: dict[str, dict[str, Tensor]], trainers: dict[str, Any], state: TrainState) -> None:
        whole = self._steps()
        before = f"Step {whole[-1]} is the last whole one" if whole else "There is none before it"
        with writing(
            f"The checkpoint of step {state.step} in '{self._root}'",
            f"{before}; make room and go on with --resume auto.",
        ):
            with replace_folder(self._directory(state.step)) as partial:
                for name, each in tensors.items():
                    save_file(each, partial / name, metadata={"format": "pt"})
                with (partial / _OPTIMIZER).open("wb") as file:  # opened here: torch would not tell why a write fails
                    torch.save(trainers, file)
                (partial / _STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
                (partial / _MANIFEST).write_text(json.dumps(_describe_files(partial), indent=1) + "\n")
                if self._metrics.exists():
                    flush_to_disk(self._metrics)  # a checkpoint never knows of lines that a power cut could take
            self._link(state)
            flush_to_disk(self._root)
        self._remove_old(state.step)

    def _link(self, state: TrainState) -> None:
        for name, step in ((LAST, state.step), (BEST, state.best_step)):
            if name == LAST or step:
                point_to(self._root / name, self._directory(step).name)

    def _steps(self) -> list[int]:
        """Steps of the checkpoints that are there under their final name, rising."""
        if not os.path.isdir(self._root):
            return []
        try:
            directories = [entry for entry in self._root.iterdir() if entry.is_dir() and not entry.is_symlink()]
        except OSError as error:
            raise UserError(f"The checkpoints in '{self._root}' cannot be read: {error.strerror}.") from None
        names = (_NAME.fullmatch(entry.name) for entry in directories)
        return sorted(int(name[1]) for name in names if name)

    def _directory(self, step: int) -> Path:
        return self._root / f"step-{step:08d}"

    def _remove_old(self, newest: int) -> None:
        """Keep the newest, the best, and what the newest call their best, so that each is complete by itself.

        What lies after the newest was damaged and passed over: the run comes there again.
        """
        for partial in self._root.glob(".step-*.part"):  # a write that was cut off
            remove_entry(partial)
        present = self._steps()
        steps = [step for step in present if step <= newest]
        states = {step: state for step in steps if (state := self._read_state(step))}
        kept = set(steps[-self._config.keep_last :])
        kept |= {states[step].best_step for step in kept if step in states}
        bests = sorted({state.best_step for state in states.values() if state.best_step})
        kept |= set(bests[-self._config.keep_best :])
        for step in set(present) - kept:
            remove_entry(self._directory(step))  # it is in nobody's way: the next one tries again

    def _read_state(self, step: int) -> TrainState | None:
        try:
            text = read_text(self._directory(step) / _STATE, max_bytes=_MAX_JSON_BYTES)
            state = _STATE_READER.validate_json(text, strict=True)
        except (OSError, ValueError):
            return None
        return state if state.step == step and 0 <= state.best_step <= step else None

    def find_newest(self) -> tuple[TrainState | None, list[str]]:
        """Where the run stands in its newest whole checkpoint; sets the links to it, which a crash may have kept back.

        Returns:
            The state, or None where there is no checkpoint; and a line for each damaged one that was passed over.

        Raises:
            UserError: there are checkpoints, and all of them are damaged; what was begun cannot be written.
        """
        self._wait_here()
        self._bring_back()
        passed_over: list[str] = []
        for step in reversed(self._steps()):
            damage = self._damage(step)
            state = self._read_state(step)
            if damage is None and state is not None and state.best_step:
                damage = self._damage(state.best_step)  # the weights that the run would end with
            if damage is None and state is not None:
                self._link(state)
                return state, passed_over
            passed_over.append(f"{self._directory(step)} is damaged: {damage or _STATE + ' cannot be read'}")
        if passed_over:
            raise UserError(
                "No whole checkpoint is left to go on from:\n  " + "\n  ".join(passed_over) + "\nRemove the "
                f"directory '{self._root}' to begin anew with --resume auto, or give another --run-dir."
            )
        return None, []

    def _bring_back(self) -> None:
        """Undo what a crash cut off between two renames."""
        for old in self._root.glob(".step-*.old"):
            restore_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint: files against their sizes and digests in the manifest."""
        directory = self._directory(step)
        try:
            manifest = parse_json(read_text(directory / _MANIFEST, max_bytes=_MAX_JSON_BYTES))
            if not isinstance(manifest, dict) or not manifest.keys() >= {WEIGHTS, _OPTIMIZER, _BUFFERS, _STATE}:
                return f"{_MANIFEST} is incomplete"
            there = _describe_files(directory)
        except (OSError, ValueError) as error:
            return f"{_MANIFEST} cannot be read ({error})"
        wrong = [name for name, entry in manifest.items() if there.get(name) != entry]
        return f"{wrong[0]} is not what was written" if wrong else None

    def weights_of(self, step: int, name: str = WEIGHTS) -> Path:
        """The file that holds a checkpoint's weights: WEIGHTS, or AVERAGED for their moving average."""
        return self._directory(step) / name

    def load_weights(self, network: nn.Module, step: int, name: str = WEIGHTS) -> None:
        """Put a checkpoint's weights into an unwrapped network; collective.

        Args:
            network: on any device.
            step: of the checkpoint.
            name: as of `weights_of`.

        Raises:
            UserError: the file is missing, damaged, or of another network; what was begun cannot be written.
        """
        self.wait()
        path = self.weights_of(step, name)
        if is_sharded(network):
            load_whole_state(network, read_state(path))
        else:
            load_state(network, read_state(path), source=str(path))

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
        path = self._directory(step) / _OPTIMIZER
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


def _describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """File → size in bytes and digest, of all but the manifest."""
    return {
        file.name: {"bytes": file.stat().st_size, "blake2b": _digest(file)}
        for file in sorted(directory.iterdir())
        if file.name != _MANIFEST and file.is_file()
    }


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
