"""Layouts that people have beside class folders: parts without labels, CSVs, datasets, zips of Windows; one name, one class."""

from __future__ import annotations

import shutil
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import datasets
import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.data.decide_split import decide_split, describe_split
from accel_flowers.data.sources.load import load_images
from accel_flowers.report.photos import Photos
from tests.conftest import CLASSES, draw_image, make_folder
from tests.test_folder import classes_of, put, refusal, save_hub, zip_of

# --- folders


def test_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    root = put(tmp_path, "rose/2020/1.jpg", "rose/2021/a/2.jpg", "rose/3.jpg", "tulip/2020/1.jpg")
    table = load_images(str(root))
    assert classes_of(table) == {name: name.split("/")[0] for name in table.files}
    assert table.class_names == ("rose", "tulip")
    assert table.notes == ("3 pictures in folders below a class count to it: 'rose/2020/1.jpg' to 'rose'",)
    parts = put(tmp_path / "parts", "train/a/x/1.jpg", "train/b/1.jpg", "val/a/y/1.jpg")
    assert set(classes_of(load_images(str(parts))).values()) == {"a", "b"}


def test_parts_below_folders_are_no_classes(tmp_path: Path) -> None:
    root = put(tmp_path, "north/train/a/1.jpg", "north/test/a/1.jpg", "south/train/b/1.jpg")
    assert "not in a class folder" in refusal(root)


def test_a_flat_test_folder_is_left_out_and_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", per_class=4)
    make_folder(tmp_path / "valid", per_class=2)
    put(tmp_path, "test/1.jpg", "test/2.jpg")
    table = load_images(str(tmp_path))
    assert not any(name.startswith("test/") for name in table.files)
    assert set(table.given_parts or ()) == {"train", "val"}
    split = decide_split(table, "80/20", seed=0, on_bad_image="stop")
    told = "\n".join(describe_split(table, split))
    assert f"'{tmp_path}/test' has no class folders: its 2 pictures are left out" in told
    assert f"predict MODEL {tmp_path}/test" in told
    shutil.rmtree(tmp_path / "valid")
    assert load_images(str(tmp_path)).given_parts is None, "train alone is split as any folder"


def test_a_train_folder_alone_is_a_folder_without_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", per_class=10)
    table = load_images(str(tmp_path))
    assert (table.given_parts, table.class_names) == (None, CLASSES)
    assert "alone, which is split as a folder without parts" in table.notes[0]


def test_an_empty_class_of_a_part_that_measures_is_a_note(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    (root / "val/b").mkdir()
    assert load_images(str(root)).notes == ("folders without a picture: 'val/b'",)


def test_all_mistakes_of_a_layout_are_told_at_once(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg", "val/stray.jpg")
    (root / "train/d").mkdir()
    told = refusal(root)
    for each in ("'val/stray.jpg'", "folders without a picture: 'train/d'", "lacks the classes 'c'"):
        assert each in told


@pytest.mark.holds("One name is one class, from whatever system it came")
def test_names_that_read_the_same_are_one_class(tmp_path: Path) -> None:
    composed, apart = unicodedata.normalize("NFC", "Gänseblümchen"), unicodedata.normalize("NFD", "Gänseblümchen")
    root = put(tmp_path, f"{composed}/1.jpg", f"{apart}/2.jpg", "rose/1.jpg", f"{apart}/3.jpg")
    table = load_images(str(root))
    assert table.class_names == (composed, "rose")
    assert table.labels.tolist().count(0) == 3
    assert "is spelt in 2 ways that read the same" in table.notes[0]
    alone = load_images(str(put(tmp_path / "alone", f"{apart}/1.jpg", "rose/1.jpg")))
    assert apart in alone.class_names, "as it stands, where there is nothing to join: runs of before go on"


# --- files of labels


def listed(root: Path, name: str, text: str) -> Path:
    (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,label\n1.jpg,rose\n2.jpg,tulip\n3.jpg,rose\n"),
        ("labels.csv", "\ufeffid;species;note\n1;rose;x\n2;tulip;y\n3;rose;\n"),
        ("train.csv", "1.jpg,rose\n./2.jpg,tulip\nimages\\3.jpg,rose\n"),
        ("all.tsv", "path\tanything\nimages/1.jpg\trose\n2.jpg\ttulip\n3.jpg\trose\n"),
        ("metadata.jsonl", '{"file_name": "1.jpg", "label": "rose"}\n{"file_name": "2.jpg", "label": "tulip"}\n'
         '{"file_name": "3.jpg", "label": "rose"}\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "images/"])
def test_a_file_of_labels_says_the_classes(name: str, text: str, folder: str, tmp_path: Path) -> None:
    root = listed(put(tmp_path, *(f"{folder}{number}.jpg" for number in (1, 2, 3, 4))), name, text)
    (root / "sample_submission.csv").write_text("id,label\n1,nothing\n")
    (root / "other.csv").write_text("no,table,of\nany,pictures,here\n")
    table = load_images(str(root))
    assert classes_of(table) == {f"{folder}1.jpg": "rose", f"{folder}2.jpg": "tulip", f"{folder}3.jpg": "rose"}
    assert table.notes[0] == f"classes by {name}: 3 pictures"
    assert f"1 picture without a label left out, for example '{folder}4.jpg'" in table.notes[1]


def test_a_file_of_labels_may_say_the_parts_and_miss_images(tmp_path: Path) -> None:
    rows = "1.jpg,a,train\n2.jpg,b,train\n3.jpg,a,valid\n4.jpg,b,test\nlost.jpg,a,train\n"
    root = listed(put(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg"), "x.csv", "file,class,split\n" + rows)
    table = load_images(str(root))
    assert table.given_parts == ("train", "train", "val", "test")
    assert table.unreadable == {"lost.jpg": "x.csv names it, and it is not there"}


def test_files_of_labels_in_the_parts(tmp_path: Path) -> None:
    root = put(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg")
    listed(root, "train/metadata.csv", "file_name,label\n1.jpg,a\n2.jpg,b\n")
    listed(root, "test/metadata.csv", "file_name,label\n1.jpg,b\n")
    table = load_images(str(root))
    assert dict(zip(table.files, table.given_parts or (), strict=True)) == {
        "test/1.jpg": "test", "train/1.jpg": "train", "train/2.jpg": "train",
    }  # fmt: skip
    assert classes_of(table)["test/1.jpg"] == "b"


def test_a_file_of_labels_that_is_not_clear_is_refused(tmp_path: Path) -> None:
    root = listed(put(tmp_path, "1.jpg", "2.jpg"), "x.csv", "file,height,colour\n1.jpg,3,red\n2.jpg,4,blue\n")
    assert "Which column of" in refusal(root)
    assert "--data.label-column" in refusal(root)
    assert load_images(str(root), label_column="colour").class_names == ("blue", "red")
    listed(root, "x.csv", "file,label\n1.jpg,a\n1.jpg,b\n2.jpg,b\n")
    assert "'1.jpg' has two labels, 'a' and 'b'" in refusal(root)


def test_class_folders_are_asked_before_a_file_of_labels(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,label\nrose/00.png,tulip\n")
    assert classes_of(load_images(str(folder)))["rose/00.png"] == "rose"


# --- datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    root = make_folder(tmp_path_factory.mktemp("dataset") / "photos", per_class=4)
    return datasets.load_dataset("imagefolder", data_dir=str(root), split="train")


def test_saved_datasets_and_parquet_are_read_from_their_folder(
    dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shuffled = dataset.shuffle(seed=1)
    shuffled.save_to_disk("alone")
    datasets.DatasetDict({"train": shuffled, "test": dataset.select([0, 5])}).save_to_disk("saved")
    dataset.to_parquet("parquet/train-00000-of-00001.parquet")
    shutil.copytree("parquet", "nested/data")
    rows = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    whole = [Path(image["path"]).read_bytes() for image in rows]
    for name in ("alone", "saved", "parquet", "nested"):
        table = load_images(name)
        assert table.class_names == CLASSES
        for row, label in enumerate(table.labels[:12].tolist()):
            at = whole.index(table.read(row))
            assert dataset.features["label"].names[dataset[at]["label"]] == table.class_names[label]
        assert table.given_parts == (("train",) * 12 + ("test",) * 2 if name == "saved" else None)
        photos = Photos(name)
        assert photos.open(table.files[3]) is not None


LABELS: dict[str, Any] = {"picture": ("image", None), "label": ("label", [1, 0, 1, 0])}


def test_rows_of_a_part_without_labels_are_left_out_and_told(tmp_path: Path) -> None:
    root = save_hub(tmp_path / "ds", LABELS, splits=("train", "validation"))
    save_hub(tmp_path / "blank", LABELS | {"label": ("label", [-1] * 4)}, splits=("test",))
    shutil.copy(tmp_path / "blank/data/test-00000-of-00001.parquet", root / "data")
    table = load_images(f"hub:{root}")
    assert (len(table.files), set(table.given_parts or ())) == (8, {"train", "val"})
    assert table.left_out == {"in the part 'test' without a label": 4}


@pytest.mark.holds("No photo is passed over in silence")
def test_a_part_with_a_name_of_its_own_is_told(tmp_path: Path) -> None:
    table = load_images(f"hub:{save_hub(tmp_path / 'ds', LABELS, splits=('train', 'extra'))}")
    assert table.given_parts is None
    assert table.left_out == {"in the part 'extra' of the dataset, which is none of train, val and test": 4}


def test_labels_as_text_and_class_names_without_a_picture(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"picture": ("image", None), "kind": ("text", ["rose", "aster", "rose", "aster"])}
    table = load_images(f"hub:{save_hub(tmp_path / 'text', kinds, splits=('train',))}")
    assert (table.class_names, table.labels.tolist()) == (("aster", "rose"), [1, 0, 1, 0])
    whole = datasets.load_dataset(str(save_hub(tmp_path / "ds", LABELS, splits=("train",))), split="train")
    more = whole.cast_column("label", datasets.ClassLabel(names=["orchid", "tulip", "rose"]))
    more = more.map(lambda row: {"label": row["label"] + 1})
    more.to_parquet(tmp_path / "unused/train-00000-of-00001.parquet")
    table = load_images(str(tmp_path / "unused"))
    assert (table.class_names, table.labels.tolist()) == (("tulip", "rose"), [1, 0, 1, 0])
    assert table.notes == ("class names without a picture, which are left out: 'orchid'",)


def test_of_two_columns_of_labels_one_can_be_chosen(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "picture": ("image", None), "fine_label": ("label", [1, 0, 1, 0]), "coarse_label": ("label", [0, 0, 1, 1]),
    }  # fmt: skip
    source = f"hub:{save_hub(tmp_path / 'ds', columns, splits=('train',))}"
    table = load_images(source)
    assert table.labels.tolist() == [1, 0, 1, 0]
    assert "for another type --data.label-column coarse_label" in table.notes[0]
    assert load_images(source, label_column="coarse_label").labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="has no column of labels 'colour'; it has 'coarse_label', 'fine_label'"):
        load_images(source, label_column="colour")


# --- zips


def zip_with(path: Path, names: dict[bytes, int]) -> Path:
    """A zip whose names are these bytes, with these flags, as tools write them that zipfile is none of."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(len(names)):
            archive.writestr(f"{number:03d}" + "x" * (len(list(names)[number]) - 3), _picture(number))
    data = bytearray(path.read_bytes())
    for number, (name, flags) in enumerate(names.items()):
        placeholder = f"{number:03d}".encode() + b"x" * (len(name) - 3)
        for mark, flag_at, name_at in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
            at = -1
            while (at := data.find(mark, at + 1)) >= 0:
                if data[at + name_at : at + name_at + len(name)] == placeholder:
                    data[at + name_at : at + name_at + len(name)] = name
                    data[at + flag_at : at + flag_at + 2] = struct.pack("<H", flags)
    path.write_bytes(data)
    return path


def _picture(number: int) -> bytes:
    from tests.images import save

    return save(draw_image("rose", number), "PNG")


@pytest.mark.holds("One name is one class, from whatever system it came")
@pytest.mark.parametrize(
    ("encoding", "names", "classes"),
    [
        ("ascii", ["photos\\rose\\1.jpg", "photos\\tulip\\1.jpg"], {"rose", "tulip"}),
        ("utf-8", ["玫瑰花/1.jpg", "郁金香/1.jpg"], {"玫瑰花", "郁金香"}),
        ("cp437", ["Gänseblümchen/1.jpg", "rosé/1.jpg"], {"Gänseblümchen", "rosé"}),
    ],
)
def test_names_in_zips_are_what_they_were(encoding: str, names: list[str], classes: set[str], tmp_path: Path) -> None:
    packed = zip_with(tmp_path / "p.zip", {name.encode(encoding): 0 for name in names})
    assert set(load_images(str(packed)).class_names) == classes


@pytest.mark.holds("One name is one class, from whatever system it came")
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("gbk", "玫瑰花"), ("cp932", "さくら"), ("cp932", "香"), ("cp1251", "роза"), ("cp866", "роза"), ("cp949", "장미")],
)
def test_names_in_an_untold_code_page_are_refused(encoding: str, name: str, tmp_path: Path) -> None:
    packed = zip_with(tmp_path / "p.zip", {f"{name}/1.jpg".encode(encoding): 0, b"tulip/1.jpg": 0})
    told = refusal(packed)
    assert "in a code page that it does not tell" in told
    assert f"'{name}/1.jpg' ({encoding})" in told


def test_the_name_in_unicode_beside_the_other_is_taken(tmp_path: Path) -> None:
    raw, told = "玫瑰/1.jpg".encode("gbk"), "玫瑰/1.jpg".encode()
    content = b"\1" + struct.pack("<L", zlib.crc32(raw)) + told
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        info = zipfile.ZipInfo("x" * (len(raw) - 6) + "/1.jpg")
        info.extra = struct.pack("<HH", 0x7075, len(content)) + content
        archive.writestr(info, _picture(3))
        archive.writestr("tulip/1.jpg", _picture(4))
    data = (tmp_path / "p.zip").read_bytes()
    (tmp_path / "p.zip").write_bytes(data.replace(info.filename.encode(), raw))
    assert set(load_images(str(tmp_path / "p.zip")).class_names) == {"玫瑰", "tulip"}


@pytest.mark.holds("No photo is passed over in silence")
def test_an_unpacked_zip_that_a_cleaner_has_thinned_is_mended(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = zip_of(folder, folder.parent / "p.zip")
    table = load_images(str(packed))
    unpacked = Path(table.images.root)
    for name in ("rose/00.png", "tulip/03.png"):
        (unpacked / name).unlink()
    (unpacked / "daisy/01.png").write_bytes(b"cut")
    shutil.rmtree(unpacked / "rose")
    with caplog.at_level("INFO", logger="accel_flowers"):
        again = load_images(str(packed))
    assert again.files == table.files
    for row, name in enumerate(again.files):
        assert again.read(row) == (folder / name).read_bytes()
    assert "12 files of the unpacked zip gone" in caplog.text
