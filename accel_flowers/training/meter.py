"""The losses of a run between two readings: their mean for the curves, and whether they are numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.training.tasks import Output


@dataclass(frozen=True)
class LogWindow:
    """What a line of the log says."""

    loss: float
    """Mean over all processes since the last reading."""
    parts: dict[str, float]
    """The same of what else the task gave: name → mean."""
    images_per_second: float
    """Of all processes together."""
    step_seconds: float
    """Of an optimizer step."""
    data_wait: float
    """Share of the time, 0..1, in which this process waited for its images."""


class Meter:
    """Takes in every micro-batch's loss without waiting for the device; all readings are collective and wait.

    Args:
        accelerator: the processes whose losses are read together.
        plan: the run's arithmetic.
        pending: what `pending` gave before an interruption.
        pending_parts: what `pending_parts` gave then.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        plan: BatchPlan,
        pending: Sequence[Sequence[float]] = (),
        pending_parts: Sequence[Mapping[str, Sequence[float]]] = (),
    ) -> None:
        self._accelerator, self._plan = accelerator, plan
        self._losses: list[Tensor] = []
        self._micro_batches: list[int] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._begun, self._waited = time.perf_counter(), 0.0
        if pending:
            self._losses = self._own_share(pending)
        for name in pending_parts[0] if pending_parts else ():
            self._parts[name] = self._own_share([each[name] for each in pending_parts])

    def _own_share(self, pending: Sequence[Sequence[float]]) -> list[Tensor]:
        """What of the values of each process before an interruption is this one's."""
        own: Sequence[float] = pending[self._accelerator.process_index % len(pending)]
        if len(pending) != self._accelerator.num_processes:  # each takes an equal share
            all_of_them = [value for values in pending for value in values]
            own = [sum(all_of_them) / len(all_of_them)] * (len(all_of_them) // self._accelerator.num_processes)
        return [torch.tensor(value, device=self._accelerator.device) for value in own]

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that they make the training wait is noted."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, micro_batch: int, output: Output) -> None:
        """Take in the loss, and the task's parts of it, of one micro-batch of this process."""
        self._losses.append(output.loss.detach().float())
        self._micro_batches.append(micro_batch)
        for name, part in output.parts.items():
            self._parts.setdefault(name, []).append(part.detach().float())

    def restart(self) -> None:
        """Forget all, so that the time of an evaluation does not count."""
        self._losses, self._micro_batches, self._parts = [], [], {}
        self._begun, self._waited = time.perf_counter(), 0.0

    def first_bad(self) -> tuple[int, float] | None:
        """The first micro-batch, over all processes, whose loss is no number, and that loss."""
        values = torch.stack(self._losses).tolist() if self._losses else []
        fresh = zip(self._micro_batches, values[len(values) - len(self._micro_batches) :], strict=True)
        own = next(((number, loss) for number, loss in fresh if not math.isfinite(loss)), None)
        if self._accelerator.num_processes == 1:
            return own
        found: list[tuple[int, float] | None] = gather_object([own])
        return min((bad for bad in found if bad is not None), default=None)

    def pending(self) -> list[list[float]]:
        """The losses of each process since the last reading, for a checkpoint."""
        own: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        everywhere: list[list[float]] = gather_object([own]) if self._accelerator.num_processes > 1 else [own]
        return everywhere if any(everywhere) else []

    def pending_parts(self) -> list[dict[str, list[float]]]:
        """The same of what else the task gave: of each process, name → values."""
        own = {name: torch.stack(values).tolist() for name, values in sorted(self._parts.items())}
        everywhere: list[dict[str, list[float]]] = (
            gather_object([own]) if self._accelerator.num_processes > 1 else [own]
        )
        return everywhere if any(everywhere) else []

    def read(self) -> LogWindow:
        """All of it; then it begins anew."""
        mean = self._mean(self._losses)
        seconds = max(time.perf_counter() - self._begun, math.ulp(1.0))
        micro_batches = len(self._micro_batches)
        window = LogWindow(
            loss=mean,
            parts={name: self._mean(self._parts[name]) for name in sorted(self._parts)},
            images_per_second=micro_batches * self._plan.micro_batch * self._plan.num_processes / seconds,
            step_seconds=seconds * self._plan.accumulation / max(micro_batches, 1),
            data_wait=self._waited / seconds,
        )
        self.restart()
        return window

    def _mean(self, values: Sequence[Tensor]) -> float:
        return float(self._accelerator.reduce(torch.stack(list(values)).mean(), reduction="mean"))
