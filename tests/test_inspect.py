"""The look at every image before training: bad files, equal files, and who goes into which part."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from accel_flowers.core import machine
from accel_flowers.core.errors import UserError
from accel_flowers.data import validate
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split, make_split, parse_fractions, save_split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.validate import check_readable
from accel_flowers.inspection.command import inspect_source
from accel_flowers.inspection.text import in_words
from tests.conftest import draw_image, make_folder


def decide(folder: Path, split: str = "80/10/10", *, seed: int = 0, skip: bool = False) -> Split:
    return decide_split(load_images(str(folder)), split, seed=seed, on_bad_image="skip" if skip else "stop")


def refusal(folder: Path, split: str = "80/10/10", *, skip: bool = False) -> str:
    """The message of the refusal, with DIR for the folder."""
    with pytest.raises(UserError) as error:
        decide(folder, split, skip=skip)
    return str(error.value).replace(str(folder), "DIR")


def spoil(folder: Path) -> dict[str, str]:
    """Four images that cannot be read in as many ways, with a word of each cause."""
    whole = (folder / "rose/05.png").read_bytes()
    (folder / "rose/05.png").write_bytes(whole[: len(whole) // 2])
    (folder / "daisy/01.png").write_bytes(b"")
    (folder / "tulip/02.png").write_text("<html>404</html>")
    (folder / "tulip/link.png").symlink_to("nowhere.png")
    return {
        "daisy/01.png": "the file is empty",
        "rose/05.png": "cut short",
        "tulip/02.png": "not a JPEG",
        "tulip/link.png": "a link to a file that is not there",
    }


def copy(folder: Path, of: str, *to: str) -> None:
    for name in to:
        shutil.copy(folder / of, folder / name)


def make_parts(root: Path, **per_class: int) -> Path:
    """Split folders with so many images of the classes daisy and rose, all different."""
    for place, (part, number) in enumerate(per_class.items()):
        for name in ("daisy", "rose"):
            (root / part / name).mkdir(parents=True)
            for image in range(number):
                draw_image(name, 100 * place + image).save(root / part / name / f"{image}.png")
    return root


# --- a drawn split


def test_plain_folder(folder: Path) -> None:
    split = decide(folder)
    table = load_images(str(folder))
    assert set(split.parts) == set(table.files)
    assert split.class_names == table.class_names
    assert (split.left_out, split.duplicates) == ({}, ())
    assert Counter((name.split("/")[0], part) for name, part in split.parts.items()) == {
        (name, part): number for name in table.class_names for part, number in zip(
            ("train", "val", "test"), (8, 1, 1), strict=True)
    }  # fmt: skip
    drawn = make_split(table.labels.tolist(), range(30), parse_fractions("80/10/10"), seed=0)
    assert [split.parts[name] for name in table.files] == drawn


def test_split_depends_on_seed_and_names_alone(folder: Path, tmp_path: Path) -> None:
    assert decide(folder, seed=1) == decide(folder, seed=1)
    assert decide(folder, seed=1) != decide(folder, seed=2)
    other = make_folder(tmp_path / "elsewhere", per_class=10)
    for image in other.rglob("*.png"):
        draw_image("rose", int(image.stem) + 1000 * len(image.parent.name) + ord(image.parent.name[0])).save(image)
    assert decide(other, seed=1).parts == decide(folder, seed=1).parts


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_result_does_not_depend_on_the_number_of_threads(
    threads: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(folder)
    copy(folder, "rose/00.png", "rose/copy.png", "daisy/copy.png")
    expected = decide(folder, skip=True)
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(threads)))
    assert decide(folder, skip=True) == expected
    assert list(decide(folder, skip=True).left_out) == list(expected.left_out)


def test_equal_files_stay_on_one_side(folder: Path) -> None:
    """Within a class and across classes, whatever the seed."""
    copy(folder, "rose/00.png", "rose/copy.png", "rose/again.png")
    copy(folder, "tulip/01.png", "daisy/tulip.png")
    expected = (("daisy/tulip.png", "tulip/01.png"), ("rose/00.png", "rose/again.png", "rose/copy.png"))
    seen = set()
    for seed in range(12):
        split = decide(folder, "60/20/20", seed=seed)
        assert split.duplicates == expected
        assert split.left_out == {}
        for group in expected:
            assert len({split.parts[name] for name in group}) == 1
        seen.add(tuple(split.parts[group[0]] for group in expected))
    assert len(seen) > 3


def test_class_that_is_too_small(folder: Path, tmp_path: Path) -> None:
    small = make_folder(tmp_path / "small", per_class=2)
    assert refusal(small) == (
        "3 classes have too few different pictures of their own for one each in train, val, test: 'daisy' (2), 'rose' (2), "
        "'tulip' (2). Add pictures or remove the classes, or ask for two parts with --data.split 80/20."
    )
    decide(small, "80/20")
    copy(folder, "rose/00.png", *(f"rose/{number:02d}.png" for number in range(1, 10)))
    assert refusal(folder, "80/20") == (
        "The class 'rose' has 1 different picture of its own, too few for one each in train, val: "
        "add pictures or remove the class."
    )


@pytest.mark.holds("All mistakes of a data set are told at once, and by inspect before")
def test_all_small_classes_and_bad_files_are_told_at_once(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(6))
    root = tmp_path / "photos"
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for picture in range(1 + number // 2):
            draw_image("rose", 10 * number + picture).save(root / name / f"{picture}.png")
    (root / "gone").mkdir()
    for name in ("gone/1.png", "class 0/bad.png"):
        (root / name).write_bytes(b"")
    told = refusal(root)
    assert "2 pictures of" in told
    assert "class 0/bad.png: the file is empty" in told
    assert "holds no picture of 'gone' that can be read" in told
    assert (
        "4 classes have too few different pictures of their own for one each in train, val, test: 'class 0' (1), "
        "'class 1' (1), 'class 2' (2), 'class 3' (2). Add pictures or remove the classes."
    ) in told
    found = inspect_source(root)
    assert found.harmful
    assert found.few == {"class 0": 1, "class 1": 1, "class 2": 2, "class 3": 2, "gone": 0}
    assert "5 classes too small to be split" in in_words(found)
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "class 0")
    shutil.rmtree(root / "class 1")
    found = inspect_source(root)
    assert not found.harmful, "training and validation can be drawn"
    assert "WARNING  2 classes too small to be split" in in_words(found)
    assert "ask for two parts with --data.split 80/20" in " ".join(in_words(found).split())


def test_class_that_holds_only_images_of_another(folder: Path) -> None:
    shutil.rmtree(folder / "tulip")
    shutil.copytree(folder / "rose", folder / "tulip")
    assert refusal(folder, "80/20").startswith("The class 'tulip' has 0 different pictures of its own")


# --- images that cannot be read


def test_bad_images_stop_with_their_names_and_causes(folder: Path) -> None:
    causes = spoil(folder)
    head, *lines, advice = refusal(folder).splitlines()
    assert head == "4 pictures of 'DIR' cannot be read:"
    assert [line.split(":")[0].strip() for line in lines] == list(causes)
    for line, cause in zip(lines, causes.values(), strict=True):
        assert cause in line
    assert "--data.on-bad-image skip" in advice


def test_many_bad_images_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_SHOWN", 20)
    for image in folder.glob("*/0[0-8].png"):
        image.write_bytes(b"")
    told = refusal(folder).splitlines()
    assert told[0] == "27 pictures of 'DIR' cannot be read:"
    assert told[21] == "  and 7 more"
    assert len(told) == 24, "and the classes, of which too little is left"


def test_bad_images_are_skipped_and_listed(folder: Path) -> None:
    causes = spoil(folder)
    split = decide(folder, skip=True)
    assert list(split.left_out) == list(causes)
    for name, cause in causes.items():
        assert cause in split.left_out[name]
    assert set(split.parts) == set(load_images(str(folder)).files) - set(causes)
    assert split.duplicates == ()


@pytest.mark.parametrize("seconds_each", [1e-9, 1e9], ids=["many threads", "one thread"])
@pytest.mark.parametrize("chunk", [1, 4, 30, 31])
def test_each_image_gets_its_own_verdict(
    chunk: int, seconds_each: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_CHUNK", chunk)
    monkeypatch.setattr(validate, "_SECONDS_EACH", seconds_each)
    copy(folder, "rose/03.png", "rose/04.png", "tulip/09.png")
    causes = spoil(folder)
    split = decide(folder, skip=True)
    assert set(split.left_out) == set(causes)
    assert split.duplicates == (("rose/03.png", "rose/04.png", "tulip/09.png"),)


def test_two_empty_files_are_no_duplicates(folder: Path) -> None:
    for name in ("rose/00.png", "tulip/00.png"):
        (folder / name).write_bytes(b"")
    assert decide(folder, skip=True).duplicates == ()


@pytest.mark.parametrize("link", [False, True], ids=["empty files", "broken links"])
def test_class_of_which_nothing_can_be_read(link: bool, folder: Path) -> None:
    for image in folder.glob("rose/*"):
        image.unlink()
        image.symlink_to("nowhere") if link else image.write_bytes(b"")
    assert refusal(folder, skip=True) == (
        "'DIR' holds no picture of 'rose' that can be read. Mend or remove the class."
    )


def test_check_readable_looks_at_the_files_asked_for(folder: Path) -> None:
    (folder / "rose/05.png").write_bytes(b"")
    table = load_images(str(folder))
    check_readable(table, ["rose/04.png", "daisy/05.png"])
    with pytest.raises(UserError, match=r"1 picture of .* cannot be read:\n  rose/05\.png: the file is empty\n"):
        check_readable(table, ["rose/04.png", "rose/05.png"])


def test_image_that_vanishes_meanwhile(folder: Path) -> None:
    table = load_images(str(folder))
    (folder / "rose/05.png").unlink()
    with pytest.raises(UserError, match=r"  rose/05\.png: No such file or directory"):
        decide_split(table, "80/20", seed=0, on_bad_image="stop")


# --- a split.json to obey


def write_split(folder: Path, **changes: object) -> Path:
    """A split.json of the folder, drawn with another seed than the tests ask for, with changes."""
    split = decide(folder, "60/20/20", seed=99)
    path = folder.parent / "split.json"
    save_split(Split(**{**vars(split), **changes}), path)
    return path


def test_given_split_is_obeyed(folder: Path) -> None:
    path = write_split(folder)
    split = decide(folder, str(path))
    assert split == decide(folder, "60/20/20", seed=99)
    assert split != decide(folder, "60/20/20")
    shutil.copy(path, folder.parent / "mine.txt")
    assert decide(folder, str(folder.parent / "mine.txt")) == split


def test_given_split_after_skipping_needs_no_second_permission(folder: Path) -> None:
    """A run that left images out goes on from its own split.json."""
    spoil(folder)
    first = decide(folder, skip=True)
    save_split(first, folder.parent / "split.json")
    assert decide(folder, str(folder.parent / "split.json")) == first


def test_given_split_keeps_out_what_it_left_out(folder: Path) -> None:
    parts = decide(folder, "60/20/20").parts
    path = write_split(
        folder,
        parts={name: part for name, part in parts.items() if name != "rose/05.png"},
        left_out={"rose/05.png": "blurred", "rose/gone.png": "taken away"},
    )
    split = decide(folder, str(path))
    assert "rose/05.png" not in split.parts
    assert split.left_out == {"rose/05.png": "blurred", "rose/gone.png": "taken away"}


def test_given_split_may_list_a_image_as_left_out_and_still_name_its_part(folder: Path) -> None:
    """A person who takes an image out adds a line; nothing else need be edited."""
    split = decide(folder, str(write_split(folder, left_out={"rose/05.png": "blurred"})))
    assert "rose/05.png" not in split.parts
    assert split.left_out == {"rose/05.png": "blurred"}


def test_given_split_that_does_not_exist(folder: Path) -> None:
    assert refusal(folder, "no/split.json") == (
        "The split file no/split.json cannot be read: No such file or directory."
    )
    assert refusal(folder, "no/split").startswith("data.split 'no/split' is neither percentages nor a file")


def test_given_split_that_lacks_images(folder: Path) -> None:
    path = write_split(folder)
    draw_image("rose", 77).save(folder / "rose/new.png")
    assert refusal(folder, str(path)) == (
        f"{path} does not fit 'DIR': it does not name 1 of the pictures, for example 'rose/new.png'. "
        "Give the folder it was made from, edit it, or draw a new split with --data.split 80/10/10."
    )


def test_given_split_that_names_more_than_there_is(folder: Path) -> None:
    path = write_split(folder)
    (folder / "rose/05.png").unlink()
    (folder / "rose/06.png").unlink()
    assert "2 of its files are not there, for example 'rose/05.png'. Give" in refusal(folder, str(path))


def test_given_split_with_a_image_that_broke_since(folder: Path) -> None:
    """To leave it out would renumber the samples: with a given split, skipping is no way out."""
    path = write_split(folder)
    (folder / "rose/05.png").write_bytes(b"")
    assert "1 picture of 'DIR' cannot be read:\n  rose/05.png: the file is empty\n" in refusal(folder, str(path))
    assert refusal(folder, str(path), skip=True).startswith(
        f"{path} does not fit 'DIR': 1 cannot be read, for example 'rose/05.png': the file is empty. Give the folder"
    )


def test_given_split_of_other_classes(folder: Path) -> None:
    path = write_split(folder, class_names=("aster", "rose"))
    assert refusal(folder, str(path)) == (
        f"{path} is a split of the classes aster, rose; 'DIR' has daisy, rose, tulip."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": "train"}, "No picture is left in val of 'DIR': the best epoch is chosen by it."),
        ({"train": "val"}, "No picture of 'daisy', 'rose', 'tulip' is left in train of 'DIR'"),
    ],
    ids=["no val", "no train"],
)
def test_given_split_without_a_part_that_training_needs(change: dict[str, str], message: str, folder: Path) -> None:
    parts = decide(folder, "60/20/20").parts
    path = write_split(folder, parts={name: change.get(part, part) for name, part in parts.items()})
    assert re.match(message, refusal(folder, str(path)))


def test_given_split_with_a_class_that_train_lacks(folder: Path) -> None:
    parts = decide(folder, "60/20/20").parts
    path = write_split(folder, parts={name: "test" if "rose" in name else part for name, part in parts.items()})
    assert refusal(folder, str(path)) == "No picture of 'rose' is left in train of 'DIR'."


def test_given_split_that_tears_equal_files_apart(folder: Path) -> None:
    """The copies of the part that measures stay, the others are left out."""
    copy(folder, "rose/00.png", "rose/copy.png")
    parts = dict(decide(folder, "60/20/20").parts) | {"rose/00.png": "train", "rose/copy.png": "test"}
    split = decide(folder, str(write_split(folder, parts=parts)))
    assert split.left_out == {"rose/00.png": "the same bytes as rose/copy.png of test"}
    assert split.parts["rose/copy.png"] == "test"


# --- split folders


def test_split_folders_are_taken_as_they_stand(tmp_path: Path) -> None:
    split = decide(make_parts(tmp_path, train=4, valid=2, test=3), "50/25/25")
    assert all(name.startswith(part) for name, part in split.parts.items())  # "valid" too
    assert Counter(split.parts.values()) == {"train": 8, "val": 4, "test": 6}
    assert split == decide(tmp_path, "80/20", seed=5)


def test_val_is_drawn_from_train_where_there_is_none(tmp_path: Path) -> None:
    make_parts(tmp_path, train=10, test=3)
    split = decide(tmp_path, "80/20", seed=1)
    assert Counter((name.split("/")[1], part) for name, part in split.parts.items()) == {
        (name, part): number for name in ("daisy", "rose") for part, number in (("train", 8), ("val", 2), ("test", 3))
    }  # fmt: skip
    assert all(name.startswith("test/") == (part == "test") for name, part in split.parts.items())
    assert split.left_out == {}
    assert decide(tmp_path, "80/20", seed=1) == split
    assert decide(tmp_path, "80/20", seed=2).parts != split.parts


def test_doubles_across_given_parts_are_left_out_with_the_cause(tmp_path: Path) -> None:
    """Test keeps its copy before val, val before train; doubles within a part stay."""
    make_parts(tmp_path, train=5, val=3, test=3)
    copy(tmp_path, "test/rose/0.png", "train/rose/x.png", "val/rose/x.png")
    copy(tmp_path, "val/rose/0.png", "train/daisy/x.png")
    copy(tmp_path, "train/rose/0.png", "train/rose/y.png")
    split = decide(tmp_path)
    assert split.left_out == {
        "train/daisy/x.png": "the same bytes as val/rose/0.png of val",
        "train/rose/x.png": "the same bytes as test/rose/0.png of test",
        "val/rose/x.png": "the same bytes as test/rose/0.png of test",
    }
    assert Counter(split.parts.values()) == {"train": 11, "val": 6, "test": 6}
    assert {split.parts["train/rose/0.png"], split.parts["train/rose/y.png"]} == {"train"}
    assert len(split.duplicates) == 3


def test_val_is_drawn_after_doubles_have_gone(tmp_path: Path) -> None:
    """Otherwise an image of test could be all that a class has in val."""
    make_parts(tmp_path, train=5, test=5)
    for number in range(3):
        copy(tmp_path, f"test/rose/{number}.png", f"train/rose/{number}.png")
    for seed in range(10):
        split = decide(tmp_path, "50/50", seed=seed)
        counts = Counter((name.split("/")[1], part) for name, part in split.parts.items())
        assert (counts["rose", "train"], counts["rose", "val"], len(split.left_out)) == (1, 1, 3)


def test_train_folder_too_small_to_draw_val_from(tmp_path: Path) -> None:
    make_parts(tmp_path, train=1, test=3)
    assert refusal(tmp_path).startswith(
        "2 classes have too few different pictures of their own for one each in train, val: "
    )


def test_val_folder_that_repeats_test(tmp_path: Path) -> None:
    make_parts(tmp_path, train=3, test=2)
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    assert refusal(tmp_path) == (
        "No picture is left in val of 'DIR': the best epoch is chosen by it. 4 files are left out because copies would stand "
        "on two sides; val/daisy/0.png has the same bytes as test/daisy/0.png of test."
    )


def test_train_folder_whose_class_repeats_test(tmp_path: Path) -> None:
    make_parts(tmp_path, train=3, val=2, test=2)
    shutil.rmtree(tmp_path / "train/rose")
    shutil.copytree(tmp_path / "test/rose", tmp_path / "train/rose")
    assert refusal(tmp_path) == (
        "No picture of 'rose' is left in train of 'DIR'. 2 files are left out because copies would stand on two sides; "
        "train/rose/0.png has the same bytes as test/rose/0.png of test."
    )


# --- what is said of it


def test_description_of_a_plain_folder(folder: Path) -> None:
    table = load_images(str(folder))
    lines = describe_split(table, decide(folder))
    assert lines == ["30 pictures of 3 classes: 24 train, 3 val, 3 test"]
    assert describe_split(table, decide(folder, "80/20")) == ["30 pictures of 3 classes: 24 train, 6 val"]


def test_description_of_everything_odd(folder: Path) -> None:
    spoil(folder)
    copy(folder, "rose/00.png", "rose/copy.png")
    copy(folder, "tulip/01.png", "daisy/tulip.png")
    (folder / "LICENSE.txt").write_text("free")
    (folder / "rose/IMG.gpx").write_text("x")
    (folder / ".DS_Store").write_text("x")
    (folder / "rose/all").symlink_to(folder)
    lines = describe_split(load_images(str(folder)), decide(folder, skip=True))
    assert lines[0].startswith("29 pictures of 3 classes: ")
    assert lines[1:] == [
        "2 groups of identical files, each on one side of the split, "
        "1 of them under two classes (first: daisy/tulip.png = tulip/01.png)",
        "4 pictures left out, listed in split.json; first: daisy/01.png: the file is empty",
        "2 files that are no pictures by name, for example LICENSE.txt",
        "left out: 1 hidden, 1 links to folders that are not followed",
    ]


def test_table_is_left_as_it_was(folder: Path) -> None:
    table: ImageTable = load_images(str(folder))
    before = (table.files, table.labels.tolist(), dict(table.unreadable), table.read(3))
    decide_split(table, "80/20", seed=0, on_bad_image="skip")
    assert (table.files, table.labels.tolist(), dict(table.unreadable), table.read(3)) == before
