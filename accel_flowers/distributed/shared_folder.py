"""Seeing at the start that all processes write to and read from one folder, and not each machine to one of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import time
from pathlib import Path

from accelerate import Accelerator

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import writing
from accel_flowers.distributed.collectives import broadcast_from_main, run_on_all
from accel_flowers.distributed.health import HealthTimes

_SPEAK_AFTER = 5.0
_LOOK_EVERY = 0.5


def check_shared(accelerator: Accelerator, run_dir: Path, *, patience: float = HealthTimes.look) -> None:
    """See that all processes have the main process's run directory, and not one of the same name; collective.

    Each reads there what the main process has written, the checkpoint of a resume and the best weights at the end: the
    training would be over before a machine with a disk of its own noticed.

    Args:
        accelerator: all processes.
        run_dir: which the main process has made.
        patience: seconds for which a process looks.

    Raises:
        UserError: naming a process that does not see it, with its machine; the same on every process.
    """
    if accelerator.num_processes == 1:
        return
    name, main_host = broadcast_from_main(accelerator, lambda: _leave_token(run_dir))
    try:
        run_on_all(accelerator, lambda: _look_for(run_dir / name, accelerator.process_index, main_host, patience))
    finally:
        if accelerator.is_main_process:
            with contextlib.suppress(OSError):
                (run_dir / name).unlink()


def _leave_token(run_dir: Path) -> tuple[str, str]:
    """Its name, which no file had before, so that nobody remembers that it is not there; and this machine's."""
    name = f".shared-{secrets.token_hex(8)}"
    with writing(f"The run directory '{run_dir}'", "Make room, or give another one with --run-dir DIR."):
        (run_dir / name).touch()
    return name, platform.node()


def _look_for(token: Path, process: int, main_host: str, patience: float) -> None:
    here, began, told = platform.node(), time.monotonic(), False
    while not _is_there(token):
        waited = time.monotonic() - began
        if waited > patience:
            raise UserError(
                f"The processes do not share the run directory: what process 0 wrote to it on\n"
                f"{main_host} was not seen within {patience:.0f} s by process {process} on {here}, in\n"
                f"'{token.parent.absolute()}'.\n"
                "Give a directory that all machines share, for example on NFS, with\n--run-dir DIR."
            )
        if waited > _SPEAK_AFTER and not told:
            told = True
            logging.getLogger(__name__).warning(
                f"process {process} on {here} waits until it sees in the run directory what\nprocess 0 has written there"
            )
        time.sleep(_LOOK_EVERY)


def _is_there(token: Path) -> bool:
    try:
        return token.name in os.listdir(token.parent)  # opening the folder makes NFS ask its server for news of it
    except OSError:
        return False
