"""A run that fits into `train.minutes`: tried before the first step, settled once, and from then on a run of that length.

The length is all that a checkpoint records of it. Schedule, phases and order are functions of it as of any other length, so a
resumed run goes on with the same ones, however fast its machine is.
"""

from __future__ import annotations

import copy
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import torch

from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.loader import each_batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.distributed.collectives import broadcast_from_main, log_on_main
from accel_flowers.distributed.state import whole_optimizer_state
from accel_flowers.inference.loop import predict_loader
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.training.checkpoint import weights_to_save
from accel_flowers.training.optim import set_lr
from accel_flowers.training.run import Run

_SHARE = 0.97
"""Of the minutes that are planned with: checkpoints, and steps that are slower than those of the trial."""
_TRIAL_SHARE = 0.03
"""Of the minutes that the steps of a trial may take."""
_WARM_UP, _MIN_STEPS, _MAX_TRIAL_SECONDS = 2, 5, 30.0


@dataclass(frozen=True)
class Pace:
    """How long what takes."""

    step_seconds: float
    """Of a step in which all trains, with its wait for images."""
    head_step_seconds: float
    """Of a step in which the head trains alone."""
    epoch_seconds: float
    """What the end of each epoch takes: the evaluation, and the copies that a checkpoint is written from."""
    end_seconds: float
    """What the end of the run takes: validation again, and the test part."""

    def seconds_of(self, num_steps: int, plan: BatchPlan, *, head_epochs: float) -> float:
        """What a run of so many steps takes."""
        of_head = min(num_steps, -int(-head_epochs * plan.num_samples // plan.global_batch_size))
        evaluations = -(-num_steps * plan.global_batch_size // plan.num_samples)
        training = of_head * self.head_step_seconds + (num_steps - of_head) * self.step_seconds
        return training + evaluations * self.epoch_seconds + self.end_seconds


def steps_within(seconds: float, pace: Pace, plan: BatchPlan, *, head_epochs: float = 0.0) -> int:
    """The most steps that fit, no more than the plan has; 0 = not one.

    Args:
        seconds: that are left.
        pace: what takes how long.
        plan: of the whole `train.epochs`.
        head_epochs: of the recipe.
    """
    steps = range(1, plan.num_steps + 1)
    return bisect_right(steps, seconds, key=lambda steps: pace.seconds_of(steps, plan, head_epochs=head_epochs))


def fit_to_minutes(run: Run, *, begun: float) -> None:
    """Settle how long a run is that has not begun; collective. Nothing of the trial is left in it but that.

    Args:
        run: that `train.minutes` bounds.
        begun: when its minutes began, by `time.monotonic()`.

    Raises:
        UserError: not even one step fits, or nothing but the head's epochs.
    """
    minutes, head_epochs, whole = run.config.train.minutes, run.config.train.head_epochs, run.plan
    assert minutes is not None
    pace = _try(run, 60 * minutes)

    def decide() -> tuple[int, float]:
        left = 60 * minutes * _SHARE - (time.monotonic() - begun)
        return steps_within(left, pace, whole, head_epochs=head_epochs), left

    num_steps, left = broadcast_from_main(run.accelerator, decide)
    if not num_steps:
        needed = (pace.seconds_of(1, whole, head_epochs=head_epochs) + 60 * minutes * _SHARE - left) / _SHARE / 60
        raise UserError(
            f"train.minutes {minutes:g} are too few: to begin, one step and the evaluations take {needed:.2g} minutes. Give more, or "
            "a smaller --model.name."
        )
    epochs = whole.ending_at(num_steps).length
    if head_epochs >= epochs:
        raise UserError(
            f"In train.minutes {minutes:g} no more than {epochs:.2g} of an epoch's pictures pass here, and for train.head_epochs {head_epochs:g} the "
            "head trains alone: give more minutes or fewer of these epochs."
        )
    run.state.num_steps = num_steps
    run.set_length(num_steps)
    takes = pace.seconds_of(num_steps, whole, head_epochs=head_epochs) + 60 * minutes * _SHARE - left
    bounds = ", all of them" if num_steps == whole.num_steps else ""
    log_on_main(
        run.accelerator,
        f"train.minutes {minutes:g}: {number_of(num_steps, 'step')} (train.epochs {epochs:.4g}{bounds}) take about {takes / 60:.3g} minutes at "
        f"{pace.step_seconds:.3g} s a step and {pace.epoch_seconds:.3g} s an evaluation",
    )


def _try(run: Run, seconds: float) -> Pace:
    """Take some of the run's own steps and score validation, and put everything back; the times that this process saw."""
    accelerator, network = run.accelerator, run.network
    untouched = copy.deepcopy(run.optimizer.state_dict())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    each = min(_TRIAL_SHARE * seconds, _MAX_TRIAL_SECONDS)
    run.enter_phase(run.plan.num_steps)
    step_seconds = _seconds_of_step(run, each)
    head_step_seconds = step_seconds
    if run.config.train.head_epochs:
        run.enter_phase(0)
        head_step_seconds = _seconds_of_step(run, each / 2)
    started = time.perf_counter()
    predict_loader(network, run.loaders["val"], run.input_of("val"), accelerator, num_images=len(run.parts["val"]))
    val_seconds = time.perf_counter() - started
    started = time.perf_counter()
    weights_to_save(network, accelerator)
    whole_optimizer_state(network, run.optimizer)
    copy_seconds = time.perf_counter() - started
    network.load_state_dict(before)
    run.optimizer.load_state_dict(untouched)
    if accelerator.scaler and scaler:
        accelerator.scaler.load_state_dict(scaler)
    test_images = len(run.parts["test"]) if "test" in run.parts else 0
    end_seconds = val_seconds * (1 + test_images / len(run.parts["val"]))
    return Pace(step_seconds, head_step_seconds, val_seconds * (2 if run.ema else 1) + copy_seconds, end_seconds)


def _seconds_of_step(run: Run, seconds: float) -> float:
    """Of the main process, which waits for the others in each step."""
    set_training_mode(run.network)
    set_lr(run.optimizer, 0.0)  # the same work, and numbers that stay numbers
    run.stream.start_step = 0
    batches, steps, started = each_batch(run.loaders["train"]), 0, time.perf_counter()
    for batch in batches:
        run.train_step(run.as_at_its_end(batch))  # a plan that is too short keeps to its minutes
        if not run.accelerator.sync_gradients:
            continue
        steps += 1
        if steps == _WARM_UP:
            _wait_for(run.accelerator.device)
            started = time.perf_counter()
        passed = time.perf_counter() - started
        if steps - _WARM_UP >= _MIN_STEPS and broadcast_from_main(
            run.accelerator, partial(float.__gt__, passed, seconds)
        ):
            break
    _wait_for(run.accelerator.device)
    return (time.perf_counter() - started) / max(1, steps - _WARM_UP)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
