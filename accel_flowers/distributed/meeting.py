"""How the processes of a launch find each other: within minutes, and whoever waits says for whom.

torch's own way has one patience for all: for the others to come, and for the hours in which the main process alone looks at
all pictures. Where another machine's program cannot start, nobody would be told for as long as that.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # torch does not say that it exports them
from torch.distributed.rendezvous import register_rendezvous_handler

from accel_flowers.core.console import write_error
from accel_flowers.core.errors import RankLost, UserError
from accel_flowers.distributed.environment import names_of_a_launch, num_restarts

_log = logging.getLogger(__name__)

_SCHEME = "accel-flowers"
MEETING_URL = f"{_SCHEME}://"
"""For `init_process_group`: where the processes find each other."""
_SPEAK_AFTER = 20.0
"""Seconds after which it is said that the others have not come yet; then after twice as many each time."""
_ASK_EVERY = 0.2
_NAMED = 8
"""Processes that a message lists."""
_CAME = "came"

_meetings = itertools.count()
_missing: list[int] | None = None
"""The processes that this one waits for; None = those that are there are not known yet."""


@contextmanager
def limited_wait(size: int, seconds: float) -> Iterator[None]:
    """While the processes meet in the block, say for whom this one waits, and end it where they do not come.

    What it waits in may be torch's own code, from which nothing calls it back.

    Args:
        size: number of processes.
        seconds: how long they may take.
    """
    global _missing
    _missing = None
    have_met = threading.Event()
    if size > 1:
        threading.Thread(target=_watch, args=(have_met, size, seconds), daemon=True).start()
    try:
        yield
    finally:
        have_met.set()


def _watch(have_met: threading.Event, size: int, seconds: float) -> None:
    began, speak_at = time.monotonic(), min(_SPEAK_AFTER, seconds / 2)
    while not have_met.wait(min(speak_at, seconds) - (time.monotonic() - began)):
        waited = time.monotonic() - began
        if waited >= seconds:
            write_error(f"{_for_whom(size)} did not come within {waited:.0f} s. {_what_to_do()}")
            os._exit(1)
        _log.warning(f"waiting for {_for_whom(size)}, {waited:.0f} s of {seconds:.0f}. {_what_to_do()}")
        speak_at *= 2


def _for_whom(size: int) -> str:
    missing = _missing
    if missing is None:
        return f"the main process of {size}"
    if not missing:
        return f"a connection between the {size} processes, which are all there"
    named = ", ".join(map(str, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
    return f"{len(missing)} of {size} processes ({named})"


def _what_to_do() -> str:
    where = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ)
    if _missing == []:
        return (
            "If a machine's name leads to another\n"
            "network than the one between them, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
        )
    return (
        f"They meet at {where}:\nsee what the other machines say. If there are no others, end this and\n"
        f"unset {' '.join(names_of_a_launch())}"
    )


def _meet(url: str, timeout: timedelta, **_: object) -> Iterator[tuple[Store, int, int]]:
    """Of `init_process_group`: the store through which the processes find each other, once all have come to it.

    Each start has a part of the store to itself. The launcher of several processes, with its setting "static", keeps the
    store in which the ended processes left their addresses, and the new ones would wait for those (torch 2.5 and later);
    so would a second run in the same processes.

    Raises:
        RankLost: the launcher that holds the store is gone.
        UserError: its port is taken.
    """
    global _missing
    del url
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    start = f"start {num_restarts()}.{next(_meetings)}"
    while True:
        try:
            store = PrefixStore(start, _open_store(rank, timeout))
            store.append(_CAME, f"{rank} ")  # type: ignore[attr-defined]  # nor that it has this
            while _missing := sorted(set(range(size)) - {int(word) for word in store.get(_CAME).split()}):
                time.sleep(_ASK_EVERY)
            break
        except torch.distributed.DistError as error:
            if _is_held_by_launcher():
                raise RankLost(
                    f"the processes lost each other before they had met ({str(error).splitlines()[0][:200]}).\n"
                    "See what the other machines say."
                ) from None
            _missing = None
            time.sleep(_ASK_EVERY)  # it was that of a run before this one, which process 0 is just leaving
    yield store, rank, size


def _is_held_by_launcher() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open_store(rank: int, timeout: timedelta) -> Store:
    """The store, in this process where the launcher has none."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    holds = rank == 0 and not _is_held_by_launcher()
    store = torch.distributed.TCPStore  # type: ignore[attr-defined]  # torch does not say that it exports it
    try:
        opened: Store = store(host, port, is_master=holds, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    except torch.distributed.DistNetworkError as error:
        if holds and "EADDRINUSE" in str(error):
            raise UserError(
                f"Port {port}, at which the processes are to meet, is taken: give another one, with\n"
                "--main_process_port to accelerate launch, or MASTER_PORT."
            ) from None
        raise
    return opened


register_rendezvous_handler(_SCHEME, _meet)
