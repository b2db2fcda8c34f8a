"""Who started the processes: a launcher with `--max_restarts` starts them again, with the same words.

`accelerate launch` and `torchrun` end all processes of a machine when one fails, and start them anew. The second start
meets the run directory of the first, and is told from a stranger by the launcher, which is still the same process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # torch does not say that it exports them
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

_SCHEME = "restarted"


def num_restarts() -> int:
    """How often the launcher has started the processes again."""
    given = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(given) if given.isdecimal() else 0


def identify_launcher() -> dict[str, Any] | None:
    """The process that started this one, such that no other is ever mistaken for it: not one on another host, nor one
    that got its number later, nor one in a container that starts the same way each time.

    Returns:
        None where there is no launcher that would start this process again.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in parentheses may hold anything; after it the start time is the 20th, in clock ticks since boot.
        started = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None  # not Linux, or the launcher is gone: then nothing is known for sure
    return {"host": platform.node(), "process": os.getppid(), "started": started, "boot": boot, "run_id": run_id}


def is_restart_of(launcher: object) -> bool:
    """Whether a launcher, as `identify_launcher` described it to an earlier process, has started this one again."""
    return num_restarts() > 0 and launcher is not None and launcher == identify_launcher()


def rendezvous_url() -> str | None:
    """Where the processes find each other, for `init_process_group`; None = as usual.

    After a restart it is not as usual: the launcher of several processes, with its setting "static", keeps the store
    in which the ended processes left their addresses, and the new ones would wait for those (torch 2.5 and later).
    """
    return f"{_SCHEME}://" if num_restarts() else None


def _find_others(url: str, timeout: timedelta, **_: object) -> Iterator[tuple[Store, int, int]]:
    """The usual way, in a part of the store that belongs to this start alone."""
    del url
    for store, rank, num_processes in rendezvous("env://", timeout=timeout):
        yield PrefixStore(f"restart {num_restarts()}", store), rank, num_processes


register_rendezvous_handler(_SCHEME, _find_others)
