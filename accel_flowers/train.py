"""The training run: from a configuration to a run directory. `loop` is the heart of it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_flowers.build import Run, build_run
from accel_flowers.config import Config, config_to_dict
from accel_flowers.data.batches import Batch, each_batch
from accel_flowers.data.order import random_key
from accel_flowers.data.split import save_split
from accel_flowers.data.workers import local_cores, start_forkserver
from accel_flowers.debugging import StepProfiler, fast_arithmetic, shorten, stricter
from accel_flowers.errors import Diverged, Interrupted, UserError
from accel_flowers.freezing import set_training_mode
from accel_flowers.memory import peak_memory_gib, told_when_short
from accel_flowers.meter import Meter, Reading
from accel_flowers.optim import lr_of_groups, set_lr
from accel_flowers.peers import Peers
from accel_flowers.processes import (
    Processes,
    build_accelerator,
    check_same_everywhere,
    decided_by_main,
    destroyed_at_the_end,
    launched_precision,
    start_processes,
)
from accel_flowers.progress import Progress, tell
from accel_flowers.run_dir import (
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
from accel_flowers.scoring import end_epoch, finish, is_scored, out_of_patience, save
from accel_flowers.tracking import build_trackers, forget_after, forget_shown, prefixed, start_trackers
from accel_flowers.trial import faster_precision
from accel_flowers.watch import Watch

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
        PeerLost: another process is gone.
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
        peers = stack.enter_context(Peers(processes))
        check_same_everywhere(processes, {**versions(), **fixed_fields(config), "precision": launched_precision()})
        lock = stack.enter_context(RunDirLock())
        decided_by_main(processes, lambda: check_run_dir(run_dir, config, lock))
        precision = decided_by_main(processes, lambda: choose_precision(config, run_dir, processes))
        accelerator = build_accelerator(mixed_precision=precision, trackers=trackers, run_dir=run_dir)
        at_end.callback(accelerator.end_training)
        stack.enter_context(fast_arithmetic(accelerator.device, deterministic=config.debug.deterministic))
        run = build_run(config, accelerator)
        stack.callback(run.checkpoints.close)
        peers.files_of = run.files_of
        _begin(run, lock)
        progress = stack.enter_context(
            Progress(run.plan.num_steps, run.state.step, enabled=accelerator.is_main_process)
        )
        watch = stack.enter_context(Watch(accelerator, config.checkpoint, peers))
        profiler = stack.enter_context(StepProfiler(config.debug, run_dir, accelerator, run.network))
        stack.enter_context(stricter(config.debug))
        while True:
            try:
                with told_when_short():
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
    choice = faster_precision(config, num_processes=processes.num_processes)
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


def _begin(run: Run, lock: RunDirLock) -> None:
    """Write what the run directory holds from the start, and open the trackers; collective."""
    accelerator, run_dir = run.accelerator, run.run_dir
    environment = decided_by_main(accelerator, lambda: open_run_dir(run_dir, lock))

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

    decided_by_main(accelerator, write)
    values = config_to_dict(run.config)
    start_trackers(accelerator, values, run_id=environment["run_id"], next_step=run.state.step + 1)
    if run.config.train.on_nan == "rollback" and not run.state.step:
        save(run)  # something to go back to from the first epoch, too


def loop(run: Run, progress: Progress, watch: Watch, profiler: StepProfiler) -> None:
    """The whole training: one pass over the stream of micro-batches, from the step where the run stands; collective.

    Raises:
        Interrupted: a signal; a checkpoint was written.
        Diverged: a loss or the weights are no numbers; nothing of that was saved.
    """
    accelerator, config, plan, state = run.accelerator, run.config, run.plan, run.state
    progress.line(_what_comes(run))
    meter = Meter(accelerator, plan, state.unread_losses)
    if not is_scored(run):
        progress.line(end_epoch(run, watch))  # a signal had cut off the evaluation
    if out_of_patience(run):
        return  # it was stopped early, and interrupted before the end
    set_training_mode(run.network)
    run.stream.start_step = state.step
    for batch in meter.timed(each_batch(run.loaders["train"])):
        watch.begins(state.step, batch["micro_batch"])
        lr = _lr_at(run, state.step)
        set_lr(run.optimizer, lr)
        _seed_dropout(config.train.seed, batch["micro_batch"], accelerator.device)
        meter.add(batch["micro_batch"], learn_from(batch, run))
        if not accelerator.sync_gradients:
            continue

        # An optimizer step is done.
        state.step += 1
        if accelerator.optimizer_step_was_skipped:
            state.skipped_steps += 1
        elif run.ema:
            run.ema.update(state.step - state.skipped_steps)
        if table := profiler.step():
            progress.line(table)
        epoch_ends = plan.epochs_completed_at(state.step) > plan.epochs_completed_at(state.step - 1)
        log = epoch_ends or state.step % config.train.log_every_steps == 0
        due, stop = watch.after_step(state.step)
        if log or due or stop:
            _check_numbers(run, meter, lr)
        if log:
            reading = meter.read()
            _log_step(run, reading)
            progress.step(state.step, loss=reading.loss, lr=lr, images_per_second=reading.images_per_second)
        if stop:
            save(run, meter, watch)
            run.checkpoints.wait()
            raise Interrupted(state.step)
        if epoch_ends:
            progress.line(end_epoch(run, watch))
            if out_of_patience(run):
                progress.line(f"no gain in {state.epochs_without_gain} epochs: stopping early")
                break
            set_training_mode(run.network)
            meter.restart()
        elif due:
            save(run, meter, watch)


def learn_from(batch: Batch, run: Run) -> Tensor:
    """Forward and backward over one micro-batch, and the optimizer's step where it is due; gives the loss.

    It waits for no device.
    """
    accelerator, max_norm = run.accelerator, run.config.optim.max_grad_norm
    with accelerator.accumulate(run.model):
        loss = run.objective(run.model(run.normalizer(run.to_pixels["train"](batch))), batch["labels"])
        accelerator.backward(loss)
        if accelerator.sync_gradients and max_norm is not None:
            accelerator.clip_grad_norm_(run.network.parameters(), max_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
    return loss


def _what_comes(run: Run) -> str:
    plan, accelerator = run.plan, run.accelerator
    words = (
        f"{plan.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"a step is {plan.global_batch_size} pictures: {plan.accumulation} x {plan.micro_batch} on each process; "
        f"{plan.num_steps} steps in {plan.epochs} epochs"
    )
    return words + (f"; going on after step {run.state.step}" if run.state.step else "")


def _lr_at(run: Run, step: int) -> float:
    """The learning rate of the step after `step`: skipped steps do not move it, rollbacks halve it."""
    return run.lr_at(run.plan.epoch_at(step - run.state.skipped_steps)) * run.state.lr_factor


def _seed_dropout(seed: int, micro_batch: int, device: torch.device) -> None:
    """Chance inside the network follows from the micro-batch, not from the process or from what came before."""
    key = random_key(seed, "dropout", micro_batch)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


def _check_numbers(run: Run, meter: Meter, lr: float) -> None:
    """See that no loss since the last look, and no weight, is nan or infinite; collective.

    Raises:
        Diverged: on every process, with what was found first.
    """
    found = meter.first_bad()
    if found:
        micro_batch, loss = found
        step = micro_batch // run.plan.micro_batches_per_step
        process = micro_batch % run.plan.num_processes
        raise Diverged(
            step + 1, _lr_at(run, step), f"the loss is {loss} (process {process})", run.files_of(micro_batch)
        )
    # Of numbers the largest is a number, too: two passes and one look at the device.
    if not torch.nn.utils.get_total_norm(list(run.network.parameters()), math.inf).isfinite():
        raise Diverged(run.state.step, lr, "weights became nan or infinite")


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
    newest, _ = decided_by_main(run.accelerator, run.checkpoints.find_newest)
    assert newest is not None, "one is written before the first step"
    run.restore(newest)
    run.optimizer.zero_grad()
    run.state.rollbacks = rollbacks + 1
    decided_by_main(
        run.accelerator,
        lambda: forget_after(run.run_dir / METRICS_FILE, run.state.step, scored=is_scored(run)),
    )
    forget_shown(run.accelerator, run.state.step)
    run.accelerator.log({"rollbacks": run.state.rollbacks, "diverged_at": diverged.step}, step=run.state.step)
    # As it was saved, with the losses that no line of the log holds yet.
    run.checkpoints.save(run.network, run.optimizer, run.state, run.averaged_network)
    progress.line(f"{diverged} Going back to step {run.state.step}, with the rate times {run.state.lr_factor:g}.")


def _log_step(run: Run, reading: Reading) -> None:
    speed = {name: getattr(reading, name) for name in ("images_per_second", "step_seconds", "data_wait")}
    values = {
        "epoch": run.plan.epoch_at(run.state.step),
        "train/loss": reading.loss,
        **prefixed("lr", lr_of_groups(run.optimizer)),
        **prefixed("speed", {**speed, "peak_memory_gib": peak_memory_gib(run.accelerator.device)}),
    }
    run.accelerator.log(values, step=run.state.step)
