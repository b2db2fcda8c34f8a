"""Agreeing on what one process found: every function here is collective, or says that it is not."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    broadcast_object_list,
    gather_object,
)

from accel_flowers.core.errors import UserError

_log = logging.getLogger(__name__)


T = TypeVar("T")

_SHOWN = 10
"""Differences that a message lists."""


class Processes(Protocol):
    """How many processes there are and which one this is: Accelerate's PartialState knows from the start, its
    Accelerator from when the precision is decided."""

    num_processes: int
    process_index: int
    is_main_process: bool
    device: torch.device


def num_local_processes(accelerator: Accelerator) -> int:
    """Processes that share this machine's cores."""
    # What is left over from another launch may say more than there are.
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)), accelerator.num_processes)


def main_process_first(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """`do` on the main process, then on the others: for what fills a cache.

    Raises:
        UserError: the main process's mistake, on every process, so that all end and none waits.
    """
    done: list[T] = []

    def on_main() -> None:
        done.append(do())

    broadcast_from_main(accelerator, on_main)
    return done[0] if done else do()


def broadcast_from_main(processes: Processes, decide: Callable[[], T]) -> T:
    """`decide` on the main process alone; every process gets its result, or its error.

    Raises:
        UserError: the main process's mistake, on every process.
    """
    outcome: list[object] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = str(error)
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(str(outcome[1]))
    return outcome[0]  # type: ignore[return-value]  # what `decide` returned, on one process or sent to all


def run_on_all(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """`do` on every process at once; where one makes a mistake, all end with it; collective.

    Raises:
        UserError: the first process's that had one, on every process.
    """
    done: list[T] = []
    mistake: str | None = None
    try:
        done.append(do())
    except UserError as error:
        mistake = str(error)
    everywhere: list[str | None] = gather_object([mistake]) if accelerator.num_processes > 1 else [mistake]
    first = next((found for found in everywhere if found is not None), None)
    if first is not None:
        raise UserError(first)
    return done[0]


def log_on_main(accelerator: Accelerator, *lines: str) -> None:
    """Print lines on the main process alone."""
    if accelerator.is_main_process:
        for line in lines:
            _log.info(line)


def true_everywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether something is so on every process; collective."""
    return all(gather_object([here])) if accelerator.num_processes > 1 else here


def check_same_everywhere(processes: Processes, facts: Mapping[str, object]) -> None:
    """See that all processes are of one mind before they train together; collective.

    Args:
        processes: all of them.
        facts: what must be equal: name → value, of plain types.

    Raises:
        UserError: naming each fact that differs, with a process on either side; the same on every process.
    """
    if processes.num_processes == 1:
        return
    everywhere: list[dict[str, object]] = gather_object([dict(facts)])
    first = everywhere[0]
    lines = []
    for name in sorted({name for each in everywhere for name in each}):
        other = next((rank for rank, each in enumerate(everywhere) if each.get(name) != first.get(name)), None)
        if other is not None:
            lines.append(
                f"  {name}: {first.get(name)!r} on process 0, {everywhere[other].get(name)!r} on process {other}"
            )
    if lines:
        lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise UserError(
            "The processes do not agree, so they cannot work together:\n" + "\n".join(lines) + "\n"
            "Give all machines the same versions, the same words and the same pictures."
        )


@dataclass(frozen=True)
class MachineGroup:
    """The processes that share a machine with this one."""

    rank: int
    """Of this process among them."""
    ranks: tuple[int, ...]
    """Their ranks among all processes, rising."""
    group: Any = None
    """What torch's collectives between them are given; None = all processes are on one machine."""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.ranks)


ALONE = MachineGroup(0, (0,))


@contextmanager
def machine_group(accelerator: Accelerator) -> Iterator[MachineGroup]:
    """The processes of this machine, for exchanges between them alone while the block lasts; collective."""
    if accelerator.num_processes == 1:
        yield ALONE
        return
    machines: list[str] = gather_object([platform.node()])
    own = tuple(rank for rank, name in enumerate(machines) if name == machines[accelerator.process_index])
    group: Any = None
    if len(own) < len(machines):  # every process takes part in making every group
        members = [[rank for rank, other in enumerate(machines) if other == name] for name in dict.fromkeys(machines)]
        group, _ = torch.distributed.new_subgroups_by_enumeration(members)
    try:
        yield MachineGroup(own.index(accelerator.process_index), own, group)
    finally:
        if group is not None:
            torch.distributed.destroy_process_group(group)


class DelayedFlags:
    """Flags that one process raises and all act on, one call later: a small message between the CPUs that nobody waits for.

    What is raised at one call is on its way while the step after it computes, and is there at the next call; so the answer
    is the same on every process, and costs no step its time. It has a gloo group of its own, so that no device has to be
    waited for. One process alone has its answer at once.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._alone = accelerator.num_processes == 1
        self._group: Any = None if self._alone else torch.distributed.new_group(backend="gloo")
        self._sent: tuple[Any, torch.Tensor] | None = None
        """The exchange that is on its way, and what it fills."""

    def any_before(self, *flags: bool) -> tuple[bool, ...]:
        """Raise flags; for each, learn whether some process raised it at the call before; collective.

        A flag that is answered now is not raised again by the same call: whoever is told acts on it.

        Args:
            flags: equally many at each call.
        """
        if self._alone:
            return flags
        answers = self.close() or (False,) * len(flags)
        votes = torch.tensor([flag and not answer for flag, answer in zip(flags, answers, strict=True)]).int()
        maximum = torch.distributed.ReduceOp.MAX
        self._sent = (torch.distributed.all_reduce(votes, op=maximum, group=self._group, async_op=True), votes)
        return answers

    def close(self) -> tuple[bool, ...] | None:
        """Wait for what is on its way, so that nothing is when the processes part; gives its answer, if there is one."""
        if self._sent is None:
            return None
        (work, votes), self._sent = self._sent, None
        work.wait()
        return tuple(bool(vote) for vote in votes)
