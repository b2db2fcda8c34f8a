"""Pictures with several labels: how a data set says them, and how they are split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from accel_flowers.core.errors import UserError
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.label_sets import as_several, classes_in, encode, label_sets, strata
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, TooFewGroups
from accel_flowers.data.stratify import make_split_of_sets
from accel_flowers.data.table import ImageTable
from tests.several import labels_of, make_pictures, write_columns, write_separated

NAMES = ("leaf", "rare", "rose", "sky")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, ...]]]:
    folder = tmp_path_factory.mktemp("several") / "pictures"
    return folder, make_pictures(folder, 40)


def sets_of(table: ImageTable) -> list[set[str]]:
    return [{table.class_names[label] for label in labels} for labels in label_sets(table.labels)]


def copied(pictures: tuple[Path, dict[str, tuple[str, ...]]], to: Path) -> dict[str, tuple[str, ...]]:
    folder, labels = pictures
    to.mkdir(parents=True)
    for file in labels:
        (to / file).hardlink_to(folder / file)
    return labels


def test_the_ways_to_write_several_labels_mean_the_same(
    pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    labels = copied(pictures, tmp_path / "separated")
    copied(pictures, tmp_path / "columns")
    write_separated(tmp_path / "separated", labels)
    write_columns(tmp_path / "columns", labels)
    wanted = [set(names) for _, names in sorted(labels.items())]
    separated = load_images(str(tmp_path / "separated"), label_separator=";")
    columns = load_images(str(tmp_path / "columns"), label_columns=["all"])
    assert set() in wanted  # a picture without a label is one of them, and stays
    assert sets_of(separated) == sets_of(columns) == wanted
    assert separated.class_names == columns.class_names == NAMES
    assert separated.several_labels
    assert load_images(str(tmp_path / "columns"), label_columns=["sky", "leaf"]).class_names == ("leaf", "sky")


def _listed(rows: list[dict[str, object]], features: datasets.Features, folder: Path) -> None:
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder))


@pytest.mark.parametrize("how", ["names", "numbers", "parquet", "columns", "separated"])
def test_a_dataset_says_several_labels(
    how: str, pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    folder, labels = pictures
    rows = [{"image": str(folder / file), "labels": list(names)} for file, names in labels.items()]
    words, kind = {}, datasets.Value("string")
    if how == "numbers":
        kind = datasets.ClassLabel(names=[*NAMES, "never"])
        rows = [{**row, "labels": [NAMES.index(name) for name in row["labels"]]} for row in rows]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(kind)})
    if how == "columns":
        rows = [{"image": row["image"], **{name: int(name in row["labels"]) for name in NAMES}} for row in rows]
        features = datasets.Features({"image": datasets.Image(), **{name: datasets.Value("int64") for name in NAMES}})
        words = {"label_columns": ["all"]}
    if how == "separated":
        rows = [{**row, "labels": "|".join(row["labels"])} for row in rows]
        features = datasets.Features({"image": datasets.Image(), "labels": kind})
        words = {"label_separator": "|"}
    if how == "parquet":
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train-0.parquet")
    else:
        _listed(rows, features, tmp_path / "data")
    table = load_images(str(tmp_path / "data"), **words)
    assert sets_of(table) == [set(names) for names in labels.values()]
    assert table.class_names == NAMES
    if how == "numbers":
        assert any("never" in note for note in table.notes)


def test_a_row_that_says_nothing_is_not_one_without_a_label(
    pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    folder, labels = pictures
    said = [["a"], [], None, ["a", "b"], ["b"]]
    rows = [{"image": str(folder / file), "labels": value} for file, value in zip(labels, said, strict=False)]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("string"))})
    _listed(rows, features, tmp_path / "data")
    with pytest.raises(UserError, match=r"1 picture of the dataset .* without a label"):
        load_images(str(tmp_path / "data"))
    assert sets_of(load_images(str(tmp_path / "data"), to_learn=False)) == [{"a"}, set(), {"a", "b"}, {"b"}]


def test_a_list_of_something_else_is_not_taken_for_labels(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    rows = [{"image": str(tmp_path / "1.png"), "boxes": [1, 2], "flower": name} for name in ("rose", "tulip")]
    _listed(
        rows,
        datasets.Features(
            {
                "image": datasets.Image(),
                "boxes": datasets.Sequence(datasets.Value("int64")),
                "flower": datasets.Value("string"),
            }
        ),
        tmp_path / "data",
    )
    assert load_images(str(tmp_path / "data")).class_names == ("rose", "tulip")


CSVS: dict[str, tuple[str, dict[str, object], list[str]]] = {
    "two ways": ("file,a,b\n000.png,1,0\n", {"label_columns": ["a", "b"], "label_separator": ";"}, ["the one or the other"]),
    "not 0 or 1": (
        "file,a,b\n000.png,1,0\n001.png,perhaps,1\n",
        {"label_columns": ["a", "b"]},
        ["row 2", "column 'a'", "'perhaps'", "1 where a picture has it"],
    ),
    "an empty flag": ("file,a,b\n000.png,1,\n", {"label_columns": ["a", "b"]}, ["row 1", "column 'b'", "''"]),
    "no such column": ("file,a,b\n000.png,1,0\n", {"label_columns": ["a", "c"]}, ["no column 'c'", "'a', 'b'"]),
    "none of the columns": ("file,a,b\n000.png,1,0\n", {"label_columns": ["c", "d"]}, ["'c', 'd'", "labels.csv"]),
    "no flags at all": ("file,a,b\n000.png,x,y\n", {"label_columns": ["all"]}, ["no CSV", "labels.csv"]),
    "said twice": (
        "file,labels\n000.png,a;b\n000.png,b\n",
        {"label_separator": ";"},
        ["'000.png'", "labels twice", "'a, b'", "'b'"],
    ),
    "one class": ("file,labels\n000.png,a\n001.png,\n", {"label_separator": ";"}, ["one class only", "two or more"]),
    "nobody has a label": ("file,labels\n000.png,\n001.png,;;\n", {"label_separator": ";"}, ["one class only"]),
    "names nothing here": ("file,labels\nx.png,a;b\n", {"label_separator": ";"}, ["no CSV", "labels.csv"]),
    "another separator": (
        "file,labels\n000.png,a;b\n001.png,b;a\n002.png,a\n003.png,b\n",
        {"label_separator": "|"},
        ["'|' stands in no value", "'a;b'", "--data.label-separator ';'"],
    ),
    "several columns, nothing asked": ("file,a,b\n000.png,1,0\n", {}, ["Which column", "--data.label-columns all"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CSVS)
def test_hostile_csvs_end_in_a_message(
    name: str, pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    text, words, told = CSVS[name]
    copied(pictures, tmp_path / "data")
    (tmp_path / "data" / "labels.csv").write_text(text)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "data"), **words)
    assert [part for part in told if part not in str(error.value)] == []


def test_what_people_write_is_understood(pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path) -> None:
    copied(pictures, tmp_path / "data")
    (tmp_path / "data" / "labels.csv").write_text(
        "file,labels,split\n000.png, b ; a ;;a,train\n001.png,,train\n002.png,a;c,val\n003.png,b,val\n"
    )
    table = load_images(str(tmp_path / "data"), label_separator=";")
    assert sets_of(table) == [{"a", "b"}, set(), {"a", "c"}, {"b"}]
    assert table.given_parts == ("train", "train", "val", "val")


@pytest.mark.parametrize(
    "text",
    [
        "000.png,a;b;c\n001.png,\n002.png,b\n",
        'file;labels\n000.png;"a;b;c"\n001.png;\n002.png;b\n',
        "file\tlabels\n000.png\ta;b;c\n001.png\t\n002.png\tb\n",
    ],
    ids=["no header", "quoted, as some programs write it", "tabs"],
)
def test_what_separates_labels_is_not_taken_for_what_separates_columns(
    text: str, pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    copied(pictures, tmp_path / "data")
    (tmp_path / "data" / "labels.csv").write_text(text)
    assert sets_of(load_images(str(tmp_path / "data"), label_separator=";")) == [{"a", "b", "c"}, set(), {"b"}]


def test_lists_in_metadata_are_several_labels(
    pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    labels = copied(pictures, tmp_path / "data")
    rows = [json.dumps({"file_name": file, "labels": list(names)}) for file, names in labels.items()]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows))
    table = load_images(str(tmp_path / "data"))
    assert sets_of(table) == [set(names) for _, names in sorted(labels.items())]
    assert "the column 'labels' holds lists: several labels a picture" in table.notes
    (tmp_path / "data" / "more.csv").write_text("file,label\n000.png,leaf\n")
    with pytest.raises(UserError, match=r"more\.csv gives one label a picture, and metadata\.jsonl does not"):
        load_images(str(tmp_path / "data"))


def test_one_class_with_a_separator_in_it_stays_one_class_and_is_told(
    pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    labels = copied(pictures, tmp_path / "data")
    write_separated(tmp_path / "data", {file: names or ("leaf",) for file, names in labels.items()})
    table = load_images(str(tmp_path / "data"))
    assert "leaf;rose" in table.class_names
    assert not table.several_labels
    assert any("--data.label-separator ';'" in note for note in table.notes)


def test_folders_of_classes_are_not_asked_where_labels_are(tmp_path: Path) -> None:
    for folder in ("red", "blue"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), folder).save(tmp_path / folder / f"{folder}.png")
    with pytest.raises(UserError, match="no CSV that names its pictures"):
        load_images(str(tmp_path), label_separator=";")
    (tmp_path / "labels.csv").write_text("file,labels\nred.png,x;y\nblue.png,x\n")
    assert sets_of(load_images(str(tmp_path), label_separator=";")) == [{"x"}, {"x", "y"}]
    assert load_images(str(tmp_path)).class_names == ("blue", "red")


# ---- splits ----


def random_labels(num_images: int, num_classes: int, seed: int) -> np.ndarray:
    """Classes of very unlike sizes, of which some come together; each has 12 images or more."""
    chance = np.random.default_rng(seed)
    labels = chance.random((num_images, num_classes)) < np.geomspace(0.5, 0.02, num_classes)
    labels[:, 1] |= labels[:, 0] & (chance.random(num_images) < 0.5)
    for label in range(num_classes):
        labels[chance.permutation(num_images)[:12], label] = True
    return labels


@pytest.mark.parametrize("seed", range(4))
def test_each_class_has_its_share_in_each_part(seed: int) -> None:
    labels = random_labels(1000, 12, seed)
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1}
    parts = np.array(make_split_of_sets(labels, range(1000), fractions, seed=seed))
    for part, share in fractions.items():
        own = labels[parts == part]
        assert abs(len(own) / 1000 - share) < 0.03
        # Of a class as many as its share, but for one or two; so it is for pictures without a label.
        assert np.abs(own.sum(axis=0) - share * labels.sum(axis=0)).max() <= max(2.0, 0.02 * labels.sum(axis=0).max())
        assert own.any(axis=0).all()
        assert abs((~own.any(axis=1)).sum() - share * (~labels.any(axis=1)).sum()) <= 2
    drawn = np.random.default_rng(seed).choice(list(fractions), 1000, p=list(fractions.values()))
    off, by_chance = (
        sum(
            np.abs(labels[those == part].sum(axis=0) - share * labels.sum(axis=0)).sum()
            for part, share in fractions.items()
        )
        for those in (parts, drawn)
    )
    assert off < by_chance / 3


def test_a_split_of_sets_follows_from_the_seed_alone() -> None:
    labels = random_labels(200, 5, 0)
    splits = [make_split_of_sets(labels, range(200), {"train": 0.8, "val": 0.2}, seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_groups_stay_together() -> None:
    labels = random_labels(300, 4, 1)
    groups = [row // 3 for row in range(300)]
    parts = make_split_of_sets(labels, groups, {"train": 0.7, "val": 0.15, "test": 0.15}, seed=3)
    assert all(len(set(parts[first : first + 3])) == 1 for first in range(0, 300, 3))
    assert {part: parts.count(part) for part in PARTS} == pytest.approx({"train": 210, "val": 45, "test": 45}, abs=9)


def test_classes_too_small_to_be_split_are_named() -> None:
    labels = np.zeros((9, 2), dtype=bool)
    labels[:6, 0], labels[5:7, 1] = True, True
    with pytest.raises(TooFewGroups) as error:
        make_split_of_sets(labels, range(9), {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    assert error.value.groups_of == {1: 2}
    labels[7, 1] = True
    parts = make_split_of_sets(labels, range(9), {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    assert {parts[row] for row in (5, 6, 7)} == set(PARTS)


def test_a_data_set_is_split_with_its_copies_together(
    pictures: tuple[Path, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    labels = copied(pictures, tmp_path / "data")
    for number in range(5):  # copies, of which the first has other labels than its twin
        (tmp_path / "data" / f"copy{number}.png").hardlink_to(tmp_path / "data" / f"{number:03d}.png")
    more = {f"copy{number}.png": ("sky", "rose") if number == 0 else labels_of(number) for number in range(5)}
    write_separated(tmp_path / "data", {**labels, **more})
    table = load_images(str(tmp_path / "data"), label_separator=";")
    split = decide_split(table, "60/20/20", seed=0, on_bad_image="stop")
    assert all(split.parts[f"copy{number}.png"] == split.parts[f"{number:03d}.png"] for number in range(5))
    told = "\n".join(describe_split(table, split))
    assert "5 groups of identical files" in told
    assert "1 of them with different labels" in told
    assert "labels a picture: " in told
    assert json.dumps(dict(split.parts)) == json.dumps(
        dict(decide_split(table, "60/20/20", seed=0, on_bad_image="stop").parts)
    )


@pytest.mark.parametrize("form", [lambda labels: labels, lambda labels: as_several(labels, 3)])
def test_both_forms_answer_alike(form: Callable[[np.ndarray], np.ndarray]) -> None:
    labels = form(np.array([2, 0, 2, 1]))
    assert label_sets(labels) == [(2,), (0,), (2,), (1,)]
    assert classes_in(labels[[0, 2]]) == {2}
    assert strata(labels).tolist() == [2, 0, 2, 1]


def test_a_stratum_is_the_rarest_class() -> None:
    labels = encode([("a", "b"), ("a",), (), ("a", "b", "c")], "abc", several=True)
    assert strata(labels).tolist() == [1, 0, 3, 2]
