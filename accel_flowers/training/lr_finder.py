"""Which learning rate fits a recipe: its own step, at a rate that rises from step to step (Smith 2017, arXiv 1506.01186).

The run is the recipe's own but for the rate: images, order, augmentation, micro-batches, precision, processes. Nothing of what is
learned is kept, and no run directory is written; the same call finds the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accel_flowers.config.schema import Config
from accel_flowers.config.several import settle_labels
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.console import Progress
from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import check_can_train
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.plural import number_of
from accel_flowers.data.loader import each_batch
from accel_flowers.data.workers import workers_as_user_error
from accel_flowers.distributed.session import process_session
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.training.build import build_run
from accel_flowers.training.debugging import stricter
from accel_flowers.training.meter import Meter
from accel_flowers.training.optim import set_lr
from accel_flowers.training.precision import choose_precision
from accel_flowers.training.run import Run
from accel_flowers.training.step import seed_dropout

_MEMORY = 0.9
"""Share of the past in the smoothed loss; fewer than ten steps say little."""
_BLOWN_UP = 4.0
"""Times the lowest smoothed loss at which nothing more is to be learned from higher rates; Smith's and fast.ai's."""
_SAFE = 10.0
"""The rate of the lowest loss is too high to stay at; a tenth of it is the usual advice (fast.ai's "minimum / 10")."""
_FALLS = 0.05
"""Share of the first smoothed loss by which it must fall to be called learning."""


@dataclass(frozen=True)
class LrFound:
    """What a search found."""

    on: str
    lrs: tuple[float, ...]
    """Of each step; `optim.lr`, which layers may have factors of."""
    losses: tuple[float, ...]
    """Of each step: the mean over its images and all processes."""
    smoothed: tuple[float, ...]
    """Weighted mean of each loss and those before, recent ones the more."""
    lr: float | None
    """What is proposed; None where the losses say nothing."""
    why: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def in_words(self) -> str:
        """A few rows of the course, and the proposal."""
        shown = sorted({round(place * (len(self.lrs) - 1) / 11) for place in range(12)})
        lines = [self.on, f"{'optim.lr':>10}  {'loss':>8}  smoothed"]
        lines += [f"{self.lrs[step]:10.2g}  {self.losses[step]:8.3f}  {self.smoothed[step]:8.3f}" for step in shown]
        lines.append(f"Proposed: --optim.lr {self.lr:.2g}, {self.why}." if self.lr else f"No proposal: {self.why}.")
        return "\n".join(lines)


def find_lr(
    config: Config, *, low: float = 1e-6, high: float = 1.0, steps: int = 100, owns_process: bool = False
) -> LrFound:
    """Train with a rate that rises evenly on a scale of powers, and see where the loss falls and where it blows up; collective.

    Args:
        config: resolved; `data.path` is set. Phases of the head alone are left out: the rate is that of the whole.
        low, high: first and last rate.
        steps: optimizer steps; fewer where the loss blows up before.
        owns_process: as of `train`.

    Raises:
        UserError: a mistake in the configuration, the folder or the weights, or numbers that are not allowed.
    """
    check_can_train()
    if not 0 < low < high <= 1000 or steps < _FEWEST:
        raise UserError(
            f"The rate rises from --low {low:g} to --high {high:g} in {number_of(steps, 'step')}: allowed are 0 < low < high <= 1000 "
            f"and --steps {_FEWEST} or more."
        )
    with process_session({}, owns_process=owns_process) as together, oom_as_user_error(), workers_as_user_error():
        config, _ = settle_preprocessing(settle_labels(_searchable(config, steps))[0])
        precision = choose_precision(config, together.processes, bare=owns_process)
        accelerator = together.build_accelerator(mixed_precision=precision)
        with stricter(config.debug), fast_arithmetic(accelerator.device, deterministic=config.debug.deterministic):
            run = build_run(config, accelerator)
            lrs = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
            losses = list(_until_it_blows_up(_losses(run, lrs)))
            on = (
                f"{config.model.name}, {config.optim.name}, {run.plan.num_processes} x {accelerator.device.type}, precision "
                f"{accelerator.mixed_precision}, {number_of(run.plan.global_batch_size, 'picture')} a step"
            )
    lr, why = propose(lrs, losses)
    return LrFound(on, tuple(lrs[: len(losses)]), tuple(losses), tuple(smooth(losses)), lr, why)


_FEWEST = 20


def _searchable(config: Config, steps: int) -> Config:
    """As long as the search needs it, with everything training from the start."""
    # An epoch has one step at least, so that as many epochs as steps always last.
    train = {"epochs": steps, "minutes": None, "min_steps": None, "head_epochs": 0.0, "unfreeze_every_epochs": None}
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _losses(run: Run, lrs: Sequence[float]) -> Iterator[float]:
    """The loss of each step at its rate, which it is trained at; collective."""
    meter, step = Meter(run.accelerator, run.plan), 0
    set_training_mode(run.network)
    with Progress(len(lrs), 0, enabled=run.accelerator.is_main_process) as progress:
        progress.line(f"{number_of(len(lrs), 'step')} at {lrs[0]:g} to {lrs[-1]:g}")
        for batch in each_batch(run.loaders["train"]):
            set_lr(run.optimizer, lrs[step])
            seed_dropout(run.config.train.seed, batch["micro_batch"], run.accelerator.device)
            meter.add(batch["micro_batch"], run.train_step(batch))
            if not run.accelerator.sync_gradients:
                continue
            window = meter.read()
            yield window.loss
            step += 1
            if step == len(lrs):
                return
            progress.step(step, loss=window.loss, lr=lrs[step - 1], images_per_second=window.images_per_second)


def _until_it_blows_up(losses: Iterator[float]) -> Iterator[float]:
    seen: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            return
        seen.append(loss)
        yield loss
        smoothed = smooth(seen)
        if smoothed[-1] > _BLOWN_UP * min(smoothed):
            return


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponentially weighted means, corrected for their beginning (Adam's correction)."""
    mean, smoothed = 0.0, []
    for number, loss in enumerate(losses, start=1):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        smoothed.append(mean / (1 - _MEMORY**number))
    return smoothed


def propose(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float | None, str]:
    """The rate to take, and why.

    Args:
        lrs: of the steps, rising.
        losses: of as many steps or fewer, from the first.

    Returns:
        A rate, or None where the losses say nothing; and the reason.
    """
    if len(losses) < _FEWEST // 2:
        return None, "the loss is no number, or blows up, from the lowest rates on: give a lower --low"
    smoothed = smooth(losses)
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    # What comes before has learned nothing yet: the means of the first steps are those of few images.
    first = max(smoothed[: max(lowest, 1)])
    if smoothed[lowest] > (1 - _FALLS) * first:
        return None, "the loss does not fall at any rate that was tried: give a higher --high, or more --steps"
    if lowest == len(losses) - 1 and len(losses) == len(lrs):
        return None, "the loss still falls at the highest rate that was tried: give a higher --high"
    return lrs[lowest] / _SAFE, f"a tenth of {lrs[lowest]:.2g}, where the loss is lowest before it rises"
