"""The training loop, and what one step is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_flowers.core.errors import Diverged, Interrupted
from accel_flowers.core.progress import Progress
from accel_flowers.data.dataset import Batch
from accel_flowers.data.loader import each_batch
from accel_flowers.data.sampler import random_key
from accel_flowers.distributed.preemption import PreemptionHandler
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.tracking.trackers import prefixed
from accel_flowers.training.epoch import end_epoch, is_scored, save, should_stop_early
from accel_flowers.training.memory import peak_memory_gib
from accel_flowers.training.meter import LogWindow, Meter
from accel_flowers.training.optim import lr_of_groups, set_lr
from accel_flowers.training.profiler import StepProfiler
from accel_flowers.training.run import Run


def loop(run: Run, progress: Progress, watch: PreemptionHandler, profiler: StepProfiler) -> None:
    """The whole training: one pass over the stream of micro-batches, from the step where the run stands; collective.

    Raises:
        Interrupted: a signal; a checkpoint was written.
        Diverged: a loss or the weights are no numbers; nothing of that was saved.
    """
    accelerator, config, plan, state = run.accelerator, run.config, run.plan, run.state
    progress.line(_describe_run(run))
    meter = Meter(accelerator, plan, state.pending_losses)
    if not is_scored(run):
        progress.line(end_epoch(run, watch))  # a signal had cut off the evaluation
    if should_stop_early(run):
        return  # it was stopped early, and interrupted before the end
    set_training_mode(run.network)
    run.stream.start_step = state.step
    for batch in meter.timed(each_batch(run.loaders["train"])):
        watch.before_step(state.step, batch["micro_batch"])
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
            if should_stop_early(run):
                progress.line(f"no gain in {state.epochs_since_improvement} epochs: stopping early")
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


def _describe_run(run: Run) -> str:
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


def _log_step(run: Run, reading: LogWindow) -> None:
    speed = {name: getattr(reading, name) for name in ("images_per_second", "step_seconds", "data_wait")}
    values = {
        "epoch": run.plan.epoch_at(run.state.step),
        "train/loss": reading.loss,
        **prefixed("lr", lr_of_groups(run.optimizer)),
        **prefixed("speed", {**speed, "peak_memory_gib": peak_memory_gib(run.accelerator.device)}),
    }
    run.accelerator.log(values, step=run.state.step)
