"""Epochs that show every class equally often: exact counts, turns over the epochs, the same on any number of processes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from accel_flowers.config.schema import Config
from accel_flowers.data.sampler import BalancedOrder, BatchPlan, StreamBatchSampler
from tests.conftest import make_folder
from tests.faults import differences, far_apart
from tests.ranks import finish
from tests.runs import write_recipe

LABELS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 2, 5]), min_size=1, max_size=60)


@pytest.mark.holds("A balanced epoch shows each class equally often")
@settings(max_examples=60)
@given(labels=LABELS, seed=st.integers(0, 2**63 - 1), epochs=st.integers(1, 7))
def test_classes_and_their_images_take_turns(labels: list[int], seed: int, epochs: int) -> None:
    order = BalancedOrder(np.array(labels), seed)
    all_shown: Counter[int] = Counter()
    for epoch in range(epochs):
        samples, shown = order.epoch(epoch)
        assert len(samples) == len(labels)
        of_class = Counter(labels[sample] for sample in samples)
        assert len(of_class) == len(set(labels)) or len(labels) < len(set(labels)) * 2
        assert max(of_class.values()) - min(of_class.get(label, 0) for label in set(labels)) <= 1
        before = dict(all_shown)
        for sample in samples:
            all_shown[int(sample)] += 1
        for sample in set(samples.tolist()):
            counts = sorted(int(count) for each, count in zip(samples, shown, strict=True) if each == sample)
            first = before.get(sample, 0)
            assert counts == list(range(first, first + len(counts))), "each showing has chance of its own"
    totals = Counter(labels[sample] for sample in all_shown.elements())
    assert max(totals.values()) - min(totals[label] for label in set(labels)) <= 1, "over the run, too"
    for label in set(labels):
        often = [all_shown[sample] for sample, own in enumerate(labels) if own == label]
        assert max(often) - min(often) <= 1


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    labels = np.array([0] * 20 + [1] * 3)
    late = BalancedOrder(labels, 4).epoch(9)
    order = BalancedOrder(labels, 4)
    for epoch in range(9):
        order.epoch(epoch)
    assert np.array_equal(order.epoch(9), late)
    assert not np.array_equal(BalancedOrder(labels, 5).epoch(9)[0], late[0])
    assert not np.array_equal(order.epoch(8)[0], late[0])


def test_the_stream_goes_on_where_it_stood() -> None:
    labels = np.array([0] * 11 + [1] * 2)
    plan = BatchPlan(len(labels), epochs=3, global_batch_size=4, micro_batch_size=2)
    whole = list(StreamBatchSampler(plan, 1, balanced=BalancedOrder(labels, 1)))
    tail = list(StreamBatchSampler(plan, 1, start_step=5, balanced=BalancedOrder(labels, 1)))
    assert tail == whole[10:]


def test_classes_are_balanced_once() -> None:
    for loss in ({"class_weights": "balanced"}, {"name": "logit_adjusted"}):
        with pytest.raises(ValidationError, match="both correct for the sizes of classes"):
            Config.model_validate({"data": {"sampling": "balanced"}, "loss": loss})


@pytest.mark.holds("A balanced epoch shows each class equally often")
@pytest.mark.multiprocess
def test_alike_on_any_number_of_processes_and_after_a_resume(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    for file in sorted((photos / "rose").iterdir())[4:]:
        file.unlink()
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data={"sampling": "balanced"},
        model={"dropout": 0.0},
        train={"epochs": 2, "micro_batch_size": 2, "log_every_steps": 1},
        checkpoint={"every_steps": 1, "keep_last": 100},
    )
    words = ["train", recipe, "--data.path", photos, "--tracking.no-report", "--resume", "auto"]
    finish(tmp_path, [*words, "--run-dir", tmp_path / "1"])
    finish(tmp_path, [*words, "--run-dir", tmp_path / "2"], processes=2)
    assert far_apart(tmp_path / "1", tmp_path / "2") == []
    shutil.copytree(tmp_path / "1", tmp_path / "again", symlinks=True)
    steps = sorted((tmp_path / "again/checkpoints").glob("step-*"))
    for step in steps[2:]:
        shutil.rmtree(step)
    finish(tmp_path, [*words, "--run-dir", tmp_path / "again"])
    assert differences(tmp_path / "1", tmp_path / "again") == []
