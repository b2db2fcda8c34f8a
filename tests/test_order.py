"""The order of the samples: one formula, checked against every way to cut and deal it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import (
    BatchPlan,
    SampleKey,
    SequentialBatchSampler,
    StreamBatchSampler,
    epoch_order,
    permutation,
    random_key,
    shrunk_to,
)

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def plans(draw: Callable[..., Any]) -> BatchPlan:
    """A plan of any shape: also more images in a step than there are, and no whole number of steps in an epoch."""
    processes, micro_batch, accumulation = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)))
    return BatchPlan(
        num_samples=draw(st.integers(1, 60)),
        epochs=draw(st.integers(1, 4)),
        global_batch_size=processes * micro_batch * accumulation,
        num_processes=processes,
        micro_batch_size=draw(st.sampled_from([micro_batch, None])),
    )


def keys_of(stream: StreamBatchSampler) -> list[SampleKey]:
    return list(chain.from_iterable(stream))


def deal(batches: StreamBatchSampler | SequentialBatchSampler, num_processes: int) -> list[list[list[SampleKey]]]:
    """What each process gets from Accelerate."""
    return [
        list(BatchSamplerShard(batches, num_processes=num_processes, process_index=rank, even_batches=False))
        for rank in range(num_processes)
    ]


# --- the numbers behind the order


def test_random_key_is_pinned() -> None:
    """The numbers themselves: with others, old runs could neither be resumed nor repeated."""
    assert random_key(0, "order", 0) == 2094333682667709378
    assert random_key(7, "augment", 3, 11) == 4540884825774353282


def test_permutation_is_pinned() -> None:
    assert permutation(random_key(0, "order", 0), 10).tolist() == [9, 8, 3, 5, 1, 6, 4, 0, 7, 2]
    assert permutation(1, 8).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_stream_is_pinned() -> None:
    stream = StreamBatchSampler(BatchPlan(num_samples=5, epochs=2, global_batch_size=4), seed=3)
    assert [key.sample for key in keys_of(stream)] == [0, 2, 1, 3, 4, 1, 2, 3, 4, 0, 1, 3]


@given(st.lists(st.tuples(SEEDS, st.sampled_from(["order", "augment"]), st.integers(0, 99)), unique=True))
def test_random_keys_of_different_parts_differ(parts: list[tuple[int, str, int]]) -> None:
    keys = {random_key(*part) for part in parts}
    assert len(keys) == len(parts)
    assert all(0 <= key < 2**63 for key in keys)


def test_random_key_tells_apart_what_looks_alike() -> None:
    alike = [(1, 23), (12, 3), (1, 2, 3), (123,), ("1", 23), ("1, 23",)]
    assert len({random_key(*parts) for parts in alike}) == len(alike)


@given(SEEDS, st.integers(0, 300))
def test_permutation_holds_each_number_once(key: int, size: int) -> None:
    assert sorted(permutation(key, size)) == list(range(size))


def test_permutation_is_fair() -> None:
    """Each number stands as often in each place, within five standard deviations."""
    rounds, size = 4000, 5
    places = np.array([permutation(key, size) for key in range(rounds)])
    counts = np.array([np.bincount(places[:, place], minlength=size) for place in range(size)])
    assert np.abs(counts - rounds / size).max() < 5 * np.sqrt(rounds / size * (1 - 1 / size))


def test_order_changes_with_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_epoch_order_cannot_be_changed_by_a_caller() -> None:
    """It is remembered, so a change would reach everybody."""
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 10)[0] = 3


# --- the stream


@given(plans(), SEEDS)
def test_stream_follows_the_formula(plan: BatchPlan, seed: int) -> None:
    size, total = plan.micro_batch, plan.num_samples
    for position, key in enumerate(keys_of(StreamBatchSampler(plan, seed))):
        epoch, place = divmod(position, total)
        order = permutation(random_key(seed, "order", epoch), total)
        assert key == SampleKey(order[place], epoch, position // size)


@pytest.mark.holds("Which samples form step k follows from (seed, epoch, position)")
@given(plans(), SEEDS)
def test_each_sample_comes_once_an_epoch(plan: BatchPlan, seed: int) -> None:
    keys = keys_of(StreamBatchSampler(plan, seed))
    for epoch in range(plan.epochs):
        assert sorted(key.sample for key in keys if key.epoch == epoch) == list(range(plan.num_samples))


@given(plans(), SEEDS)
def test_every_micro_batch_is_full_and_counted(plan: BatchPlan, seed: int) -> None:
    stream = StreamBatchSampler(plan, seed)
    batches = list(stream)
    assert len(stream) == len(batches) == plan.num_steps * plan.micro_batches_per_step
    for number, batch in enumerate(batches):
        assert len(batch) == plan.micro_batch == stream.batch_size
        assert {key.micro_batch for key in batch} == {number}
        assert stream.micro_batch_at(number) == batch


@pytest.mark.holds("Which samples form step k follows from (seed, epoch, position)")
@given(plans(), SEEDS, st.data())
def test_stream_from_a_step_is_the_tail_of_the_whole(plan: BatchPlan, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    whole, tail = list(StreamBatchSampler(plan, seed)), StreamBatchSampler(plan, seed, start_step=start)
    assert list(tail) == whole[start * plan.micro_batches_per_step :]
    assert len(tail) == len(list(tail))


@pytest.mark.holds("Which samples form step k follows from (seed, epoch, position)")
@given(st.integers(1, 60), st.integers(1, 3), SEEDS)
def test_steps_hold_the_same_samples_on_any_number_of_processes(num_samples: int, epochs: int, seed: int) -> None:
    size = 24
    seen = set()
    for processes, micro_batch in [(1, 24), (1, 3), (2, 12), (2, 4), (3, 8), (4, 6), (8, 1), (24, 1)]:
        plan = BatchPlan(num_samples, epochs, size, processes, micro_batch)
        batches = [[key[:2] for key in batch] for batch in StreamBatchSampler(plan, seed)]
        steps = [
            tuple(chain.from_iterable(batches[first : first + plan.micro_batches_per_step]))
            for first in range(0, len(batches), plan.micro_batches_per_step)
        ]
        assert len(steps) == plan.num_steps
        seen.add(tuple(steps))
    assert len(seen) == 1


@pytest.mark.holds("Which samples form step k follows from (seed, epoch, position)")
@given(plans(), SEEDS, st.data())
def test_accelerate_deals_each_process_its_micro_batches(plan: BatchPlan, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    stream = StreamBatchSampler(plan, seed, start_step=start)
    dealt = deal(stream, plan.num_processes)
    for rank, batches in enumerate(dealt):
        numbers = [batch[0].micro_batch for batch in batches]
        assert numbers == [
            number
            for number in range(start * plan.micro_batches_per_step, plan.num_steps * plan.micro_batches_per_step)
            if number % plan.num_processes == rank
        ]
        assert batches == [stream.micro_batch_at(number) for number in numbers]
        assert len(batches) == (plan.num_steps - start) * plan.accumulation


# --- the arithmetic of steps


@given(plans())
def test_the_last_step_is_the_one_that_completes_the_last_epoch(plan: BatchPlan) -> None:
    assert plan.epochs_completed_at(plan.num_steps) == plan.epochs
    assert plan.epochs_completed_at(plan.num_steps - 1) < plan.epochs
    assert plan.epoch_at(plan.num_steps) >= plan.epochs > plan.epoch_at(plan.num_steps - 1)


@given(plans())
def test_epochs_completed_never_falls_and_starts_at_none(plan: BatchPlan) -> None:
    completed = [plan.epochs_completed_at(step) for step in range(plan.num_steps + 1)]
    assert completed[0] == 0
    assert completed == sorted(completed)
    assert all(done <= plan.epoch_at(step) for step, done in enumerate(completed))


@given(plans())
def test_step_is_made_of_whole_micro_batches(plan: BatchPlan) -> None:
    assert plan.accumulation * plan.micro_batch * plan.num_processes == plan.global_batch_size
    assert plan.accumulation * plan.num_processes == plan.micro_batches_per_step
    if plan.micro_batch_size is None:
        assert plan.accumulation == 1


@given(size=st.integers(1, 64), processes=st.integers(1, 9), micro_batch=st.none() | st.integers(1, 70))
def test_a_step_that_cannot_be_shared_is_refused_with_advice_that_works(
    size: int, processes: int, micro_batch: int | None
) -> None:
    fits = size % (processes * (micro_batch or 1)) == 0
    try:
        BatchPlan(100, 1, size, processes, micro_batch)
    except UserError as error:
        assert not fits
        message = str(error)
    else:
        assert fits
        return
    assert f"train.global_batch_size {size} cannot be shared by {processes} process" in message
    assert micro_batch is None or f"train.micro_batch_size {micro_batch} " in message
    allowed = re.search(r"train\.micro_batch_size can be ([\d, ]+)\.$", message)
    if allowed:
        advised = [int(number) for number in allowed[1].split(", ")]
        assert advised == [m for m in range(1, size + 1) if size % (m * processes) == 0]
        for number in advised:
            BatchPlan(100, 1, size, processes, number)
    else:
        other = re.search(r"take a train\.global_batch_size that \d+ divides, for example (\d+)\.$", message)
        assert other
        BatchPlan(100, 1, int(other[1]), processes, micro_batch)


# --- evaluation


@given(st.integers(0, 100), st.integers(1, 40))
def test_every_once_covers_each_sample_in_order(num_samples: int, size: int) -> None:
    batches = list(SequentialBatchSampler(num_samples, size))
    assert [key.sample for key in chain.from_iterable(batches)] == list(range(num_samples))
    assert len(batches) == len(SequentialBatchSampler(num_samples, size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert [key.micro_batch for key in chain.from_iterable(batches)] == [k // size for k in range(num_samples)]


@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 9))
def test_every_once_dealt_out_keeps_its_batches(num_samples: int, size: int, num_processes: int) -> None:
    """Each batch goes whole to one process: none is lost, doubled, padded or cut."""
    dealt = deal(SequentialBatchSampler(num_samples, size), num_processes)
    handed_out = Counter(tuple(batch) for batch in chain.from_iterable(dealt))
    assert handed_out == Counter(tuple(batch) for batch in SequentialBatchSampler(num_samples, size))


@pytest.mark.parametrize(
    ("size", "micro", "processes", "num_samples", "expected"),
    [
        (32, None, 1, 32, (32, None)),
        (32, None, 1, 19, (16, None)),
        (32, 4, 2, 19, (16, 4)),
        (32, 4, 2, 5, (4, None)),
        (25, None, 1, 10, (10, None)),
        (12, None, 3, 10, (6, None)),
        (32, 4, 1, 1, (1, None)),
        (32, None, 4, 3, (32, None)),
    ],
)
def test_a_batch_is_no_larger_than_the_images(
    size: int, micro: int | None, processes: int, num_samples: int, expected: tuple[int, int | None]
) -> None:
    plan = shrunk_to(BatchPlan(1, 1, size, processes, micro), num_samples)
    assert (plan.global_batch_size, plan.micro_batch_size) == expected
    assert plan.num_processes == processes
