"""No process of a run waits in silence for one that has died, failed or gone another way.

Collectives alone would wait for minutes and then not say for whom. So each process tells the others once a second that
it lives and where it stands, through a store of their own beside the training; a thread ends the process, with a
message, when another one fails, is silent or stands elsewhere.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from accel_flowers.core.console import write_error
from accel_flowers.core.errors import Interrupted, RankLost, UserError
from accel_flowers.core.waiting import batch_time_limit
from accel_flowers.distributed.collectives import Processes


@dataclass(frozen=True)
class HealthTimes:
    """How long processes wait for each other, in seconds."""

    meet: float = 600.0
    """From the start of a process until all are there: pods and images of containers may come minutes apart."""
    look: float = 70.0
    """For the first file of a run directory until another machine sees it: NFS asks its server again after a minute at
    most (acdirmax)."""
    beat: float = 1.0
    """Between two heartbeats."""
    silent: float = 20.0
    """A process that was not heard of for so long is gone; one that stands elsewhere for so long went another way."""
    stuck: float = field(default_factory=lambda: batch_time_limit() + 60)
    """How long the others may wait for one that lives and stands just before them: its disk may be slow. Longer than it waits
    itself, because it knows the cause."""
    grace: float = 5.0
    """Left to a process to end by itself, once it is clear that it must."""
    leave: float = 10.0
    """Left to one that ends with an error to take the process group down."""
    lock: float = 10.0
    """How long a run waits for one that was killed just now to let go of the run directory."""


MAX_FILES = 64
"""Names of a batch that a message holds."""


@dataclass(frozen=True)
class Heartbeat:
    """What a process tells the others."""

    beat: int = 0
    state: Literal["running", "failed", "done"] = "running"
    doing: Literal["starting", "training", "evaluating"] = "starting"
    """While it starts, nobody compares where the others are."""
    step: int = 0
    micro_batch: int | None = None
    words: str = ""
    """Why it failed."""

    def is_elsewhere(self, other: Heartbeat) -> bool:
        """Whether the two cannot meet in the next collective as they stand."""
        compared = self.state == other.state == "running" and "starting" not in (self.doing, other.doing)
        return compared and (self.doing, self.step) != (other.doing, other.step)

    def is_just_before(self, other: Heartbeat) -> bool:
        """Whether it may still come to where the other waits."""
        return self.doing == other.doing and self.step == other.step - 1


def diagnose(
    rank: int,
    standings: Sequence[Heartbeat],
    silent: Sequence[float],
    apart: Sequence[float],
    *,
    times: HealthTimes = HealthTimes(),
    patience: float | None = None,
) -> tuple[int, str] | None:
    """What is wrong with the other processes.

    Args:
        rank: the process that asks.
        standings: of each process, the last that was heard.
        silent: seconds since each was heard.
        apart: seconds since each stands elsewhere than this one; 0 = it does not.
        times: how long is waited.
        patience: seconds of silence that are allowed; None = `times.silent`.

    Returns:
        The process and what it did; None where nothing is wrong.
    """
    own = standings[rank]
    others = [(other, standing) for other, standing in enumerate(standings) if other != rank]
    for other, standing in others:
        if standing.state == "failed":
            return other, f"failed: {standing.words}"
    for other, standing in others:
        if standing.state == "running" and silent[other] > (times.silent if patience is None else patience):
            return other, f"has not been heard of for {silent[other]:.0f} s"
    for other, standing in others:
        waits = standing.is_just_before(own) or own.is_just_before(standing)
        if apart[other] > (times.stuck if waits else times.silent):
            return other, f"stands elsewhere since {apart[other]:.0f} s"
    return None


class HealthMonitor:
    """The other processes of a run, watched while the `with` block lasts; to make one is collective.

    Args:
        processes: all of them.
        times: how long they wait for each other.
    """

    def __init__(self, processes: Processes, times: HealthTimes = HealthTimes()) -> None:
        self._times = times
        self._rank, self._size = processes.process_index, processes.num_processes
        self.files_of: Callable[[int], Sequence[str]] = lambda _: ()
        """Images of a micro-batch, for the messages; set when they are known."""
        self.when_lost: Callable[[str], None] = lambda _: None
        """Called once with the message about a lost process, as soon as it is known: a launcher may end this one before it is
        printed."""
        self._own = Heartbeat()
        self._heard = [Heartbeat()] * self._size
        now = time.monotonic()
        self._heard_at, self._together_at = [now] * self._size, [now] * self._size
        self._answered_at, self._answers = now, 0
        self._lost: str | None = None
        self._leaving, self._left = threading.Event(), threading.Event()
        self._store = _open_store(self._rank, times.silent) if self._size > 1 else None

    def at(self, doing: Literal["training", "evaluating"], step: int, micro_batch: int | None = None) -> None:
        """Note where this process stands; costs nothing."""
        self._own = replace(self._own, doing=doing, step=step, micro_batch=micro_batch)

    def __enter__(self) -> HealthMonitor:
        if self._store is not None:
            for work in (self._exchange, self._watch):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        del kind, trace
        if error is None or isinstance(error, Interrupted):
            self._leave("done")
            return
        if self._store is not None and (_is_of_a_collective(error) or self._somebody_is_late()):
            self._find_out(error)
            if self._lost is not None:
                self._leave("failed", self._lost)
                # What a device computes from sums that never came ends in errors of any kind.
                here = "" if _is_of_a_collective(error) else f"\nIt ended here with: {_in_words(error)}"
                raise RankLost(f"{self._lost}{here}") from None
        where = self._where(self._rank, self._own)
        self._leave("failed", f"{_in_words(error)} ({where})")
        if (
            type(error) is not UserError and self._own.doing != "starting"
        ):  # a mistake that all have made needs no place
            error.add_note(where)

    def _leave(self, state: Literal["failed", "done"], words: str = "") -> None:
        """Tell the others. The main process stays until they have heard, because it holds the store."""
        self._own = replace(self._own, state=state, words=words)
        self._leaving.set()
        if self._store is not None:
            told_at = self._answers + 2  # one may be under way
            deadline = time.monotonic() + (self._times.silent if state == "done" else 3 * self._times.beat)
            while time.monotonic() < deadline and self._lost is None:
                others_run = any(self._heard[other].state == "running" for other in range(self._size) if other)
                if self._answers >= told_at and not (self._rank == 0 and others_run):
                    break
                time.sleep(0.05)
        self._left.set()

    def _exchange(self) -> None:
        """Tell and hear. A call to the store may never return, which `_watch` sees."""
        assert self._store is not None
        keys = [f"standing-{rank}" for rank in range(self._size)]
        beat = 0
        while not self._left.is_set():
            beat += 1
            own = replace(self._own, beat=beat)
            try:
                self._store.set(keys[self._rank], json.dumps(asdict(own)))
                rows = self._store.multi_get(keys)
            except torch.distributed.DistStoreError:
                # It ran out of time: the whole job was suspended, and nobody could answer. The next call may be answered.
                self._left.wait(self._times.beat / 2)
                continue
            except RuntimeError:
                return  # process 0 is gone, and with it the store: it is silent from now on
            now = self._answered_at = time.monotonic()
            self._answers += 1
            for rank, row in enumerate(rows):
                standing = Heartbeat(**json.loads(row))
                if standing.beat != self._heard[rank].beat:
                    self._heard_at[rank] = now
                # What was heard is up to a beat old: of two that make several steps in that time none is ever seen beside the
                # other. They are together as long as the other one moves; one that took another way waits there for ever.
                if not standing.is_elsewhere(own) or standing.is_elsewhere(self._heard[rank]):
                    self._together_at[rank] = now
                self._heard[rank] = standing
            if self._leaving.is_set():
                self._left.wait(self._times.beat / 10)
            else:
                self._leaving.wait(self._times.beat)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._left.wait(self._times.beat / 2):
            now = time.monotonic()
            if now - last > self._times.silent / 2:  # it was this process that slept, and maybe the whole job
                self._heard_at, self._together_at = [now] * self._size, [now] * self._size
                self._answered_at = now
            last = now
            if self._leaving.is_set():
                continue
            # As far as is known: of a silent one it is not known where it stands.
            apart = [heard - together for heard, together in zip(self._heard_at, self._together_at, strict=True)]
            self._lose(diagnose(self._rank, self._standings(), self._silent(now), apart, times=self._times))
            if self._lost is not None and not self._left.wait(self._times.grace) and not self._leaving.is_set():
                write_error(f"process {self._rank}: {self._lost}")
                os._exit(1)  # the main thread may be waiting in a collective, from which nothing calls it back

    def _standings(self) -> list[Heartbeat]:
        return [self._own if rank == self._rank else standing for rank, standing in enumerate(self._heard)]

    def _silent(self, now: float) -> list[float]:
        """Seconds since each process was heard. Where the store does not answer, nothing is known but of process 0."""
        if now - self._answered_at < 3 * self._times.beat:
            return [now - heard_at for heard_at in self._heard_at]
        return [now - self._answered_at, *[0.0] * (self._size - 1)]

    def _somebody_is_late(self) -> bool:
        silent = self._silent(time.monotonic())
        others = [other for other in range(self._size) if other != self._rank]
        return any(self._heard[other].state == "running" and silent[other] > 2 * self._times.beat for other in others)

    def _find_out(self, error: BaseException) -> None:
        """Wait until it is known who made a collective fail: some process did, so silence is soon enough. For another
        error somebody may be the cause who is late, as long as nothing is heard of him."""
        deadline = time.monotonic() + self._times.silent
        is_sure = _is_of_a_collective(error)
        while self._lost is None and time.monotonic() < deadline and (is_sure or self._somebody_is_late()):
            silent = self._silent(time.monotonic())
            together = [0.0] * self._size
            patience = 4 * self._times.beat
            self._lose(diagnose(self._rank, self._standings(), silent, together, times=self._times, patience=patience))
            time.sleep(self._times.beat / 10)

    def _lose(self, found: tuple[int, str] | None) -> None:
        if found is None or self._lost is not None:
            return
        other, did = found
        standing = self._heard[other]
        where = "" if standing.state == "failed" else f" (last heard of: {self._where(other, standing)})"
        here = self._where(self._rank, self._own)
        lost = f"process {other} {did}{where}. All end, here in {here}. Go on with --resume auto"
        self.when_lost(lost)
        self._lost = lost

    def _where(self, rank: int, standing: Heartbeat) -> str:
        if standing.doing == "starting":
            return f"process {rank}, before the first step"
        place = f"process {rank}, {standing.doing} after step {standing.step}"
        files = () if standing.micro_batch is None else self.files_of(standing.micro_batch)
        shown = [*files[:MAX_FILES], *([f"{len(files) - MAX_FILES} more"] if len(files) > MAX_FILES else [])]
        return f"{place}, last batch: {', '.join(shown)}" if files else place


def _open_store(rank: int, seconds: float) -> Any:
    """A `TCPStore` beside the process group's own, held by process 0; collective."""

    def connect(port: int) -> Any:
        patience = timedelta(seconds=seconds)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        store = torch.distributed.TCPStore  # type: ignore[attr-defined]  # torch does not say that it exports it
        return store(host, port, is_master=rank == 0, wait_for_workers=False, timeout=patience)

    held = connect(0) if rank == 0 else None
    port = [held.port if held else None]
    broadcast_object_list(port)
    assert port[0] is not None
    store = held or connect(port[0])
    store.set(f"standing-{rank}", json.dumps(asdict(Heartbeat())))
    PartialState().wait_for_everyone()
    return store


def _is_of_a_collective(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl"))


def _in_words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "stopped by the keyboard"
    return str(error).rstrip(".") if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
