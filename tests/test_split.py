"""The split: stratified, seeded, groups whole; its percentages and its file."""

from __future__ import annotations

import json
import pickle
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.split import (
    PARTS,
    Split,
    TooFewGroups,
    group_by_content,
    load_split,
    make_split,
    parse_fractions,
    save_split,
)

SEEDS = st.integers(0, 2**63 - 1)
FRACTIONS = st.sampled_from(["80/20", "50/50", "99/1", "1/99", "80/10/10", "34/33/33", "10/45/45", "98/1/1"])


class Samples(NamedTuple):
    """What is split: the class and the group of each sample."""

    labels: list[int]
    groups: list[int]


@st.composite
def samples(draw: Callable[..., Any], largest_group: int = 4) -> Samples:
    """Classes of three and more groups, in mixed order; no group spans classes."""
    sizes_of_class = draw(
        st.lists(st.lists(st.integers(1, largest_group), min_size=3, max_size=25), min_size=1, max_size=4)
    )
    group_sizes = [(label, size) for label, sizes in enumerate(sizes_of_class) for size in sizes]
    rows = [(label, group) for group, (label, size) in enumerate(group_sizes) for _ in range(size)]
    rows = draw(st.permutations(rows))
    return Samples([label for label, _ in rows], [group for _, group in rows])


def split_once(of: Samples, text: str, seed: int) -> list[str]:
    return make_split(of.labels, of.groups, parse_fractions(text), seed=seed)


# --- make_split


@given(samples(), FRACTIONS, SEEDS)
def test_every_sample_has_one_of_the_parts(of: Samples, text: str, seed: int) -> None:
    parts = split_once(of, text, seed)
    assert len(parts) == len(of.labels)
    assert set(parts) == set(PARTS[: text.count("/") + 1])


@given(samples(), FRACTIONS, SEEDS)
def test_groups_are_never_torn(of: Samples, text: str, seed: int) -> None:
    parts_of_group = defaultdict(set)
    for group, part in zip(of.groups, split_once(of, text, seed), strict=True):
        parts_of_group[group].add(part)
    assert all(len(parts) == 1 for parts in parts_of_group.values())


@given(samples(), FRACTIONS, SEEDS)
def test_every_class_is_in_every_part(of: Samples, text: str, seed: int) -> None:
    there = set(zip(of.labels, split_once(of, text, seed), strict=True))
    assert there == {(label, part) for label in of.labels for part in parse_fractions(text)}


@given(samples(), st.sampled_from(["80/20", "80/10/10", "60/20/20", "34/33/33"]), SEEDS)
def test_sizes_are_within_a_group_of_the_share(of: Samples, text: str, seed: int) -> None:
    """Of each class: what is beside train misses its share by less than the largest group, unless groups run out."""
    largest = max(Counter(of.groups).values())
    counts = Counter(zip(of.labels, split_once(of, text, seed), strict=True))
    for label in set(of.labels):
        total = of.labels.count(label)
        groups_in_train = {
            group
            for group, its_label, part in zip(of.groups, of.labels, split_once(of, text, seed), strict=True)
            if (its_label, part) == (label, "train")
        }
        for part, share in parse_fractions(text).items():
            if part != "train":
                wanted = max(round(share * total), 1)
                assert counts[label, part] < wanted + largest
                assert counts[label, part] >= wanted or len(groups_in_train) == 1


@given(st.integers(10, 300), SEEDS)
def test_without_duplicates_the_sizes_are_exact(number: int, seed: int) -> None:
    counts = Counter(split_once(Samples([0] * number, list(range(number))), "80/10/10", seed))
    assert counts["val"] == counts["test"] == round(0.1 * number)
    assert counts["train"] == number - 2 * round(0.1 * number)


def test_split_depends_on_the_seed() -> None:
    of = Samples([0] * 30 + [1] * 30, list(range(60)))
    assert len({tuple(split_once(of, "80/10/10", seed)) for seed in range(20)}) == 20


def test_classes_are_drawn_apart_from_each_other() -> None:
    """The choice in one class is not the choice in the next, and does not change when another class grows."""
    parts = split_once(Samples([0] * 30 + [1] * 30, list(range(60))), "80/20", 0)
    assert parts[:30] != parts[30:]
    assert split_once(Samples([0] * 30 + [1] * 45, list(range(75))), "80/20", 0)[:30] == parts[:30]


def test_split_is_pinned() -> None:
    """With another formula a run could not be repeated from its recipe."""
    parts = split_once(Samples([0] * 14 + [1] * 6, [0, 0, 0, *range(3, 20)]), "60/20/20", 0)
    assert [sample for sample, part in enumerate(parts) if part == "val"] == [5, 9, 11, 15]
    assert [sample for sample, part in enumerate(parts) if part == "test"] == [4, 8, 10, 18]


@given(samples(), FRACTIONS, SEEDS)
def test_split_neither_uses_nor_disturbs_global_randomness(of: Samples, text: str, seed: int) -> None:
    before = split_once(of, text, seed)
    for number in (1, 2):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert split_once(of, text, seed) == before
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@given(samples(), FRACTIONS, SEEDS, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_numbers_of_the_groups(
    of: Samples, text: str, seed: int, chance: random.Random
) -> None:
    numbers = sorted(set(of.groups))
    renamed = dict(zip(numbers, chance.sample(range(10_000), len(numbers)), strict=True))
    other = Samples(of.labels, [renamed[group] for group in of.groups])
    assert split_once(other, text, seed) == split_once(of, text, seed)


@given(st.lists(st.integers(1, 4), min_size=3, max_size=25), FRACTIONS, SEEDS, st.data())
def test_split_does_not_depend_on_where_further_copies_stand(
    sizes: list[int], text: str, seed: int, data: st.DataObject
) -> None:
    """The first of each group in order, the copies anywhere behind: the same groups go to the same parts."""
    copies = [group for group, size in enumerate(sizes) for _ in range(size - 1)]
    mixed = data.draw(st.permutations(copies))
    firsts = list(range(len(sizes)))
    one, other = Samples([0] * sum(sizes), firsts + copies), Samples([0] * sum(sizes), firsts + mixed)
    assert split_once(one, text, seed)[: len(sizes)] == split_once(other, text, seed)[: len(sizes)]


def test_a_group_across_classes_stays_whole_and_counts_for_the_lowest() -> None:
    """Classes 0 and 1 share group 0; class 1 has three groups of its own."""
    labels, groups = [1, 0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 3, 4, 5]
    for seed in range(20):
        parts = split_once(Samples(labels, groups), "34/33/33", seed)
        assert parts[0] == parts[1]
        assert set(parts[1:4]) == set(parts[4:]) == set(PARTS)


@pytest.mark.parametrize(
    ("labels", "groups", "lacking"),
    [
        pytest.param([0, 0, 0, 1, 1], [0, 1, 2, 3, 4], (1, 2), id="two pictures"),
        pytest.param([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 3, 4], (1, 2), id="three pictures, two of them equal"),
        pytest.param([0, 0, 0, 0, 1], [0, 1, 2, 3, 0], (1, 0), id="only the copy of another class's picture"),
    ],
)
def test_a_class_with_too_few_groups_is_refused(labels: list[int], groups: list[int], lacking: tuple[int, int]) -> None:
    with pytest.raises(TooFewGroups) as error:
        split_once(Samples(labels, groups), "80/10/10", 0)
    assert error.value.groups_of == dict([lacking])


@given(st.lists(st.sampled_from("abcdef")))
def test_equal_digests_get_equal_numbers(digests: list[str]) -> None:
    numbers = group_by_content(digests)
    assert len(set(zip(digests, numbers, strict=True))) == len(set(digests)) == len(set(numbers))


# --- percentages


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("80/20", {"train": 0.8, "val": 0.2}),
        ("80/10/10", {"train": 0.8, "val": 0.1, "test": 0.1}),
        ("80/20/0", {"train": 0.8, "val": 0.2}),
        (" 70 / 15 /15 ", {"train": 0.7, "val": 0.15, "test": 0.15}),
        ("33.4/33.3/33.3", {"train": 0.334, "val": 0.333, "test": 0.333}),
        ("0.5/99.5", {"train": 0.005, "val": 0.995}),
    ],
)
def test_percentages_that_are_understood(text: str, shares: dict[str, float]) -> None:
    assert parse_fractions(text) == pytest.approx(shares)
    assert list(parse_fractions(text)) == list(shares)


@pytest.mark.parametrize(
    "text",
    ["", "80", "80/", "/20", "80/30", "80/10", "100/0", "0/100", "80/0/20", "0.8/0.2", "-80/180", "80/10/5/5", "80-20",
     "80,20", "80%/20%", "eighty/twenty", "1e1/90", "nan/nan", "inf/inf", "80 20", "runs/flowers"],
)  # fmt: skip
def test_percentages_that_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"data\.split '{re.escape(text)}' is neither percentages nor a file: .*80/20"):
        parse_fractions(text)


# --- split.json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NAMES = st.dictionaries(TEXT, st.sampled_from(PARTS))


@given(NAMES, st.lists(TEXT, unique=True), st.dictionaries(TEXT, TEXT), st.lists(st.lists(TEXT).map(tuple)))
def test_split_file_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory,
    parts: dict[str, str],
    classes: list[str],
    left_out: dict[str, str],
    duplicates: list[tuple[str, ...]],
) -> None:
    path = tmp_path_factory.getbasetemp() / "split.json"
    split = Split(tuple(classes), parts, left_out, tuple(duplicates))
    save_split(split, path)
    assert load_split(path) == split


def test_split_file_reads_well(tmp_path: Path) -> None:
    """One file a line in sorted order, so that a diff of two splits says what changed; plain letters stay plain."""
    path = tmp_path / "split.json"
    save_split(Split(("a", "rosé"), {"rosé/2.jpg": "val", "a/1.jpg": "train"}), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines.index('  "a/1.jpg": "train",') + 1 == lines.index('  "rosé/2.jpg": "val"')


def test_files_of_a_part_are_sorted() -> None:
    split = Split(("a",), {"a/2": "train", "a/10": "train", "a/3": "val", "a/1": "train"})
    assert split.files_of("train") == ["a/1", "a/10", "a/2"]
    assert split.files_of("test") == []


GOOD: dict[str, Any] = {"format": 1, "class_names": ["a", "b"], "parts": {"a/1.jpg": "train"}}


def test_split_file_may_leave_out_what_a_person_would_not_write(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(GOOD))
    assert load_split(path) == Split(("a", "b"), {"a/1.jpg": "train"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format is 2, this version reads 1"),
        ({"format": None}, "its format is None, this version reads 1"),
        ({"parts": None}, "it needs an object 'parts'"),
        ({"parts": ["a/1.jpg"]}, "it needs an object 'parts'"),
        ({"parts": {"a/1.jpg": "training"}}, "'a/1.jpg' has the part 'training'; allowed are train, val, test"),
        ({"parts": {"a/1.jpg": ["val"]}}, r"'a/1.jpg' has the part \['val'\]; allowed are train, val, test"),
        ({"class_names": None}, "it needs a list 'class_names'"),
        ({"class_names": "ab"}, "it needs a list 'class_names'"),
        ({"class_names": [1, 2]}, "it needs a list 'class_names'"),
        ({"left_out": ["a/1.jpg"]}, "'left_out' must be an object that gives each file its cause"),
        ({"left_out": {"a/1.jpg": None}}, "'left_out' must be an object that gives each file its cause"),
        ({"duplicates": 5}, "'duplicates' must be a list of lists of files"),
        ({"duplicates": ["ab"]}, "'duplicates' must be a list of lists of files"),
    ],
    ids=str,
)
def test_split_file_of_another_form_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=rf"split\.json is not a split\.json of a run: {message}"):
        load_split(path)


@pytest.mark.parametrize("document", ["[]", "null", "3", '"train"', "{}"])
def test_split_file_that_is_no_object_is_refused(document: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(document)
    with pytest.raises(UserError, match=r"is not a split\.json of a run: it needs an object 'parts'"):
        load_split(path)


@pytest.mark.parametrize("content", [b"", b"{", b"a/1.jpg,train\n", b'{"parts": {}} x'], ids=repr)
def test_split_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"split\.json is not valid JSON: "):
        load_split(path)


def test_split_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file or directory\."):
        load_split(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory\."):
        load_split(tmp_path)


def test_parts_are_a_mapping_whatever_made_them(tmp_path: Path) -> None:
    """An array inside; what it says, how it compares, is sent and is written are those of a dictionary."""
    given = {"b/1": "test", "a/2": "train", "a/10": "val", "ü": "train"}
    split = Split(("a",), given)
    assert split.parts == given
    assert dict(split.parts) == given
    assert list(split.parts) == sorted(given)
    assert list(split.parts.items()) == sorted(given.items())
    assert list(split.parts.values()) == [given[name] for name in sorted(given)]
    assert "a/2" in split.parts
    assert "a/3" not in split.parts
    assert split.parts.get("zzz", "left out") == split.parts.get("", "left out") == "left out"
    assert pickle.loads(pickle.dumps(split)) == split == Split(("a",), dict(reversed(given.items())))
    assert split != Split(("a",), given | {"ü": "val"})
    assert split.files_of("train") == ["a/2", "ü"]
    split.files_of("train").clear()
    assert split.files_of("train") == ["a/2", "ü"]


def test_a_million_files_take_little_time_and_memory() -> None:
    parts = {f"class{number % 100:02d}/picture{number:07d}.jpg": PARTS[number % 3] for number in range(10**5)}
    split = Split(("a",), parts)
    lone = len(pickle.dumps(tuple(parts)))
    assert len(pickle.dumps(split)) < lone + 2 * len(parts), "a byte for each beside its name"
    begun = time.process_time()
    for _ in range(100):
        split.files_of("val")
    assert time.process_time() - begun < 1
