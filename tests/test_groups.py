"""What belongs together stays together: copies, and pictures whose names say that they show one thing."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from accel_flowers.core.errors import UserError
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.groups import join_groups, named_groups
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import load_split
from accel_flowers.study.folds import write_folds
from tests.runs import tiny_config

PLANTS, EACH = 8, 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three noisy photos of each of eight plants a class."""
    folder = tmp_path_factory.mktemp("plants")
    rng = np.random.default_rng(0)
    for name in ("rose", "tulip"):
        (folder / name).mkdir()
        for number in range(PLANTS * EACH):
            pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST)
            image.save(folder / name / f"plant{number % PLANTS}_{number // PLANTS}.png")
    return folder


@given(st.lists(st.tuples(st.integers(0, 6), st.one_of(st.none(), st.integers(0, 4))), min_size=1, max_size=30))
def test_joined_groups_are_the_components_of_the_graph(pairs: list[tuple[int, int | None]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    joined = join_groups(first, second)
    edges = [
        (one, other)
        for grouping in (first, second)
        for one in range(len(pairs))
        for other in range(one)
        if grouping[one] is not None and grouping[one] == grouping[other]
    ]
    rows, columns = ([edge[side] for edge in edges] for side in (0, 1))
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(pairs), len(pairs)))
    number, components = connected_components(graph, directed=False)
    assert len(set(joined)) == number
    assert len({(one, int(other)) for one, other in zip(joined, components, strict=True)}) == number


def test_names_are_read_by_the_pattern() -> None:
    files = ["rose/plant1_0.jpg", "rose/plant1_1.jpg", "tulip/other.jpg"]
    assert named_groups(files, r"(plant\d+)_") == dict.fromkeys(files[:2], "plant1")
    assert named_groups(files, r"^\w+/plant\d+") == dict.fromkeys(files[:2], "rose/plant1")
    with pytest.raises(UserError, match=r"found in none of the names, such as 'rose/plant1_0\.jpg'"):
        named_groups(files, "tree")
    with pytest.raises(UserError, match=r"'\(plant' is no regular expression"):
        named_groups(files, "(plant")


def parts_of_plants(parts: dict[str, str]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, part in parts.items():
        found[name.rpartition("_")[0]].add(part)
    return found


@pytest.mark.holds("Pictures of one thing stay in one part")
def test_photos_of_a_plant_stay_in_one_part(photos: Path) -> None:
    table, grouped = load_images(str(photos)), load_images(str(photos), group_pattern=r"(\w+/plant\d+)_")
    torn = 0
    for seed in range(5):
        plain = decide_split(table, "60/20/20", seed=seed, on_bad_image="stop")
        torn += sum(len(parts) > 1 for parts in parts_of_plants(dict(plain.parts)).values())
        split = decide_split(grouped, "60/20/20", seed=seed, on_bad_image="stop")
        plants = parts_of_plants(dict(split.parts))
        assert len(plants) == 2 * PLANTS
        assert all(len(parts) == 1 for parts in plants.values())
        for part in ("train", "val", "test"):
            assert {name.split("/")[0] for name in split.files_of(part)} == {"rose", "tulip"}
    assert torn, "without the pattern they are torn apart"


@pytest.mark.holds("Pictures of one thing stay in one part")
def test_photos_of_a_plant_stay_in_one_fold(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "run", data={"group_pattern": r"(\w+/plant\d+)_"})
    told = write_folds(config, 4, tmp_path)
    assert any("16 groups" in line for line in told)
    for fold in range(1, 5):
        assert all(
            len(parts) == 1
            for parts in parts_of_plants(dict(load_split(tmp_path / f"fold-{fold}.json").parts)).values()
        )


def write_table(photos: Path, folder: Path, layout: str) -> Path:
    """The photos once more, with a column of plants: class folders, images beside each other, or a dataset."""
    if layout == "dataset":
        files = sorted(photos.glob("*/*.png"))
        pictures = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
        pictures["plant"] = [plant_of(file) for file in files]
        datasets.Dataset.from_dict(pictures).cast_column("image", datasets.Image()).save_to_disk(folder)
        return folder
    rows = ["name,label,plant"]
    for file in sorted(photos.glob("*/*.png")):
        name = f"{file.parent.name}/{file.name}" if layout == "class folders" else f"{file.parent.name}_{file.name}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / name)
        rows.append(f"{name},{file.parent.name},{plant_of(file)}")
    (folder / "plants.csv").write_text("\n".join(rows) + "\n")
    return folder


def plant_of(file: Path) -> str:
    """A cell of the column; nothing is said of one plant."""
    plant = file.name.rpartition("_")[0]
    return "" if plant == "plant0" else f"{file.parent.name}-{plant}"


@pytest.mark.holds("Pictures of one thing stay in one part")
@pytest.mark.parametrize("layout", ["class folders", "one folder", "dataset"])
def test_a_column_says_which_photos_are_of_one_plant(photos: Path, tmp_path: Path, layout: str) -> None:
    """It is not taken for the labels, and with a pattern beside it both hold."""
    folder = write_table(photos, tmp_path / "photos", layout)
    plants = {f"rose-plant{number}" for number in range(1, PLANTS)}
    table = load_images(str(folder), group_column="plant")
    assert table.class_names == ("rose", "tulip")
    (by,) = table.groups
    assert by == "data.group_column plant"
    assert {each for each in table.groups[by].values() if each.startswith("rose")} == plants
    assert len(table.groups[by]) == len(table.files) - 2 * EACH
    for seed in range(3):
        split = decide_split(table, "60/20/20", seed=seed, on_bad_image="stop")
        parts = defaultdict(set)
        for file, group in table.groups[by].items():
            parts[group].add(split.parts[file])
        assert len(parts) == 2 * (PLANTS - 1)
        assert all(len(each) == 1 for each in parts.values())
    assert any("14 groups; 6 pictures of which it says nothing" in line for line in describe_split(table, split))
    if layout == "class folders":
        both = load_images(str(folder), group_column="plant", group_pattern=r"plant[01]_\d")
        assert len(both.groups) == 2
        config = tiny_config(folder, tmp_path / "run", data={"group_column": "plant"})
        assert any("14 groups" in line for line in write_folds(config, 4, tmp_path))


@pytest.mark.parametrize("layout", ["class folders", "dataset"])
def test_a_column_that_is_not_there_is_a_message(photos: Path, tmp_path: Path, layout: str) -> None:
    folder = write_table(photos, tmp_path / "photos", layout)
    with pytest.raises(UserError, match=r"no.*column 'tree'.*(plants\.csv has|it has).*plant"):
        load_images(str(folder), group_column="tree")


def test_two_groups_for_one_photo_are_a_message(photos: Path, tmp_path: Path) -> None:
    folder = write_table(photos, tmp_path / "photos", "class folders")
    with (folder / "plants.csv").open("a") as file:
        file.write("rose/plant1_0.png,rose,other\n")
    with pytest.raises(UserError, match=r"'rose/plant1_0\.png' has two values, 'rose-plant1' and 'other'"):
        load_images(str(folder), group_column="plant")


def test_a_pattern_that_is_none_is_a_message() -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        tiny_config(Path("photos"), Path("run"), data={"group_pattern": "(plant"})


def test_the_order_of_samples_does_not_matter() -> None:
    rng = random.Random(0)
    pairs = [(rng.randrange(6), rng.choice([None, "a", "b"])) for _ in range(20)]
    order = list(range(20))
    rng.shuffle(order)
    plain = join_groups(*zip(*pairs, strict=True))
    mixed = join_groups(*zip(*[pairs[place] for place in order], strict=True))
    assert len({(plain[place], mixed[now]) for now, place in enumerate(order)}) == len(set(plain))
