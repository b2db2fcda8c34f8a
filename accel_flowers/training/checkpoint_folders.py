"""The folders of a run's checkpoints: put in place whole, found again, checked, and removed when they are old.

What a checkpoint holds besides `state.json` and its manifest is the business of `checkpoint.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import flush_to_disk, point_to, remove_entry, replace_folder, restore_folder, writing
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.tracking.run_dir import METRICS_FILE
from accel_flowers.training.state import TrainState, read_train_state

LAST, BEST = "last", "best"
_STATE, _MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_MAX_JSON_BYTES = 2**24


class CheckpointFolders:
    """The `checkpoints/` directory of one run, for the one process that writes it.

    Args:
        run_dir: the run's directory.
        config: how many are kept.
        needed: files without which a checkpoint is not whole.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, needed: Collection[str]) -> None:
        self._root = run_dir / "checkpoints"
        self._metrics = run_dir / METRICS_FILE
        self._config = config
        self._needed = frozenset(needed)

    def write(self, state: TrainState, fill: Callable[[Path], None]) -> None:
        """Put a checkpoint in its place, whole and on the disk, and remove what is old.

        Args:
            state: where the run stood.
            fill: writes all files but the state and the manifest into the folder that it is given.

        Raises:
            UserError: the disk refuses; those before it are untouched.
        """
        whole = self._steps()
        before = f"Step {whole[-1]} is the last whole one" if whole else "There is none before it"
        with writing(
            f"The checkpoint of step {state.step} in '{self._root}'",
            f"{before}; make room and go on with --resume auto.",
        ):
            with replace_folder(self.directory(state.step)) as partial:
                fill(partial)
                (partial / _STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
                (partial / _MANIFEST).write_text(json.dumps(describe_files(partial), indent=1) + "\n")
                if self._metrics.exists():
                    flush_to_disk(self._metrics)  # a checkpoint never knows of lines that a power cut could take
            self._link(state)
            flush_to_disk(self._root)
        self.remove_old(state.step)

    def _link(self, state: TrainState) -> None:
        for name, step in ((LAST, state.step), (BEST, state.best_step)):
            if name == LAST or step:
                point_to(self._root / name, self.directory(step).name)

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

    def directory(self, step: int) -> Path:
        return self._root / f"step-{step:08d}"

    def remove_old(self, newest: int) -> None:
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
        kept |= {needed for step in kept if step in states for needed in states[step].needed_steps}
        bests = sorted({state.best_step for state in states.values() if state.best_step})
        kept |= set(bests[-self._config.keep_best :])
        for step in set(present) - kept:
            remove_entry(self.directory(step))  # it is in nobody's way: the next one tries again

    def _read_state(self, step: int) -> TrainState | None:
        try:
            text = read_text(self.directory(step) / _STATE, max_bytes=_MAX_JSON_BYTES)
            state = read_train_state(text)
        except (OSError, ValueError):
            return None
        return state if state.step == step and 0 <= state.best_step <= step else None

    def find_newest(self) -> tuple[TrainState | None, list[str]]:
        """Where the run stands in its newest whole checkpoint; sets the links to it, which a crash may have kept back.

        Returns:
            The state, or None where there is no checkpoint; and a line for each damaged one that was passed over.

        Raises:
            UserError: there are checkpoints, and all of them are damaged.
        """
        self._bring_back()
        passed_over: list[str] = []
        for step in reversed(self._steps()):
            damage = self._damage(step)
            state = self._read_state(step)
            if damage is None and state is not None:
                ends_with = {state.best_step, *state.needed_steps} - {0, step}
                damage = next((found for each in sorted(ends_with) if (found := self._damage(each))), None)
            if damage is None and state is not None:
                self._link(state)
                return state, passed_over
            passed_over.append(f"{self.directory(step)} is damaged: {damage or _STATE + ' cannot be read'}")
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
        directory = self.directory(step)
        try:
            manifest = parse_json(read_text(directory / _MANIFEST, max_bytes=_MAX_JSON_BYTES))
            if not isinstance(manifest, dict) or not manifest.keys() >= {*self._needed, _STATE}:
                return f"{_MANIFEST} is incomplete"
            written_with = next((name for name in _DIGESTS if name in dict(manifest[_STATE])), None)
            if written_with is None:
                return f"{_MANIFEST} has no digests that are known"
            there = describe_files(directory, written_with)
        except (OSError, TypeError, ValueError) as error:
            return f"{_MANIFEST} cannot be read ({error})"
        wrong = [name for name, entry in manifest.items() if there.get(name) != entry]
        return f"{wrong[0]} is not what was written" if wrong else None


_DIGESTS: dict[str, Callable[[], Any]] = {
    "xxh3_128": xxhash.xxh3_128,
    "blake2b": lambda: hashlib.blake2b(digest_size=16),
}
"""Ways to take a file's digest: the one that is written, then what earlier versions wrote. A digest tells of accidents, not
of people, so it may be one that costs next to nothing beside the writing."""


def describe_files(directory: Path, digest: str = next(iter(_DIGESTS))) -> dict[str, dict[str, Any]]:
    """File → size in bytes and digest, of all but the manifest."""
    files = [file for file in sorted(directory.iterdir()) if file.name != _MANIFEST and file.is_file()]
    return {file.name: {"bytes": file.stat().st_size, digest: _digest(file, digest)} for file in files}


def _digest(file: Path, name: str) -> str:
    with file.open("rb") as stream:
        found: str = hashlib.file_digest(stream, _DIGESTS[name]).hexdigest()
    return found
