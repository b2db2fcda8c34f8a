"""The training run: from a configuration to a run directory. `loop` is the heart of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from accel_flowers.config.schema import Config, config_to_dict
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.errors import Diverged, UserError
from accel_flowers.core.progress import Progress, tell
from accel_flowers.data.split import save_split
from accel_flowers.data.workers import local_cores, start_forkserver
from accel_flowers.distributed.collectives import Processes, broadcast_from_main, check_same_everywhere
from accel_flowers.distributed.health import HealthMonitor
from accel_flowers.distributed.launch import (
    build_accelerator,
    destroyed_at_the_end,
    launched_precision,
    start_processes,
)
from accel_flowers.distributed.preemption import PreemptionHandler
from accel_flowers.tracking.jsonl import forget_after
from accel_flowers.tracking.run_dir import (
    METRICS_FILE,
    SPLIT_FILE,
    RunDirLock,
    check_run_dir,
    fixed_fields,
    holds_run,
    open_run_dir,
    recorded_precision,
    versions,
    write_config,
)
from accel_flowers.tracking.trackers import build_trackers, forget_shown, start_trackers
from accel_flowers.training.build import build_run
from accel_flowers.training.debugging import shorten, stricter
from accel_flowers.training.epoch import finish, is_scored, save
from accel_flowers.training.loop import loop
from accel_flowers.training.memory import oom_as_user_error
from accel_flowers.training.precision import try_precisions
from accel_flowers.training.profiler import StepProfiler
from accel_flowers.training.run import Run

MAX_ROLLBACKS = 3


def train(config: Config) -> dict[str, Any]:
    """Train, keep the best, score the test part once.

    Args:
        config: resolved; `run_dir` and `data.path` are set.

    Returns:
        Part → scores: of the best epoch on "val" and, where there is such a part, on "test".

    Raises:
        UserError: a mistake in the configuration, the folder, the weights or the launch, found before the first step;
            a disk that refuses to write; a loss that is no number.
        Interrupted: a signal; a checkpoint was written.
        RankLost: another process is gone.
    """
    config = shorten(config)
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    trackers = build_trackers(config.tracking, run_dir)
    if config.data.num_workers or (config.data.num_workers is None and torch.accelerator.is_available()):
        start_forkserver()
    processes = start_processes()
    with ExitStack() as stack:
        stack.enter_context(destroyed_at_the_end(processes))
        at_end = stack.enter_context(ExitStack())
        health = stack.enter_context(HealthMonitor(processes))
        check_same_everywhere(processes, {**versions(), **fixed_fields(config), "precision": launched_precision()})
        lock = stack.enter_context(RunDirLock())
        broadcast_from_main(processes, lambda: check_run_dir(run_dir, config, lock))
        precision = broadcast_from_main(processes, lambda: choose_precision(config, run_dir, processes))
        accelerator = build_accelerator(mixed_precision=precision, trackers=trackers, run_dir=run_dir)
        at_end.callback(accelerator.end_training)
        stack.enter_context(fast_arithmetic(accelerator.device, deterministic=config.debug.deterministic))
        run = build_run(config, accelerator)
        stack.callback(run.checkpoints.close)
        health.files_of = run.files_of
        _open_run(run, lock)
        progress = stack.enter_context(
            Progress(run.plan.num_steps, run.state.step, enabled=accelerator.is_main_process)
        )
        watch = stack.enter_context(PreemptionHandler(accelerator, config.checkpoint, health))
        profiler = stack.enter_context(StepProfiler(config.debug, run_dir, accelerator, run.network))
        stack.enter_context(stricter(config.debug))
        while True:
            try:
                with oom_as_user_error():
                    loop(run, progress, watch, profiler)
                results = finish(run, progress, watch)
                break
            except Diverged as diverged:
                _roll_back(run, diverged, progress)
        is_main = accelerator.is_main_process
    # All is saved, and the other processes may leave: nobody waits for the drawing, nothing is lost where it fails.
    if is_main and config.tracking.report:
        if accelerator.device.type != "cpu":
            torch.set_num_threads(local_cores(1))  # launchers leave each process of several one core
        _draw_report(run_dir)
    return results


def choose_precision(config: Config, run_dir: Path, processes: Processes) -> str | None:
    """None for the launcher's precision; float32 instead of its bf16 where the run began so, or a trial on this CPU finds
    it faster.

    On the main process alone: the others wait, so that they do not train while it measures.
    """
    launched = launched_precision()
    if config.train.precision == "launcher" or launched != "bf16":
        return None
    if holds_run(run_dir):
        began_in = recorded_precision(run_dir, launched)
        if began_in not in (None, launched):
            tell(f"precision: {began_in}, in which this run began (--train.precision launcher takes {launched})")
        return began_in
    # What torch.compile would make of the network is another network's speed.
    if processes.device.type != "cpu" or config.train.compile:
        return None
    choice = try_precisions(config, num_processes=processes.num_processes)
    if choice is None:
        return None
    tell(choice.words(config.model.name))
    return choice.precision


def _draw_report(run_dir: Path) -> None:
    from accel_flowers.report.draw import draw_report  # seconds of import

    try:
        tell(f"report: {draw_report(run_dir)}")
    # What a full disk, short memory, photos that vanish or a library may answer with; the run itself is done.
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        tell(f"no report ({error or type(error).__name__}): try again with accel-flowers report {run_dir}")


def _open_run(run: Run, lock: RunDirLock) -> None:
    """Write what the run directory holds from the start, and open the trackers; collective."""
    accelerator, run_dir = run.accelerator, run.run_dir
    environment = broadcast_from_main(accelerator, lambda: open_run_dir(run_dir, lock))

    def write() -> None:
        if not holds_run(run_dir):
            # The configuration comes last: from then on the directory holds a run, which nothing overwrites.
            on = {
                "num_processes": accelerator.num_processes,
                "precision": accelerator.mixed_precision,
                "launcher_precision": launched_precision(),
                "device": str(accelerator.device),
            }
            save_split(run.split, run_dir / SPLIT_FILE)
            write_config(run_dir, run.config, {**environment, **on})
        forget_after(run_dir / METRICS_FILE, run.state.step, scored=is_scored(run))

    broadcast_from_main(accelerator, write)
    values = config_to_dict(run.config)
    start_trackers(accelerator, values, run_id=environment["run_id"], next_step=run.state.step + 1)
    if run.config.train.on_nan == "rollback" and not run.state.step:
        save(run)  # something to go back to from the first epoch, too


def _roll_back(run: Run, diverged: Diverged, progress: Progress) -> None:
    """Go back to the last checkpoint, with half the learning rate; collective.

    Raises:
        UserError: that is not what the recipe says, or it was done often enough.
    """
    rollbacks = run.state.rollbacks
    if run.config.train.on_nan == "stop" or rollbacks == MAX_ROLLBACKS:
        tried = f" That was after {rollbacks} rollbacks." if rollbacks else ""
        raise UserError(
            f"{diverged}{tried} What was saved before is untouched. Try a lower --optim.lr, --optim.max-grad-norm 1, "
            "a warm-up (--schedule.warmup-epochs 1)" + ("." if tried else " or --train.on-nan rollback.")
        )
    newest, _ = broadcast_from_main(run.accelerator, run.checkpoints.find_newest)
    assert newest is not None, "one is written before the first step"
    run.restore(newest)
    run.optimizer.zero_grad()
    run.state.rollbacks = rollbacks + 1
    broadcast_from_main(
        run.accelerator,
        lambda: forget_after(run.run_dir / METRICS_FILE, run.state.step, scored=is_scored(run)),
    )
    forget_shown(run.accelerator, run.state.step)
    run.accelerator.log({"rollbacks": run.state.rollbacks, "diverged_at": diverged.step}, step=run.state.step)
    # As it was saved, with the losses that no line of the log holds yet.
    run.checkpoints.save(run.network, run.optimizer, run.state, run.averaged_network)
    progress.line(f"{diverged} Going back to step {run.state.step}, with the rate times {run.state.lr_factor:g}.")
