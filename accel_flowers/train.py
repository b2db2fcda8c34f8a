"""The training run: from a configuration to a run directory. `loop` is the heart of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_flowers.build import Run, build_run
from accel_flowers.config import Config, config_to_dict
from accel_flowers.data.order import random_key
from accel_flowers.data.split import save_split
from accel_flowers.errors import Interrupted
from accel_flowers.evaluate import predict_loader
from accel_flowers.freezing import set_training_mode
from accel_flowers.metrics import headline, summarize
from accel_flowers.optim import set_lr
from accel_flowers.processes import average_buffers, build_accelerator, decided_by_main
from accel_flowers.progress import Progress
from accel_flowers.run_dir import MODEL_DIR, SPLIT_FILE, check_run_dir, holds_run, open_run_dir, write_config
from accel_flowers.saved_model import save_model
from accel_flowers.tracking import (
    METRICS_FILE,
    JsonlTracker,
    forget_after,
    prefixed,
    start_trackers,
    tracker_names,
    write_summary,
)
from accel_flowers.watch import Watch


def train(config: Config) -> dict[str, Any]:
    """Train, keep the best, score the test part once.

    Args:
        config: resolved; `run_dir` and `data.path` are set.

    Returns:
        Part → scores: of the best epoch on "val" and, where there is such a part, on "test".

    Raises:
        UserError: a mistake in the configuration, the folder, the weights or the launch, found before the first step.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    trackers = [JsonlTracker(run_dir / METRICS_FILE), *tracker_names(config.tracking)]
    accelerator = build_accelerator(trackers=trackers, run_dir=run_dir)
    decided_by_main(accelerator, lambda: check_run_dir(run_dir, config))
    run = build_run(config, accelerator)
    _begin(run)
    progress = Progress(run.plan.num_steps, run.state.step, enabled=accelerator.is_main_process)
    try:
        with Watch(accelerator, config.checkpoint) as watch:
            loop(run, progress, watch)
        return _finish(run, progress)
    finally:
        progress.close()
        accelerator.end_training()


def _begin(run: Run) -> None:
    """Write what the run directory holds from the start, and open the trackers."""
    accelerator, run_dir = run.accelerator, run.run_dir
    environment = decided_by_main(accelerator, lambda: open_run_dir(run_dir))
    values = config_to_dict(run.config)
    start_trackers(accelerator, run.config.tracking, values, run_dir=run_dir, run_id=environment["run_id"])
    if accelerator.is_main_process and not holds_run(run_dir):
        # The configuration comes last: from then on the directory holds a run, which nothing overwrites.
        on = {
            "num_processes": accelerator.num_processes,
            "precision": accelerator.mixed_precision,
            "device": str(accelerator.device),
        }
        save_split(run.split, run_dir / SPLIT_FILE)
        write_config(run_dir, run.config, {**environment, **on})
    if accelerator.is_main_process:
        forget_after(run_dir / METRICS_FILE, run.state.step)


def loop(run: Run, progress: Progress, watch: Watch) -> None:
    """The whole training: one pass over the stream of micro-batches, from the step where the run stands; collective."""
    accelerator, model, optimizer = run.accelerator, run.model, run.optimizer
    config, plan, state = run.config, run.plan, run.state
    progress.line(_what_comes(run))
    if _out_of_patience(run):
        return  # it was stopped early, and interrupted before the end
    meter = _Meter(run)
    set_training_mode(run.network)
    for batch in run.loaders["train"]:
        lr = run.lr_at(plan.epoch_at(state.step))
        set_lr(optimizer, lr)
        _seed_dropout(config.train.seed, batch["micro_batch"])
        with accelerator.accumulate(model):
            loss = run.objective(model(run.normalizer(batch["pixels"])), batch["labels"])
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.optim.max_grad_norm is not None:
                accelerator.clip_grad_norm_(run.network.parameters(), config.optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        meter.add(loss.detach())
        if not accelerator.sync_gradients:
            continue

        # An optimizer step is done.
        state.step += 1
        epoch_ends = plan.epochs_completed_at(state.step) > plan.epochs_completed_at(state.step - 1)
        if epoch_ends or state.step % config.train.log_every_steps == 0:
            loss_mean, images_per_second = meter.read()
            _log_step(run, loss_mean, lr, images_per_second)
            progress.step(state.step, loss=loss_mean, lr=lr, images_per_second=images_per_second)
        if epoch_ends:
            progress.line(_end_epoch(run))
            if _out_of_patience(run):
                progress.line(f"no gain in {state.epochs_without_gain} epochs: stopping early")
                break
            set_training_mode(run.network)
            meter.restart()
        save, stop = watch.after_step(state.step, saved=epoch_ends)
        if save:
            state.unlogged_losses, state.unlogged_count = meter.unread()
            run.checkpoints.save(run.network, optimizer, state)
        if stop:
            raise Interrupted(state.step)


def _what_comes(run: Run) -> str:
    plan, accelerator = run.plan, run.accelerator
    words = (
        f"{plan.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"a step is {plan.global_batch_size} pictures: {plan.accumulation} x {plan.micro_batch} on each process; "
        f"{plan.num_steps} steps in {plan.epochs} epochs"
    )
    return words + (f"; going on after step {run.state.step}" if run.state.step else "")


def _seed_dropout(seed: int, micro_batch: int) -> None:
    """Chance inside the network follows from the micro-batch, not from the process or from what came before."""
    key = random_key(seed, "dropout", micro_batch)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(key)


class _Meter:
    """Mean loss over all processes and pictures a second, since the last reading."""

    def __init__(self, run: Run) -> None:
        self._accelerator, self._plan = run.accelerator, run.plan
        self._sum: Tensor | None = None
        self._count = 0
        self._begun = time.perf_counter()
        if sums := run.state.unlogged_losses:
            # Where another number of processes goes on, each takes an equal share of what is not logged yet.
            same = len(sums) == self._plan.num_processes
            own = sums[self._accelerator.process_index] if same else sum(sums) / self._plan.num_processes
            self._sum = torch.tensor(own, device=self._accelerator.device)
            self._count = run.state.unlogged_count * len(sums) // self._plan.num_processes

    def unread(self) -> tuple[list[float], int]:
        """The sum of each process and its count, for a checkpoint between two readings; collective."""
        if self._sum is None:
            return [], 0
        return self._accelerator.gather(self._sum.float().reshape(1)).tolist(), self._count

    def restart(self) -> None:
        """Forget, so that the time of an evaluation does not count."""
        self._sum, self._count = None, 0
        self._begun = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Take in the loss of one micro-batch of this process; does not wait for the device."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def read(self) -> tuple[float, float]:
        """Mean loss, images/s; collective, and waits for the device."""
        assert self._sum is not None
        mean = float(self._accelerator.reduce(self._sum / self._count, reduction="mean"))
        images = self._count * self._plan.micro_batch * self._plan.num_processes
        speed = images / max(time.perf_counter() - self._begun, math.ulp(1.0))
        self.restart()
        return mean, speed


def _log_step(run: Run, loss: float, lr: float, images_per_second: float) -> None:
    epoch = run.plan.epoch_at(run.state.step)
    values = {"epoch": epoch, "train/loss": loss, "lr": lr, "speed/images_per_second": images_per_second}
    run.accelerator.log(values, step=run.state.step)


def _end_epoch(run: Run) -> str:
    """Score the validation part, save, remember whether this is the best so far; collective.

    Returns:
        The line for people.
    """
    state, metric = run.state, run.config.train.best_metric
    epoch = run.plan.epochs_completed_at(state.step)
    average_buffers(run.network, run.accelerator)
    scores = _score(run, "val")
    is_best = state.take(scores[metric], epoch=epoch, lower_is_better=metric == "loss")
    values = {"epoch": run.plan.epoch_at(state.step), **prefixed("val", headline(scores))}
    run.accelerator.log(values, step=state.step)
    state.unlogged_losses, state.unlogged_count = [], 0
    run.checkpoints.save(run.network, run.optimizer, state)
    if is_best and run.accelerator.is_main_process:
        _save_model(run, {"val": scores})
    return f"epoch {epoch}/{run.plan.epochs}  val {_in_words(scores)}" + ("  best so far" if is_best else "")


def _score(run: Run, part: str) -> dict[str, Any]:
    predictions = predict_loader(
        run.network, run.loaders[part], run.normalizer, run.accelerator, num_images=run.num_images[part]
    )
    return summarize(predictions, run.card.class_names)


def _in_words(scores: dict[str, Any]) -> str:
    return f"accuracy {scores['accuracy']:.4f}  loss {scores['loss']:.4f}  macro F1 {scores['macro_f1']:.4f}"


def _save_model(run: Run, results: dict[str, Any]) -> None:
    where = {"epoch": run.state.best_epoch, "step": run.state.best_step}
    described = {part: {**scores, **where} for part, scores in results.items()}
    save_model(run.run_dir / MODEL_DIR, run.network, run.card.model_copy(update={"scores": described}))


def _out_of_patience(run: Run) -> bool:
    patience = run.config.train.early_stopping_epochs
    return patience is not None and run.state.epochs_without_gain >= patience


def _finish(run: Run, progress: Progress) -> dict[str, Any]:
    """Score the best weights: validation again, and the test part for the first and only time; collective."""
    state = run.state
    run.checkpoints.load_weights(run.network, state.best_step)
    results: dict[str, Any] = {part: _score(run, part) for part in ("val", "test") if part in run.loaders}
    where = {"epoch": state.best_epoch, "step": state.best_step}
    summary = {f"best/{run.config.train.best_metric}": state.best_value, **prefixed("best", where)}
    if "test" in results:
        summary |= prefixed("test", headline(results["test"]))
        run.accelerator.log(prefixed("test", headline(results["test"])), step=state.step)
    write_summary(run.accelerator, summary)
    if run.accelerator.is_main_process:
        _save_model(run, results)  # anew: a run killed after its best checkpoint may not have come to it

    looks = run.plan.epochs_completed_at(state.step)
    flatters = f"  (the best of {looks} looks, so it flatters)" if looks > 1 else ""
    progress.line(f"best epoch {state.best_epoch}: val {_in_words(results['val'])}{flatters}")
    if "test" in results:
        progress.line(f"test, looked at once: {_in_words(results['test'])}  ({run.num_images['test']} pictures)")
    progress.line(f"model: {run.run_dir / MODEL_DIR}")
    return results
