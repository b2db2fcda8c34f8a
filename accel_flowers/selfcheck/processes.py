"""Processes that the self-check starts: found by a mark in their environment, limited and ended from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import accel_flowers
from accel_flowers.distributed.environment import RANKS, SIZES
from accel_flowers.selfcheck.finding import PartFailed

_MARK = "ACCEL_FLOWERS_SELFCHECK"
_LAST_LINES = 15
_LEFT_BEHIND_SECONDS = 10.0
"""How long helpers of a process that has ended (a forkserver, a resource tracker) may take to notice."""
_POLL_SECONDS = 0.01
_OF_A_LAUNCH = (*RANKS, *SIZES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Started:
    """A command and all processes that come from it; leaving the block kills what is left of them.

    The launcher gives each rank a session of its own, so a process group would hold the launcher alone. What all of them
    inherit is their environment.

    Args:
        command: what is run.
        log: file for all output.
        environment: variables over those of this process.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._file = log.open("w")
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            env={**clean_environment(), _MARK: str(log), **(environment or {})},
            cwd=log.parent,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._file.close()

    def ranks(self) -> dict[int, int]:
        """Rank → process of those that train: neither the launcher nor loader workers."""
        found = {}
        for pid, variables in self._alive().items():
            if pid != self._process.pid and _is_program(pid):
                found[int(variables.get("RANK", "0"))] = pid
        return found

    def kill(self) -> None:
        """End all of them, the launcher first, which would start others."""
        for _ in range(100):
            alive = self._alive()
            if not alive and self._process.poll() is not None:
                return
            for pid in sorted(alive, key=lambda pid: pid != self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Send it to one of those that train.

        Raises:
            PartFailed: there is no such process.
        """
        pid = self.ranks().get(rank)
        if pid is None:
            raise PartFailed(f"process {rank} had ended by itself:\n{self.last_lines()}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def signal_launcher(self, number: signal.Signals) -> None:
        """Send it to the command itself."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether the command has; others may be left."""
        return self._process.poll() is not None

    def wait(self, seconds: float, *, left_behind: float = _LEFT_BEHIND_SECONDS) -> int:
        """Until the command and all processes that came from it have ended.

        Args:
            seconds: for the command.
            left_behind: for the others, from then on.

        Returns:
            The exit code of the command.

        Raises:
            PartFailed: they did not, or left others behind.
        """
        begun = time.monotonic()
        while self._process.poll() is None:
            if time.monotonic() - begun > seconds:
                raise PartFailed(f"it had not ended after {seconds:.0f} s; the last it said:\n{self.last_lines()}")
            time.sleep(_POLL_SECONDS)
        self._wait_for_nobody(left_behind)
        return self._process.returncode

    def _wait_for_nobody(self, seconds: float) -> None:
        begun = time.monotonic()
        while alive := self._alive():
            if time.monotonic() - begun > seconds:
                names = "; ".join(f"{pid} ({' '.join(_words(pid))[:60]})" for pid in alive)
                raise PartFailed(f"{len(alive)} processes were left over after {seconds:.0f} s: {names}")
            time.sleep(10 * _POLL_SECONDS)

    def said(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(errors="replace")

    def last_lines(self) -> str:
        """The end of it, and where all of it is."""
        lines = [line for line in self.said().splitlines() if line.strip()]
        shown = [f"    {line[:200]}" for line in lines[-_LAST_LINES:]]
        return "\n".join([*shown, f"  all of it: {self.log}"])

    def _alive(self) -> dict[int, dict[str, str]]:
        return _marked(str(self.log))


def end_all_of(folder: Path) -> None:
    """End every process whose log lies in a folder; a signal can come while one is started, before it is anybody's to end."""
    for _ in range(100):
        alive = _marked(f"{folder}{os.sep}")
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            return
        time.sleep(0.02)


def _marked(begins: str) -> dict[int, dict[str, str]]:
    """Process → its environment, of those whose mark begins so; those that have ended and were not asked for have none."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended just now, or is somebody else's
            lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            variables = {name: value for name, _, value in (line.partition("=") for line in lines)}
            if variables.get(_MARK, "").startswith(begins):
                found[int(entry.name)] = variables
    return found


def python(module: str, *words: str | Path) -> list[str]:
    """The command of a module of this installation."""
    return [sys.executable, "-m", module, *map(str, words)]


def clean_environment() -> dict[str, str]:
    """This process's variables without what a launch has left over, such that its own code is what runs, offline."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCH}
    package = str(Path(accel_flowers.__file__).resolve().parents[1])
    if package not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    return {**environment, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def _words(pid: int) -> list[str]:
    try:
        return [
            word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word
        ]
    except OSError:
        return []


def _is_program(pid: int) -> bool:
    """Whether a process is this program itself, and no launcher or helper of it."""
    words = _words(pid)
    return "accel_flowers" in words and "accelerate.commands.launch" not in words
