"""Runs that are disturbed on purpose: started by the launcher, hit by signals, compared bit by bit."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from accel_flowers.selfcheck.compare import differences as differences
from accel_flowers.selfcheck.compare import far_apart as far_apart
from tests.ranks import PROGRAM_ENTRY, Ranks
from tests.runs import PROGRAM, PROJECT, write_recipe


def fault_recipe(path: Path) -> Path:
    """Batch norm, dropout, accumulation, a moving rate and average, checkpoints inside epochs and between log lines."""
    return write_recipe(
        path,
        model={"name": "shufflenet_v2_x0_5", "dropout": 0.3, "tta": "auto"},
        optim={"name": "adamw", "lr": 1e-3},
        schedule={"name": "cosine"},
        train={"epochs": 5, "micro_batch_size": 2, "log_every_steps": 3},
        ema={"decay": 0.9},
        soup={"epochs": 3},
        checkpoint={"every_steps": 2},
    )


def phased_recipe(path: Path) -> Path:
    """The head alone for one and a half epochs, then the last stage, half an epoch later all; rates fall with the layers; at the
    end the head's epochs are mixed in."""
    return write_recipe(
        path,
        model={"dropout": 0.3},
        optim={"layer_decay": 0.8, "head_lr_factor": 2.0},
        schedule={"name": "cosine", "warmup_epochs": 0.5},
        train={
            "epochs": 4,
            "micro_batch_size": 2,
            "log_every_steps": 3,
            "head_epochs": 1.5,
            "unfreeze_every_epochs": 0.1,
        },
        ema={"decay": 0.9},
        soup={"epochs": 2, "start": "auto"},
        checkpoint={"every_steps": 1},
    )


def recipe_without_batch_norm(path: Path) -> Path:
    """The same arithmetic on any number of processes: dropout, accumulation, momentum, no batch norm."""
    return write_recipe(
        path,
        model={"dropout": 0.3, "tta": "mirror"},
        train={"epochs": 5, "global_batch_size": 8, "micro_batch_size": 2, "log_every_steps": 3},
        ema={"decay": 0.9},
        soup={"epochs": 2},
        checkpoint={"every_steps": 2},
    )


class Watched:
    """A run seen from outside, through its directory."""

    run_dir: Path

    def has_ended(self) -> bool:
        """Whether the run has, well or not."""
        raise NotImplementedError

    def steps_seen(self) -> int:
        """The step of the newest checkpoint, whole or being written."""
        names = [entry.name for entry in (self.run_dir / "checkpoints").glob("*step-*")]
        steps = [int(name.removeprefix(".").removeprefix("step-").partition(".")[0]) for name in names]
        return max([0, *steps])

    def is_writing(self) -> bool:
        """Whether a checkpoint is half there."""
        return any((self.run_dir / "checkpoints").glob(".step-*.part"))

    def wait_for_step(self, step: int, timeout: float = 120, *, writing: bool = False) -> None:
        """Until the run has come to a step, or has ended; where asked for, until it writes that checkpoint."""
        deadline = time.monotonic() + timeout
        while not self.has_ended() and time.monotonic() < deadline:
            if self.steps_seen() >= step and (not writing or self.is_writing()):
                return
            time.sleep(0.0005 if writing else 0.005)

    def wait_for_file(self, pattern: str, timeout: float = 120) -> None:
        """Until something of this name lies in the run directory, or the run has ended."""
        deadline = time.monotonic() + timeout
        while not self.has_ended() and time.monotonic() < deadline and not any(self.run_dir.glob(pattern)):
            time.sleep(0.001)


class Forked(Ranks, Watched):
    """A training run in processes that nobody launched: seconds less for each start."""

    def __init__(self, processes: int, run_dir: Path, *words: str | Path, entry: str = PROGRAM_ENTRY) -> None:
        self.run_dir = run_dir
        own = ["train", *words, "--run-dir", run_dir, "--resume", "auto"]
        super().__init__(run_dir.parent, *[own] * processes, entry=entry)

    def has_ended(self) -> bool:
        """Whether one of its processes has."""
        return any(self.code(rank) is not None for rank in range(len(self.pids)))

    def limit_file_size(self, size: int) -> None:
        """From now on the kernel refuses to let a file grow beyond `size` bytes, as a full disk would."""
        for rank, pid in enumerate(self.pids):
            if self.code(rank) is None:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


class Launched(Watched):
    """A training run in processes of its own; leaving it kills what is left of them.

    The launcher gives each rank a session of its own, so a signal to its process group would reach the launcher alone.

    Args:
        launcher: the words before the program.
        run_dir: its directory, by which its processes are known.
        words: what the program gets besides.
        resume: what is said of going on.
        log: file for all output; None = beside the run directory.
        program: what is launched.
    """

    def __init__(
        self,
        launcher: list[str],
        run_dir: Path,
        *words: str | Path,
        resume: str = "auto",
        log: Path | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.run_dir = run_dir
        self._log = (log or run_dir.with_name(f"{run_dir.name}.log")).open("w+")
        self._process = subprocess.Popen(
            [*launcher, *program, "train", *map(str, words), "--run-dir", str(run_dir), "--resume", resume],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=PROJECT,
            start_new_session=True,
        )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self.wait(30)
        self._log.close()

    def pids(self) -> dict[int, int | None]:
        """Living processes → their rank, None for the launcher."""
        found: dict[int, int | None] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):  # it ended just now
                if os.fsencode(self.run_dir) not in (entry / "cmdline").read_bytes().split(b"\0"):
                    continue
                variables = dict(part.partition(b"=")[::2] for part in (entry / "environ").read_bytes().split(b"\0"))
                found[int(entry.name)] = int(variables[b"RANK"]) if b"RANK" in variables else None
        return found

    def signal(self, number: signal.Signals, *, rank: int | None = None) -> None:
        """Send it to one rank, or to all processes: first to the launcher, which would tell the others otherwise."""
        pids = self.pids()
        for pid in sorted(pids, key=lambda pid: (pids[pid] is not None, pids[pid])):
            if rank is None or pids[pid] == rank:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def wait_for_rank(self, rank: int, timeout: float) -> bool:
        """Until the launcher has started it; False where the run has ended, or nothing came of it."""
        deadline = time.monotonic() + timeout
        while rank not in self.pids().values():
            if self.has_ended() or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def signal_launcher(self, number: signal.Signals) -> None:
        """It tells the ranks, and with each all processes in its session: the loaders' workers, W&B's service."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether the launcher has, and with it the run."""
        return self._process.poll() is not None

    def wait(self, timeout: float) -> int:
        """Until all processes have ended.

        Returns:
            The launcher's exit code.

        Raises:
            TimeoutError: some did not.
        """
        deadline = time.monotonic() + timeout
        while self._process.poll() is None or self.pids():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s these are left: {self.pids()}\n{self.output()}")
            time.sleep(0.02)
        return self._process.returncode

    def output(self) -> str:
        """What all processes wrote so far."""
        return Path(self._log.name).read_text()
