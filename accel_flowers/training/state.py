"""Where a run stands: what a checkpoint's `state.json` holds; all else follows from it and the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, with_config


def _formerly(name: str, now: str) -> Any:
    """A field of state.json that earlier versions wrote under another name."""
    return Field(validation_alias=AliasChoices(now, name))


@dataclass
class ScoredEpoch:
    """An evaluation whose weights are kept."""

    epoch: int
    """From 1."""
    step: int
    """Optimizer steps done by then."""
    value: float
    """Of the metric that names the best epoch."""
    loss: float
    """Mean cross-entropy of the same images."""


def rank(value: float, loss: float | None, *, lower_is_better: bool) -> tuple[float, float]:
    """By which evaluations are ordered, the best first: the metric that names the best epoch, and of equal values the loss.

    Without a loss, which an earlier version has not written, nothing of the same value comes before it.
    """
    return (value if lower_is_better else -value), (-math.inf if loss is None else loss)


@dataclass
class TrainState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps done."""
    best_value: float | None = None
    """Best value of the metric that names the best epoch."""
    best_loss: float | None = None
    """Validation loss of the best epoch, by which ties are broken; None where an earlier version has not written it."""
    best_epoch: int = 0
    """Epoch (from 1) of the best value."""
    best_step: int = 0
    """Optimizer step of the best value."""
    ranked: list[ScoredEpoch] = field(default_factory=list)
    """The best epochs of the run, best first, as many as may be averaged at its end; none where that is off."""
    start_step: int | None = None
    """Step after which the head's epochs were over, where the weights of then are mixed into those of the end; its checkpoint is kept."""
    epochs_since_improvement: Annotated[int, _formerly("epochs_without_gain", "epochs_since_improvement")] = 0
    """Epochs since the best one; more than evaluations where a step is longer than an epoch."""
    epochs_scored: int = 0
    """Epochs that were evaluated; less than those that lie behind where a signal cut the evaluation off."""
    evaluations: int | None = None
    """Evaluations done: fewer than epochs where a step is longer than one; None where an earlier version began the run."""
    skipped_steps: int = 0
    """Steps in which fp16's gradients overflowed: they changed no weight and move no schedule."""
    rollbacks: int = 0
    """Returns to a checkpoint because of a loss that was no number; each halved the learning rate."""
    micro_batch_size: int | None = None
    """What was left of train.micro_batch_size where memory was short; None = all of it."""
    num_steps: int | None = None
    """Length of the run, where train.minutes has settled it; None = train.epochs."""
    pending_losses: Annotated[list[list[float]], _formerly("unread_losses", "pending_losses")] = field(
        default_factory=list
    )
    """Losses since the last line of metrics.jsonl, of each process."""
    pending_parts: list[dict[str, list[float]]] = field(default_factory=list)
    """The same of what else belongs into that line: of each process, name → values."""

    @property
    def needed_steps(self) -> set[int]:
        """Steps whose checkpoints the end of the run reads, beside the best one."""
        start = set() if self.start_step is None else {self.start_step}
        return start | {epoch.step for epoch in self.ranked}

    @property
    def lr_factor(self) -> float:
        """What rollbacks left of the learning rate."""
        return 0.5**self.rollbacks

    def update_best(
        self, value: float, *, loss: float, epoch: int, lower_is_better: bool, keep_ranked: int = 0
    ) -> bool:
        """Take in an evaluation. Of equal values that with the lower loss is the better: few images have few accuracies.

        Args:
            value: of the metric that names the best epoch.
            loss: mean cross-entropy of the same images; of equal ones the first stays the best.
            epoch: from 1.
            lower_is_better: of the metric.
            keep_ranked: how many epochs `ranked` holds at most.

        Returns:
            Whether it is the best so far.
        """
        is_best = self.best_value is None or rank(value, loss, lower_is_better=lower_is_better) < rank(
            self.best_value, self.best_loss, lower_is_better=lower_is_better
        )
        if is_best:
            self.best_value, self.best_loss, self.best_epoch, self.best_step = value, loss, epoch, self.step
        if keep_ranked:
            found = [*self.ranked, ScoredEpoch(epoch, self.step, value, loss)]
            found.sort(key=lambda each: (rank(each.value, each.loss, lower_is_better=lower_is_better), each.step))
            self.ranked = found[:keep_ranked]
        self.epochs_since_improvement = epoch - self.best_epoch
        if self.evaluations is not None or not self.epochs_scored:
            self.evaluations = (self.evaluations or 0) + 1
        self.epochs_scored = epoch
        return is_best


_READER = TypeAdapter(with_config(ConfigDict(extra="forbid"))(TrainState))


def read_train_state(text: str) -> TrainState:
    """What `json.dumps(asdict(state))` wrote, now or in an earlier version.

    Raises:
        ValueError: it is something else.
    """
    return _READER.validate_json(text, strict=True)
