"""Which sample stands where, as pure functions of (seed, epoch, position): the one formula behind order, resume and scale.

Training data is one endless stream. Position p holds sample `permutation(seed, p div N)[p mod N]`; optimizer step k
takes the positions k·G … (k+1)·G - 1 (G the global batch), so every step is full and every sample comes once an epoch (where
epochs are balanced, position p holds what `BalancedOrder` says, and every class comes equally often).
A micro-batch is M consecutive positions; micro-batch j of the run goes to process j mod W. Nothing here depends on W:
1 and 8 processes see the same samples in the same step, and a run resumed at step k begins its stream at k·G.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError


def random_key(*parts: int | str) -> int:
    """A seed for whatever `parts` name, for example `random_key(seed, "augment", epoch, sample)`.

    Returns:
        63 bits that any generator takes as its seed; equal parts give equal keys on every machine and version.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(key: int, size: int) -> npt.NDArray[np.int64]:
    """A random order of 0 … size - 1 that follows from `key` alone.

    Philox's raw numbers are part of its definition, so the order stays the same with every NumPy version; the
    methods of `numpy.random.Generator` promise that for one version only.
    """
    draws = np.random.Philox(key=key).random_raw(size)
    return np.argsort(draws, kind="stable").astype(np.int64)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The order in which one epoch shows its samples, shape [num_samples]."""
    order = permutation(random_key(seed, "order", epoch), num_samples)
    order.flags.writeable = False
    return order


class BalancedOrder:
    """The order of epochs that show every class equally often, whatever its number of images.

    Each class's images go round by themselves: all of them in a random order, then all in another, on over the ends of epochs. So
    of a class each image is shown as often as any other, once more at most, and every epoch is a function of its number.

    Args:
        labels: of the training images, int64 [N]; an epoch shows N images, N / C of each class, and of the rest of that division one
            more of some classes, which change from epoch to epoch.
        seed: of the run.
    """

    def __init__(self, labels: npt.NDArray[np.int64], seed: int) -> None:
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._num_samples, self._seed = len(labels), seed
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which samples the epoch shows, in its order, and how often each was shown before: two of int64 [N]."""
        samples, shown = [], []
        for place, members in enumerate(self._members):
            first, end = self._shown_before(place, epoch), self._shown_before(place, epoch + 1)
            rounds, within = np.divmod(np.arange(first, end), len(members))
            for number in np.unique(rounds):
                order = permutation(random_key(self._seed, "class", int(members[0]), int(number)), len(members))
                samples.append(members[order[within[rounds == number]]])
                shown.append(np.full((rounds == number).sum(), number))
        order = permutation(random_key(self._seed, "order", epoch), self._num_samples)
        return np.concatenate(samples)[order], np.concatenate(shown)[order]

    def _shown_before(self, place: int, epoch: int) -> int:
        """Images of a class that the epochs before this one show."""
        share, rest = divmod(self._num_samples, len(self._members))
        return epoch * share + -((place - epoch * rest) // len(self._members))


class SampleKey(NamedTuple):
    """What a loader needs to make one sample: which one, and what its randomness follows from."""

    sample: int
    """Index into the part of the data set that the loader reads."""
    epoch: int
    """Number of times the sample was shown before."""
    micro_batch: int
    """Number of the micro-batch in the whole run, counted over all processes."""


@dataclass(frozen=True)
class BatchPlan:
    """All step arithmetic of a run.

    Args:
        num_samples: training images (N).
        epochs: passes over them.
        global_batch_size: images in one optimizer step, over all processes (G).
        num_processes: W.
        micro_batch_size: images in one forward pass of one process (M); None = G / W.
        last_step: where the run ends inside an epoch; None = with the last one. See `ending_at`.

    Raises:
        UserError: when G is no multiple of M·W.
    """

    num_samples: int
    epochs: int
    global_batch_size: int
    num_processes: int = 1
    micro_batch_size: int | None = None
    last_step: int | None = None

    def __post_init__(self) -> None:
        size, processes = self.global_batch_size, self.num_processes
        if size % (self.micro_batch * processes):
            given = f"train.micro_batch_size {self.micro_batch_size}" if self.micro_batch_size else "1 or more pictures"
            fitting = [m for m in range(1, size + 1) if size % (m * processes) == 0]
            unit = processes * (self.micro_batch_size or 1)
            advice = (
                f"train.micro_batch_size can be {', '.join(map(str, fitting))}"
                if fitting
                else f"take a train.global_batch_size that {unit} divides, for example {-(-size // unit) * unit}"
            )
            raise UserError(
                f"train.global_batch_size {size} cannot be shared by {processes} process{'es' if processes > 1 else ''} "
                f"with {given} in a forward pass: {advice}."
            )

    @property
    def micro_batch(self) -> int:
        """Images in one forward pass of one process (M)."""
        return self.micro_batch_size or max(1, self.global_batch_size // self.num_processes)

    @property
    def accumulation(self) -> int:
        """Forward passes of one process in one optimizer step (A)."""
        return self.global_batch_size // (self.micro_batch * self.num_processes)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one optimizer step, over all processes (A·W)."""
        return self.global_batch_size // self.micro_batch

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run: the last is the one that completes the last epoch."""
        return self.last_step or -(-self.epochs * self.num_samples // self.global_batch_size)

    @property
    def length(self) -> float:
        """Epochs of the whole run; a fraction where it ends inside one."""
        return min(self.epochs, self.epoch_at(self.last_step)) if self.last_step else float(self.epochs)

    def ending_at(self, step: int) -> BatchPlan:
        """The plan of a run that ends after so many steps, and whose last epoch is then completed."""
        epochs = -(-step * self.global_batch_size // self.num_samples)
        return replace(self, epochs=min(self.epochs, epochs), last_step=step)

    def epoch_at(self, step: int) -> float:
        """Epochs that lie behind once `step` optimizer steps are done; a fraction inside an epoch."""
        return step * self.global_batch_size / self.num_samples

    def epochs_completed_at(self, step: int) -> int:
        """Whole epochs that lie behind once `step` optimizer steps are done; never more than were asked for.

        (The last step may show images once more than that, to be full.)
        """
        if self.last_step is not None and step >= self.last_step:
            return self.epochs
        return min(step * self.global_batch_size // self.num_samples, self.epochs)


def shrunk_to(plan: BatchPlan, num_samples: int) -> BatchPlan:
    """The plan with a global batch of no more than there are training images: else whole epochs would pass within a step.

    It is halved, so that it stays what most numbers of processes can share, and with it the micro-batch where that must
    be. Where no smaller one can be shared the plan stays what it is.
    """
    size, processes = plan.global_batch_size, plan.num_processes
    if size <= num_samples:
        return plan
    halves = (size >> times for times in range(1, size.bit_length()) if size % (1 << times) == 0)
    for fits in (*halves, num_samples // processes * processes):
        if processes <= fits <= num_samples and fits % processes == 0:
            shared = plan.micro_batch_size and fits % (plan.micro_batch_size * processes) == 0
            micro_batch = plan.micro_batch_size if shared else None
            return BatchPlan(plan.num_samples, plan.epochs, fits, processes, micro_batch)
    return plan


@dataclass
class StreamBatchSampler:
    """Batch sampler over the micro-batches of all processes in global order, from one step to the end of the run.

    `start_step` may be set anew: the next pass begins there. Accelerate hands micro-batch j to process j mod W, which is just what the plan says; so each yields a list of
    `SampleKey` and knows nothing about processes.
    """

    plan: BatchPlan
    seed: int
    start_step: int = 0
    drop_last: bool = False
    balanced: BalancedOrder | None = None
    """Of epochs that show every class equally often; None = each image once an epoch."""

    @property
    def batch_size(self) -> int:
        """Accelerate asks a batch sampler for its batch size."""
        return self.plan.micro_batch

    def __len__(self) -> int:
        return (self.plan.num_steps - self.start_step) * self.plan.micro_batches_per_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first = self.start_step * self.plan.micro_batches_per_step
        for micro_batch in range(first, first + len(self)):
            yield self.micro_batch_at(micro_batch)

    def micro_batch_at(self, micro_batch: int) -> list[SampleKey]:
        """The keys of one micro-batch of the run."""
        size, total = self.plan.micro_batch, self.plan.num_samples
        keys = []
        for position in range(micro_batch * size, (micro_batch + 1) * size):
            epoch, place = divmod(position, total)
            if self.balanced:
                samples, shown = self.balanced.epoch(epoch)
                keys.append(SampleKey(int(samples[place]), int(shown[place]), micro_batch))
            else:
                keys.append(SampleKey(int(epoch_order(self.seed, epoch, total)[place]), epoch, micro_batch))
        return keys


@dataclass(frozen=True)
class SequentialBatchSampler:
    """Batch sampler for evaluation: samples 0 … N - 1 in order, the last batch short.

    The batches are the same for any number of processes, so each image meets the same neighbours and its numbers
    do not change in the last digit.
    """

    num_samples: int
    batch_size: int
    drop_last: bool = False

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for number, first in enumerate(range(0, self.num_samples, self.batch_size)):
            last = min(first + self.batch_size, self.num_samples)
            yield [SampleKey(sample, 0, number) for sample in range(first, last)]

    def samples_of(self, process: int, num_processes: int) -> list[int]:
        """The samples whose batches Accelerate hands to one process: batch j goes to process j mod W, and none to two."""
        return [key.sample for keys in islice(self, process, None, num_processes) for key in keys]
