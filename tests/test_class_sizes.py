"""Rare and frequent classes: thirds of the classes by training images, and the long tail that inspect tells."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.inspection.findings import MANY_CLASSES
from accel_flowers.metrics.predictions import PartPredictions, SavedPredictions
from accel_flowers.report.class_sizes import find_size_groups
from accel_flowers.report.findings import PartFindings, find_part


def scored(counts: list[int], right: list[int]) -> PartFindings:
    """What would be found of classes "0", "1", ... with so many held-out images, of which so many were said rightly."""
    labels = np.repeat(np.arange(len(counts)), counts)
    wrong = np.concatenate([np.arange(count) >= hits for count, hits in zip(counts, right, strict=True)])
    said = np.where(wrong, (labels + 1) % len(counts), labels)
    probabilities = np.full((len(labels), len(counts)), 0.1 / len(counts), dtype=np.float32)
    probabilities[np.arange(len(labels)), said] += 0.9
    rows = PartPredictions(labels, probabilities, np.ones(len(labels)), tuple(map(str, labels)))
    return find_part(SavedPredictions(tuple(map(str, range(len(counts)))), {"test": rows}), "test", temperature=None)


def test_rare_classes_are_told_apart() -> None:
    trained = {"0": 100, "1": 40, "2": 90, "3": 4, "4": 40, "5": 5}
    groups = find_size_groups(trained, scored([10, 4, 8, 2, 4, 0], [9, 3, 8, 1, 2, 0]))
    assert [(each.name, set(each.classes), each.fewest, each.most) for each in groups] == [
        ("rarest", {"3", "5"}, 4, 5), ("middle", {"1", "4"}, 40, 40), ("most frequent", {"0", "2"}, 90, 100),
    ]  # fmt: skip
    assert [(each.hits, each.num_images) for each in groups] == [(1, 2), (5, 8), (17, 18)]
    assert [each.accuracy.value for each in groups if each.accuracy] == pytest.approx([1 / 2, 5 / 8, 17 / 18])
    assert [each.mean_recall for each in groups] == pytest.approx([0.5, 0.625, 0.95])


@given(data=st.data(), num_classes=st.integers(2, 20))
def test_each_class_is_in_one_group(data: st.DataObject, num_classes: int) -> None:
    """And all images are counted; equally large classes are never parted, and few or even ones make no groups."""
    several = st.lists(st.integers(0, 30), min_size=num_classes, max_size=num_classes)
    sizes, counts = data.draw(several), data.draw(several.filter(any))
    found = scored(counts, [count // 2 for count in counts])
    groups = find_size_groups({str(number): size for number, size in enumerate(sizes)}, found)
    assert bool(groups) == (num_classes >= MANY_CLASSES and max(sizes) > 3 * min(sizes))
    if groups:
        assert sorted(name for each in groups for name in each.classes) == sorted(map(str, range(num_classes)))
        assert sum(each.num_images for each in groups) == sum(counts)
        assert sum(each.hits for each in groups) == found.right
        assert all(smaller.most < larger.fewest for smaller, larger in pairwise(groups))
