"""One session around everything that runs on several processes: train, evaluate, benchmark.

It starts the processes, sees that they are of one mind, watches that none waits in silence for another, listens to signals
where the process is ours to stop, and ends the process group however the work is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.signals import current_handlers, restore_signals, undisturbed_way_out
from accel_flowers.distributed.collectives import check_same_everywhere
from accel_flowers.distributed.health import HealthMonitor, HealthTimes
from accel_flowers.distributed.launch import build_accelerator, close_trackers, destroyed_at_the_end, start_processes
from accel_flowers.distributed.launcher import Launcher, stopping_with
from accel_flowers.distributed.preemption import PreemptionHandler


@dataclass(frozen=True)
class ProcessSession:
    """The processes of a launch while they work together."""

    processes: PartialState
    health: HealthMonitor
    owns_process: bool
    """Whether signals are ours to handle: so for the command line, not for somebody's notebook or program."""
    times: HealthTimes
    """How long the processes wait for each other."""
    _at_end: ExitStack

    def build_accelerator(
        self,
        *,
        mixed_precision: str | None = None,
        trackers: Sequence[str | GeneralTracker] = (),
        run_dir: Path | None = None,
    ) -> Accelerator:
        """As `launch.build_accelerator`; its trackers are closed when the session ends."""
        accelerator = build_accelerator(mixed_precision=mixed_precision, trackers=trackers, run_dir=run_dir)
        self._at_end.callback(close_trackers, accelerator)
        return accelerator

    def when_it_ends(self, do: Callable[[BaseException | None], None]) -> None:
        """Call it with the error that ends the session, or with None; before its trackers are closed."""
        self._at_end.push(lambda _kind, error, _trace: do(error))

    def preemption(self, accelerator: Accelerator, config: CheckpointConfig) -> PreemptionHandler:
        """What listens to signals and agrees on them; collective."""
        return PreemptionHandler(accelerator, config, self.health, listens=self.owns_process)


@contextmanager
def process_session(
    facts: Mapping[str, object],
    *,
    owns_process: bool,
    times: HealthTimes = HealthTimes(),  # noqa: B008 - it is frozen
) -> Iterator[ProcessSession]:
    """Start the processes and keep them together while the block lasts; collective.

    Args:
        facts: what must be equal on all of them: name → value, of plain types.
        owns_process: whether signals are handled.
        times: how long the processes wait for each other.

    Raises:
        UserError: the launch is wrong, or the processes differ.
        RankLost: (from the block) another process failed, fell silent or is gone.
    """
    launcher = Launcher()
    handlers = current_handlers() if owns_process else {}
    try:
        with stopping_with(launcher) if owns_process else nullcontext():
            processes = start_processes(seconds_to_meet=times.meet)
            # In this order: the others are told how this one ends before trackers are closed, and the group goes last.
            with (
                destroyed_at_the_end(processes, seconds_to_leave=times.leave),
                ExitStack() as at_end,
                HealthMonitor(processes, times) as health,
                undisturbed_way_out(owns_process=owns_process),
            ):
                check_same_everywhere(processes, facts)
                yield ProcessSession(processes, health, owns_process, times, at_end)
    finally:
        restore_signals(handlers)
        # Accelerate keeps its state in its classes: a notebook's next run, or its launcher, must find them as new.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
