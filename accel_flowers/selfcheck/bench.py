"""What the parts work with: drawn images, tiny recipes, runs with a limit, and the minutes that are left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accel_flowers.selfcheck.finding import OutOfTime, PartFailed
from accel_flowers.selfcheck.machine import Machine
from accel_flowers.selfcheck.processes import Started, python

Where = Literal["all", "one", "cpu"]
"""All processes of the launch configuration; one on its first device, without a launcher; one on the CPU."""

_FIRST_LIMIT, _LEAST_LIMIT, _TIMES_USUAL = 240.0, 60.0, 6.0
"""Seconds that a run may take before any has ended, and at least; then so many times the longest that did."""
_COMPILING_LIMIT = 400.0
_USUAL_FIRST = 20.0
"""Seconds of a run, as long as none has ended."""


@dataclass(frozen=True)
class Ended:
    """A run that ended well."""

    run_dir: Path
    said: str


class Bench:
    """Runs of one self-check.

    Args:
        machine: on what they run.
        scratch: an empty folder, for all that they write.
        photos: small drawn images.
        deadline: of `time.monotonic`.
    """

    def __init__(self, machine: Machine, scratch: Path, photos: Path, deadline: float) -> None:
        self.machine, self.scratch, self.photos = machine, scratch, photos
        self._deadline = deadline
        self._took: list[float] = []
        self._made: dict[str, Ended] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._deadline - time.monotonic()

    def has_room(self, runs: int) -> bool:
        """Whether so many runs still fit in, as long as they took so far."""
        usual = sum(self._took) / len(self._took) if self._took else _USUAL_FIRST
        return runs * usual < self.left

    def limit(self, *, compiles: bool = False) -> float:
        """Seconds that the next run may take.

        Raises:
            OutOfTime: there are none left.
        """
        if self.left <= 0:
            raise OutOfTime
        most = max(_LEAST_LIMIT, _TIMES_USUAL * max(self._took)) if self._took else _FIRST_LIMIT
        return min(self.left, max(most, _COMPILING_LIMIT) if compiles else most)

    def recipe(self, name: str, **sections: Mapping[str, Any]) -> Path:
        """Write a recipe (JSON is YAML): tiny images; sections given go over what all have."""
        per_process = 4
        whole: dict[str, dict[str, Any]] = {
            "data": {
                "split": "80/10/10",
                "train_transforms": [
                    {"RandomResizedCrop": {"size": 32}},
                    "RandomHorizontalFlip",
                    {"ColorJitter": {"brightness": 0.2}},
                ],
                "eval_transforms": [{"Resize": {"size": [32, 32]}}],
                "num_workers": 0,
                "pixels_from": "files",
                "cache_dir": str(self.scratch / "decoded"),
            },
            "model": {"name": "squeezenet1_1", "weights": "none", "dropout": 0.0},
            "optim": {"lr": 1e-2},
            "train": {
                "epochs": 2,
                "global_batch_size": per_process * self.machine.processes,
                "micro_batch_size": 2,
                "eval_batch_size": 2,
                "log_every_steps": 1,
                "precision": "no",
            },
            "tracking": {"report": False},
            "debug": {"deterministic": True},
        }
        for section, fields in sections.items():
            whole[section] = {**whole.get(section, {}), **fields}
        file = self.scratch / f"{name}.yaml"
        file.write_text(json.dumps(whole, indent=1))
        return file

    def start(self, name: str, *words: str | Path, where: Where = "all") -> Started:
        """Start a command of the program; its output goes to NAME.log.

        A run that is deterministic computes without TensorFloat-32, which `evaluate` has no flag for.
        """
        program = python("accel_flowers", *words)
        if where == "all":
            launcher = python("accelerate.commands.launch", *self.machine.launcher)
            program = [*launcher, *program[1:]]
        more = {"ACCELERATE_USE_CPU": "true"} if where == "cpu" else {}
        more |= {"NVIDIA_TF32_OVERRIDE": "0"} if words[0] == "evaluate" else {}
        return Started(program, self.scratch / f"{name}.log", {**self.machine.environment, **more})

    def train(
        self,
        name: str,
        recipe: Path,
        *words: str,
        where: Where = "all",
        run_dir: Path | None = None,
        compiles: bool = False,
    ) -> Ended:
        """A training, to its end; one that was made before under this name is not made again.

        Raises:
            PartFailed: it does not end in time, or not well.
            OutOfTime: before it began, or in its course.
        """
        if name in self._made:
            return self._made[name]
        run_dir = run_dir or self.scratch / name
        said = self.finish(name, *self.training(recipe, run_dir, *words), where=where, compiles=compiles)
        self._made[name] = Ended(run_dir, said)
        return self._made[name]

    def training(self, recipe: Path, run_dir: Path, *words: str) -> list[str | Path]:
        """The words of a training, which goes on where the run directory holds one."""
        return ["train", recipe, "--data.path", self.photos, "--run-dir", run_dir, "--resume", "auto", *words]

    def finish(self, name: str, *words: str | Path, where: Where = "all", compiles: bool = False) -> str:
        """Run a command of the program to its end; returns what it said.

        Raises:
            PartFailed: it does not end in time, or not well.
            OutOfTime: before it began, or in its course.
        """
        limit, begun = self.limit(compiles=compiles), time.monotonic()
        with self.start(name, *words, where=where) as started:
            code = self.wait(started, limit)
            if code != 0:
                raise PartFailed(f"it ended with exit code {code}:\n{started.last_lines()}")
            if not compiles:
                self._took.append(time.monotonic() - begun)
            return started.said()

    def wait(self, started: Started, limit: float, **more: float) -> int:
        """As `Started.wait`, with its arguments.

        Raises:
            OutOfTime: it was cut off by the end of the minutes, which says nothing of it.
        """
        try:
            return started.wait(limit, **more)
        except PartFailed:
            if self.left <= 0:
                raise OutOfTime from None
            raise

    def until(self, started: Started, there: Callable[[], bool]) -> None:
        """Wait until something is so, while the command runs.

        Raises:
            PartFailed: it ended before, or it does not come to that.
        """
        limit = time.monotonic() + self.limit()
        while not there():
            if started.has_ended():
                raise PartFailed(f"it ended before it could be disturbed:\n{started.last_lines()}")
            if time.monotonic() > limit:
                if self.left <= 0:
                    raise OutOfTime
                raise PartFailed(f"it did not come that far in time:\n{started.last_lines()}")
            time.sleep(0.005)


def newest_step(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 = there is none."""
    names = [entry.name for entry in (run_dir / "checkpoints").glob("step-*")]
    return max([0, *(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdecimal())])
