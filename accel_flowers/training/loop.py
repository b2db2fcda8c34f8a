"""The training loop."""

from __future__ import annotations

import math

import torch

from accel_flowers.core.errors import Diverged, Interrupted
from accel_flowers.core.plural import number_of
from accel_flowers.data.loader import each_batch
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.tracking.trackers import prefixed
from accel_flowers.training.epoch import end_epoch, save
from accel_flowers.training.memory import peak_memory_gib
from accel_flowers.training.meter import LogWindow, Meter
from accel_flowers.training.optim import lr_of_groups, set_lr
from accel_flowers.training.run import Run, Session
from accel_flowers.training.step import seed_dropout


def loop(session: Session) -> None:
    """The whole training: one pass over the stream of micro-batches, from the step where the run stands; collective.

    Raises:
        Interrupted: a signal; a checkpoint was written.
        Diverged: a loss or the weights are no numbers; nothing of that was saved.
    """
    run, progress, preemption = session.run, session.progress, session.preemption
    accelerator, config, plan, state = run.accelerator, run.config, run.plan, run.state
    progress.line(_describe_run(run))
    meter = Meter(accelerator, plan, state.pending_losses, state.pending_parts)
    if not run.is_scored():
        progress.line(end_epoch(session))  # a signal had cut off the evaluation
    if run.should_stop_early():
        return  # it was stopped early, and interrupted before the end
    set_training_mode(run.network)
    run.stream.start_step = state.step
    for batch in meter.timed(each_batch(run.loaders["train"])):
        preemption.before_step(state.step, batch["micro_batch"])
        run.enter_phase(state.step)
        lr = run.lr_of_step(state.step)
        set_lr(run.optimizer, lr)
        seed_dropout(config.train.seed, batch["micro_batch"], accelerator.device)
        meter.add(batch["micro_batch"], run.train_step(batch))
        if not accelerator.sync_gradients:
            continue

        # An optimizer step is done.
        state.step += 1
        if accelerator.optimizer_step_was_skipped:
            state.skipped_steps += 1
        elif run.ema:
            run.ema.update(state.step - state.skipped_steps)
        if table := session.profiler.step():
            progress.line(table)
        epoch_ends = plan.epochs_completed_at(state.step) > plan.epochs_completed_at(state.step - 1)
        log = epoch_ends or state.step % config.train.log_every_steps == 0
        due, stop = preemption.after_step(state.step)
        due |= run.note_start()
        if log or due or stop:
            _check_numbers(run, meter, lr)
        if log:
            window = meter.read()
            _log_step(run, window)
            progress.step(
                state.step,
                loss=window.loss,
                accuracy=window.parts.get("accuracy"),
                lr=lr,
                images_per_second=window.images_per_second,
            )
        if stop:
            save(session, meter)
            session.checkpoints.wait()
            raise Interrupted(state.step)
        if epoch_ends:
            progress.line(end_epoch(session))
            if run.should_stop_early():
                progress.line(
                    f"no improvement for {number_of(state.epochs_since_improvement, 'epoch')}: early stopping"
                )
                break
            set_training_mode(run.network)
            meter.restart()
        elif due:
            save(session, meter)


def _describe_run(run: Run) -> str:
    plan, accelerator = run.plan, run.accelerator
    words = (
        f"{plan.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"a step is {number_of(plan.global_batch_size, 'picture')}: {plan.accumulation} x {plan.micro_batch} on each process; "
        f"{number_of(plan.num_steps, 'step')} in {number_of(plan.epochs, 'epoch')}"
    )
    return words + (f"; going on after step {run.state.step}" if run.state.step else "")


def _check_numbers(run: Run, meter: Meter, lr: float) -> None:
    """See that no loss since the last check, and no weight, is nan or infinite; collective.

    Raises:
        Diverged: on every process, with what was found first.
    """
    found = meter.first_bad()
    if found:
        micro_batch, loss = found
        step = micro_batch // run.plan.micro_batches_per_step
        process = micro_batch % run.plan.num_processes
        raise Diverged(
            step + 1, run.lr_of_step(step), f"the loss is {loss} (process {process})", run.files_of(micro_batch)
        )
    # Of numbers the largest is a number, too: two passes and one wait for the device.
    if not torch.nn.utils.get_total_norm(list(run.network.parameters()), math.inf).isfinite():
        raise Diverged(run.state.step, lr, "weights became nan or infinite")


def _log_step(run: Run, window: LogWindow) -> None:
    speed = {name: getattr(window, name) for name in ("images_per_second", "step_seconds", "data_wait")}
    values = {
        "epoch": run.plan.epoch_at(run.state.step),
        "train/loss": window.loss,
        **prefixed("train", window.parts),
        **prefixed("lr", lr_of_groups(run.optimizer)),
        **prefixed("speed", {**speed, "peak_memory_gib": peak_memory_gib(run.accelerator.device)}),
    }
    run.accelerator.log(values, step=run.state.step)
