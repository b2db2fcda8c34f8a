"""Image folders, zips and hub datasets as people have them: what is read out of them, and what is refused and why."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.table import ImageTable
from tests.conftest import CLASSES, draw_image, make_folder


def put(root: Path, *names: str) -> Path:
    """An image under each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image("rose", number).save(root / name, format="PNG")
    return root


def zip_of(folder: Path, path: Path, *, inside: str = "", extra: dict[str, bytes] | None = None) -> Path:
    """A zip of what lies in `folder`, below the folder `inside`."""
    files = sorted(folder.rglob("*"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, inside + file.relative_to(folder).as_posix())
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def classes_of(table: ImageTable) -> dict[str, str]:
    """File → name of its class."""
    return {name: table.class_names[label] for name, label in zip(table.files, table.labels, strict=True)}


def check_rows(table: ImageTable, root: Path) -> None:
    """Each row holds the image that its name says."""
    assert len(table.images) == len(table.files) == len(table.labels)
    assert table.images.labels.tolist() == table.labels.tolist()
    assert table.images.class_names == table.class_names
    for row, name in enumerate(table.files):
        assert table.read(row) == (root / name).read_bytes()
        assert table.row_of(name) == row


def refusal(source: Path | str) -> str:
    """The message with which a source is refused."""
    with pytest.raises(UserError) as error:
        load_images(str(source))
    return str(error.value)


# --- class folders


def test_class_folders(folder: Path) -> None:
    table = load_images(str(folder))
    assert table.class_names == CLASSES
    assert table.files == tuple(f"{name}/{number:02d}.png" for name in CLASSES for number in range(10))
    assert table.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert table.labels.dtype == np.int64
    assert (table.given_parts, table.unreadable, table.ignored) == (None, {}, ())
    check_rows(table, folder)


@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "jpe", "jfif", "png", "PnG", "apng", "webp", "gif", "tif",
                                    "tiff", "bmp", "ppm", "pgm", "pbm", "pnm"])  # fmt: skip
def test_endings_of_images(ending: str, tmp_path: Path) -> None:
    table = load_images(str(put(tmp_path, f"a/1.{ending}", f"b/2.{ending}")))
    assert table.files == (f"a/1.{ending}", f"b/2.{ending}")


NAMES = ["a b", " lead", "it's", 'say "x"', "[1]", "[!a]*", "?", "{a,b}", "new\nline", "tab\t", "玫瑰", "цветок", "é",
         "e\u0301", "#1", "50%", "%20", "a:b", "zip:--x", "http:x", "~", "-x", "_x", "__x", "a..b", "back\\slash", "$5", "$",
         "metadata", "data"]  # fmt: skip


@pytest.mark.parametrize("odd", NAMES)
def test_odd_names_of_files_classes_and_folders(odd: str, tmp_path: Path) -> None:
    names = [f"{odd}/1.jpg", "other/1.jpg", f"other/{odd}.jpg"]
    root = put(tmp_path / odd, *names)
    table = load_images(str(root))
    assert classes_of(table) == {name: name.split("/")[0] for name in names}
    check_rows(table, root)


@hypothesis.settings(max_examples=30)
@given(
    st.sets(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0:$"), max_size=8).map("x{}x".format),
        min_size=2,
        max_size=4,
    )
)
def test_any_name_of_a_class_is_taken_as_it_is(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        put(Path(root), *(f"{name}/{name}.jpg" for name in names))
        assert load_images(root).class_names == tuple(sorted(names))


@pytest.mark.parametrize("name", ["train x", "test-rose", "x-train", "training set", "val.", "test_", "0_train"])
def test_classes_whose_names_hold_the_name_of_a_part(name: str, tmp_path: Path) -> None:
    table = load_images(str(put(tmp_path, f"{name}/1.jpg", "other/1.jpg", "rose/1.jpg")))
    assert classes_of(table) == {f"{name}/1.jpg": name, "other/1.jpg": "other", "rose/1.jpg": "rose"}
    assert table.given_parts is None


@pytest.mark.parametrize("above", ["train", "test", ".hidden", "__special__"])
def test_name_of_the_folder_itself_does_not_matter(above: str, tmp_path: Path) -> None:
    for root in (make_folder(tmp_path / above, per_class=1), make_folder(tmp_path / "2" / above / "p", per_class=1)):
        table = load_images(str(root))
        assert table.class_names == CLASSES
        assert table.given_parts is None


def test_table_does_not_depend_on_the_order_in_which_files_were_made(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("b", "a", "a b", "C", "ä", "10", "9") for number in (10, 9, 1)]
    seen = set()
    for attempt in range(4):
        random.Random(attempt).shuffle(names)
        table = load_images(str(put(tmp_path / str(attempt), *names)))
        seen.add((table.files, table.class_names, tuple(table.labels)))
    assert len(seen) == 1
    assert table.class_names == ("10", "9", "C", "a", "a b", "b", "ä")
    assert list(table.files) == sorted(names)


def test_path_may_be_relative_linked_or_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "link").symlink_to(folder)
    (folder.parent / "beside").mkdir()
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for source in ("photos", "./photos/", "link", "~/photos", "beside/../photos", str(folder) + "/"):
        table = load_images(source)
        assert len(table.files) == 30, source
        check_rows(table, folder)


def test_home_of_nobody_is_a_missing_folder() -> None:
    assert refusal("~no-such-user/photos").startswith("There is no folder '~no-such-user/photos'.")


def test_images_added_and_removed_between_two_readings(folder: Path) -> None:
    assert len(load_images(str(folder)).files) == 30
    put(folder, "rose/new.jpg")
    (folder / "daisy/03.png").unlink()
    table = load_images(str(folder))
    assert len(table.files) == 30
    assert "rose/new.jpg" in table.files
    check_rows(table, folder)
    put(folder, "aster/1.jpg")
    assert load_images(str(folder)).class_names == ("aster", *CLASSES)


def test_changed_image_is_read_anew(folder: Path) -> None:
    before = load_images(str(folder))
    draw_image("tulip", 77, (8, 8)).save(folder / "rose/00.png")
    check_rows(before, folder)
    check_rows(load_images(str(folder)), folder)


def test_other_files_are_ignored_and_told(folder: Path) -> None:
    for name in ("LICENSE.txt", "metadata.csv", "rose/metadata.jsonl", "rose/IMG.gpx", "tulip/noending", "icon.ico"):
        (folder / name).write_text("x")
    zip_of(folder / "rose", folder / "backup.zip")
    shutil.copy(folder / "backup.zip", folder / "rose/backup.zip")
    table = load_images(str(folder))
    assert len(table.files) == 30
    assert set(table.ignored) == {"LICENSE.txt", "metadata.csv", "rose/metadata.jsonl", "rose/IMG.gpx",
                                  "tulip/noending", "icon.ico", "backup.zip", "rose/backup.zip"}  # fmt: skip


def test_hidden_files_are_passed_over(folder: Path) -> None:
    put(folder, ".1.png", ".git/1.png", "rose/._00.png", "rose/.cache/1.png", "__MACOSX/rose/1.png")
    table = load_images(str(folder))
    assert len(table.files) == 30
    assert (table.unreadable, table.ignored) == ({}, ())


def test_links_to_images_and_folders_are_followed(folder: Path) -> None:
    store = folder.parent / "store"
    shutil.move(folder / "rose", store / "rose")
    (folder / "rose").symlink_to(store / "rose")
    shutil.move(folder / "daisy/00.png", store / "00.png")
    (folder / "daisy/00.png").symlink_to(store / "00.png")
    table = load_images(str(folder))
    assert len(table.files) == 30
    check_rows(table, folder)


def test_link_back_up_is_no_endless_walk(folder: Path) -> None:
    (folder / "rose/up").symlink_to(folder)
    (folder / "again").symlink_to(".")
    table = load_images(str(folder))
    assert len(table.files) == 30
    assert table.ignored == ("again", "rose/up")


def test_what_looks_like_a_image_and_is_none(folder: Path) -> None:
    (folder / "rose/broken.jpg").symlink_to("nowhere.jpg")
    (folder / "rose/self.jpg").symlink_to("self.jpg")
    (folder / "rose/folder.jpg").mkdir()
    os.mkfifo(folder / "rose/pipe.jpg")
    table = load_images(str(folder))
    assert len(table.files) == 30
    assert table.unreadable == {
        "rose/broken.jpg": "a link to a file that is not there",
        "rose/self.jpg": "a link to a file that is not there",
        "rose/folder.jpg": "a folder, not a picture",
        "rose/pipe.jpg": "not a regular file",
    }


def test_class_of_unreadable_files_alone_stays_a_class(folder: Path) -> None:
    """Whether to go on without it is not decided here."""
    (folder / "poppy").mkdir()
    (folder / "poppy/1.jpg").symlink_to("nowhere.jpg")
    table = load_images(str(folder))
    assert table.class_names == ("daisy", "poppy", "rose", "tulip")
    assert set(classes_of(table).values()) == set(CLASSES)


# --- train, val and test folders


def make_parts(root: Path, *folders: str, classes: Sequence[str] = ("a", "b")) -> Path:
    return put(root, *(f"{part}/{label}/{number}.jpg" for part in folders for label in classes for number in (1, 2)))


@pytest.mark.parametrize(
    "folders",
    [("train", "val", "test"), ("train", "test"), ("train", "val"), ("Training", "VALID", "Testing"),
     ("train", "validation", "evaluation"), ("training", "dev", "eval")],
    ids="-".join,
)  # fmt: skip
def test_split_folders(folders: tuple[str, ...], tmp_path: Path) -> None:
    meaning = {"trai": "train", "vali": "val", "val": "val", "dev": "val", "test": "test", "eval": "test"}
    root = make_parts(tmp_path, *folders)
    table = load_images(str(root))
    assert table.class_names == ("a", "b")
    assert table.given_parts == tuple(meaning[name.split("/")[0].lower()[:4]] for name in table.files)
    assert classes_of(table) == {name: name.split("/")[1] for name in table.files}
    assert len(table.files) == 4 * len(folders)
    check_rows(table, root)


def test_split_folders_may_lack_classes_outside_train(tmp_path: Path) -> None:
    root = put(make_parts(tmp_path, "train", classes=("a", "b", "c")), "val/a/1.jpg", "test/c/1.jpg")
    table = load_images(str(root))
    assert classes_of(table)["test/c/1.jpg"] == "c"
    assert table.labels[table.files.index("val/a/1.jpg")] == 0


# --- what is refused


def tree(*names: str) -> Callable[[Path], Path]:
    """Images under these names; a name with "/" at the end is an empty folder."""

    def make(root: Path) -> Path:
        for name in names:
            if name.endswith("/"):
                (root / name).mkdir(parents=True)
        return put(root, *(name for name in names if not name.endswith("/")))

    return make


GOOD = ("daisy/1.jpg", "rose/1.jpg", "tulip/1.jpg")
LAYOUT = r"Pictures belong in one sub-folder per class \(DIR/rose/1\.jpg\), or in DIR/train/rose, DIR/val/rose, DIR/test/rose\."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(tree("./"), rf"'DIR' holds no pictures\. {LAYOUT}", id="empty folder"),
        pytest.param(tree("a/", "b/"), rf"'DIR' holds no pictures\. {LAYOUT}", id="empty classes only"),
        pytest.param(
            tree("rose/1.jpg", "rose/2.jpg"),
            rf"'DIR' has one class only \('rose'\); a classifier needs two or more\. {LAYOUT}",
            id="one class",
        ),
        pytest.param(
            tree(*GOOD, "poppy/", "weed/"),
            r"'DIR' has folders without a picture: 'poppy', 'weed'\. Fill or remove them\.",
            id="empty class",
        ),
        pytest.param(
            tree(*GOOD, "1.jpg"),
            rf"1 picture of 'DIR' not in a class folder, for example '1\.jpg'\. {LAYOUT} Move or remove them",
            id="stray picture at the top",
        ),
        pytest.param(
            tree("1.jpg", "2.jpg"),
            r"2 pictures of 'DIR' not in a class folder, for example '1\.jpg'\. Pictures belong",
            id="pictures without classes",
        ),
        pytest.param(
            tree("flowers/rose/1.jpg", "flowers/daisy/1.jpg"),
            r"2 pictures of 'DIR' not in a class folder, .*Did you mean DIR/flowers\? ",
            id="one folder too high",
        ),
        pytest.param(
            tree("flowers/train/rose/1.jpg", "flowers/test/rose/1.jpg"),
            r"2 pictures of 'DIR' not in a class folder, .*Did you mean DIR/flowers\? ",
            id="one folder too high, with split folders",
        ),
        pytest.param(
            tree("flowers/1.jpg", "flowers/rose/1.jpg"),
            r"1 picture of 'DIR' not in a class folder, for example 'flowers/rose/1\.jpg'\. Pictures belong",
            id="one folder too high and stray: no hint that leads nowhere",
        ),
        pytest.param(
            tree(*GOOD, "test/rose/1.jpg", "train/rose/1.jpg"),
            r"'DIR' holds folders that look like parts of a split \('test', 'train'\) beside classes "
            rf"\('daisy', 'rose', 'tulip'\)\. {LAYOUT} If these really are classes, rename them\.",
            id="split folders beside classes",
        ),
        pytest.param(
            tree("Test/1.jpg", "rose/1.jpg"),
            r"'DIR' holds folders that look like parts of a split \('Test'\) beside classes \('rose'\)\.",
            id="class called Test",
        ),
        pytest.param(
            tree("train/1.jpg", "test/1.jpg"),
            r"'DIR' holds folders that look like parts of a split \('test', 'train'\) with pictures of no class\.",
            id="split folders without classes",
        ),
        pytest.param(
            tree("train/a/1.jpg", "train/b/1.jpg", "training/a/1.jpg", "val/a/1.jpg"),
            r"'DIR' has two folders for one part of the split: 'train', 'training', 'val'\. Join them\.",
            id="two folders for one part",
        ),
        pytest.param(
            tree("val/a/1.jpg", "test/b/1.jpg"),
            r"'DIR' has 'test', 'val': it needs train, and val or test beside it\.",
            id="no train",
        ),
        pytest.param(
            tree("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg", "test/d/1.jpg"),
            r"'DIR/train' lacks the classes 'c', 'd', so they could not be learned\.",
            id="class that train lacks",
        ),
        pytest.param(
            tree("train/a/1.jpg", "train/b/1.jpg", "train/c/", "val/a/1.jpg"),
            r"'DIR' has folders without a picture: 'train/c'\. Fill or remove them\.",
            id="empty class in a split folder",
        ),
        pytest.param(
            tree("train/a/1.jpg", "train/b/1.jpg", "test/"),
            r"'DIR' has folders without a picture: 'test'\. Fill or remove them\.",
            id="empty split folder",
        ),
        pytest.param(
            tree("train/a/1.jpg", "val/a/1.jpg"), r"'DIR' has one class only \('a'\)", id="one class in split folders"
        ),
        pytest.param(
            tree("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/2.jpg"),
            r"1 picture of 'DIR' not in a class folder, for example 'val/2\.jpg'\.",
            id="stray picture in a split folder",
        ),
        pytest.param(
            tree(*GOOD, os.fsdecode(b"rose/caf\xe9.jpg")),
            r"The name 'rose/caf\\udce9\.jpg' is not UTF-8\. Rename it\.",
            id="name that is not UTF-8",
        ),
    ],
)
def test_layouts_that_are_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    root = make(tmp_path / "photos")
    told = refusal(root)
    assert re.match(message, told.replace(str(root), "DIR")), told


@pytest.mark.parametrize("name", ["a::b/1.jpg", "rose/$HOME.jpg", "rose/~.jpg"])
def test_names_that_other_programs_would_take_for_something_else(name: str, tmp_path: Path) -> None:
    root = tree(*GOOD, name)(tmp_path)
    table = load_images(str(root))
    assert name in table.files
    check_rows(table, root)


def test_many_names_in_a_message_are_cut(tmp_path: Path) -> None:
    told = refusal(tree(*GOOD, *(f"empty{number:02d}/" for number in range(14)))(tmp_path))
    assert "'empty09' and 4 more." in told


def test_only_unreadable_images(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.jpg").symlink_to("nowhere")
    assert "holds no readable picture" in refusal(tmp_path)


def test_folder_that_may_not_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rights themselves cannot be taken from root, who runs tests in containers."""
    really = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("rose"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(folder) == f"The folder '{folder}/rose' cannot be read: Permission denied."


@pytest.mark.parametrize("name", ["photos.tar.gz", "rose.jpg", "notes"])
def test_file_instead_of_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    told = refusal(tmp_path / name)
    assert re.search(rf"{name}' is a file that is no \.zip\. {LAYOUT}", told)


def test_missing_folder() -> None:
    assert re.fullmatch(rf"There is no folder '/no/such/photos'\. {LAYOUT}", refusal("/no/such/photos"))
    assert re.fullmatch(rf"There is no folder 'photoz'\. {LAYOUT}", refusal("photoz"))


def test_missing_folder_that_could_be_a_name_on_the_hub() -> None:
    told = refusal("someone/flowers")
    assert (
        "There is no folder 'someone/flowers'. For a dataset of the Hugging Face hub type hub:someone/flowers." in told
    )


# --- zips


@pytest.mark.parametrize("inside", ["", "flowers/", "a/b/flowers/", "new folder (1)/"])
@pytest.mark.parametrize("extra", [{}, {"LICENSE.txt": b"x"}], ids=["pictures", "and a licence"])
def test_zip(inside: str, extra: dict[str, bytes], folder: Path) -> None:
    packed = zip_of(folder, folder.parent / "p.zip", inside=inside, extra={inside + k: v for k, v in extra.items()})
    table = load_images(str(packed))
    plain = load_images(str(folder))
    assert (table.files, table.class_names, table.labels.tolist()) == (
        plain.files, plain.class_names, plain.labels.tolist(),
    )  # fmt: skip
    assert table.ignored == tuple(extra)
    check_rows(table, folder)


def test_zip_with_a_file_beside_the_inner_folder(folder: Path) -> None:
    packed = zip_of(folder, folder.parent / "p.zip", inside="flowers/", extra={"README.md": b"x"})
    assert load_images(str(packed)).class_names == CLASSES


def test_zip_with_split_folders_inside_a_folder(tmp_path: Path) -> None:
    packed = zip_of(make_parts(tmp_path / "p", "train", "test"), tmp_path / "p.ZIP", inside="flowers/")
    assert set(load_images(str(packed)).given_parts or ()) == {"train", "test"}


def test_zip_with_upper_case_endings(tmp_path: Path) -> None:
    packed = zip_of(put(tmp_path / "p", "a/1.JPG", "b/1.PNG"), tmp_path / "p.zip")
    assert load_images(str(packed)).files == ("a/1.JPG", "b/1.PNG")


def test_zip_from_a_mac(folder: Path) -> None:
    extra = {"__MACOSX/flowers/rose/._00.png": b"x", "flowers/.DS_Store": b"x", "flowers/rose/._00.png": b"x"}
    table = load_images(str(zip_of(folder, folder.parent / "p.zip", inside="flowers/", extra=extra)))
    assert len(table.files) == 30
    assert (table.unreadable, table.ignored) == ({}, ())


def test_zip_with_one_class_and_with_stray_images(tmp_path: Path) -> None:
    one = zip_of(put(tmp_path / "1", "rose/1.jpg", "rose/2.jpg"), tmp_path / "1.zip", inside="flowers/")
    assert "has one class only ('rose')" in refusal(one)
    stray = zip_of(put(tmp_path / "2", "rose/1.jpg", "2.jpg"), tmp_path / "2.zip", inside="flowers/")
    assert "not in a class folder" in refusal(stray)


def test_zip_without_anything(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "p.zip", "w").close()
    assert "p.zip' holds no pictures." in refusal(tmp_path / "p.zip")


def test_zip_is_unpacked_once_and_anew_when_it_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zip_of(folder, folder.parent / "p.zip")
    unpacked = []
    really = zipfile.ZipFile.extract

    def extract(self: zipfile.ZipFile, member: Any, path: Any = None, pwd: bytes | None = None) -> str:
        unpacked.append(member.filename)
        return really(self, member, path, pwd)

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    assert len(load_images(str(packed)).files) == len(unpacked) == 30
    assert len(load_images(str(packed)).files) == len(unpacked) == 30
    put(folder, "aster/1.jpg")
    zip_of(folder, packed)
    assert load_images(str(packed)).class_names == ("aster", *CLASSES)
    assert len(unpacked) == 61


def test_zip_that_two_runs_unpack_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run is done first: its folder is taken, and nothing is left over."""
    packed = zip_of(folder, folder.parent / "p.zip")
    really = zipfile.ZipFile.extract
    targets = []

    def extract(self: zipfile.ZipFile, member: Any, path: Path, pwd: bytes | None = None) -> str:
        if not targets:
            targets.append(path.with_suffix("").with_suffix(""))
            shutil.copytree(folder, targets[0])
        return really(self, member, path, pwd)

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    assert len(load_images(str(packed)).files) == 30
    assert [entry.name for entry in targets[0].parent.glob(f"{targets[0].name}*")] == [targets[0].name]


def spoil(packed: Path, how: str) -> None:
    data = bytearray(packed.read_bytes())
    if how == "text":
        data = bytearray(b"<html>404</html>")
    elif how == "cut short":
        del data[len(data) // 2 :]
    elif how == "nothing":
        data.clear()
    elif how == "encrypted":
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            for found in re.finditer(re.escape(mark), bytes(data)):
                data[found.start() + offset] |= 1
    packed.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "cause"),
    [("text", "File is not a zip file"), ("cut short", "File is not a zip file"), ("nothing", "File is not a zip file"),
     ("encrypted", "File .* is encrypted, password required for extraction")],
)  # fmt: skip
def test_zip_that_is_none(how: str, cause: str, folder: Path) -> None:
    packed = zip_of(folder, folder.parent / "p.zip")
    spoil(packed, how)
    assert re.search(rf"The zip '.*p\.zip' cannot be unpacked: {cause}\.$", refusal(packed))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_with_flipped_bytes_is_read_or_refused(method: int, tmp_path: Path) -> None:
    """Wherever a byte flips: never anything but the images or a message, and nothing half unpacked stays."""
    packed = tmp_path / "p.zip"
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in ("a/1.jpg", "b/1.jpg"):
            archive.writestr(name, name.encode() * 9)
    whole = packed.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_images(str(packed))
        except UserError:
            refused += 1
    assert refused > 10
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "accel_flowers_zip"
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("name", ["../evil/1.jpg", "/etc/1.jpg", "a/../../1.jpg"])
def test_zip_that_leads_out_of_its_folder(name: str, folder: Path) -> None:
    packed = zip_of(folder, folder.parent / "p.zip", extra={name: b"x"})
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "accel_flowers_zip"
    before = set(cache.glob("*"))
    told = refusal(packed)
    assert f"p.zip' holds '{name}', which leads out of its folder. Make it anew." in told
    assert set(cache.glob("*")) == before


# --- the hub, of which a folder of parquet files is the offline double


def save_hub(root: Path, columns: dict[str, Any], *, splits: Sequence[str] = ("train", "test"), rows: int = 4) -> Path:
    """A dataset as the hub has them: parquet files with columns of images (bytes) and of labels."""
    image = {"bytes": (put(root / "..", "x.png") / "x.png").read_bytes(), "path": None}
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["tulip", "rose"]),
        "text": datasets.Value("string"),
    }
    (root / "data").mkdir(parents=True)
    for split in splits:
        values: dict[str, list[Any]] = {
            name: [image] * rows if kind == "image" else given if isinstance(given, list) else [given] * rows
            for name, (kind, given) in columns.items()
        }
        features = datasets.Features({name: kinds[kind] for name, (kind, _) in columns.items()})
        table = datasets.Dataset.from_dict(values, features=features)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


COLUMNS: dict[str, Any] = {"picture": ("image", None), "fine": ("label", [1, 0, 1, 1]), "note": ("text", "x")}


def test_hub_dataset(tmp_path: Path) -> None:
    table = load_images(f"hub:{save_hub(tmp_path / 'ds', COLUMNS)}")
    assert table.class_names == ("tulip", "rose")
    assert table.labels.tolist() == [1, 0, 1, 1] * 2
    assert table.given_parts == ("train",) * 4 + ("test",) * 4
    assert table.files[:1] + table.files[-1:] == ("train/00000000", "test/00000003")
    assert table.read(7) == (tmp_path / "x.png").read_bytes()
    assert pickle.loads(pickle.dumps(table.images)).read(7) == table.read(7)


def test_hub_dataset_with_train_alone_has_no_parts(tmp_path: Path) -> None:
    table = load_images(f"hub:{save_hub(tmp_path / 'ds', COLUMNS, splits=('train',))}")
    assert table.given_parts is None
    assert len(table.files) == 4


@pytest.mark.parametrize(
    ("columns", "splits", "message"),
    [
        pytest.param(
            {"image": ("image", None), "note": ("text", "x"), "more": ("text", "y")}, ("train",),
            "needs one column of pictures and one of class labels, it has 2 of labels: image, note, more. Say which with "
            "--data.label-column NAME", id="no labels",
        ),
        pytest.param(
            {"a": ("label", 0), "b": ("label", 1)}, ("train",),
            "needs one column of pictures and one of class labels, it has 0 of pictures: a, b", id="no pictures",
        ),
        pytest.param(COLUMNS, ("test",), "has the parts 'test'; train is needed, val and test are known", id="no train"),
        pytest.param(
            COLUMNS | {"fine": ("label", [1, 0, -1, None])}, ("train",), "2 pictures of the dataset .* without a label",
            id="pictures without label",
        ),
    ],
)  # fmt: skip
def test_hub_datasets_that_are_refused(
    columns: dict[str, Any], splits: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert re.search(message, refusal(f"hub:{save_hub(tmp_path / 'ds', columns, splits=splits)}"))


@pytest.mark.parametrize("name", ["someone/flowers", "beans", "a/b/c"])
def test_hub_without_network_says_so_at_once(name: str) -> None:
    begun = time.monotonic()
    told = refusal(f"hub:{name}")
    assert time.monotonic() - begun < 5
    assert told.startswith(f"The dataset '{name}' of the Hugging Face hub cannot be loaded: ")
    assert told.endswith("Check the name and the network, or give a folder of your own: --data.path DIR.")


def test_hub_without_a_name() -> None:
    assert refusal("hub:") == "'hub:' names no dataset: type hub:OWNER/NAME."
