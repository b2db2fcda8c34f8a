"""One walk, one set of rules: what a training takes of a folder, a prediction takes, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.walk import FAR_LINK, HIDDEN, NO_IMAGE, OWN, find_files, walk
from accel_flowers.inference.predict import find_images
from tests.conftest import draw_image


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Two classes, and all that may lie beside images."""
    root = make(
        tmp_path / "photos", "a/1.jpg", "a/2.JPG", "a/__3.png", "a/.4.jpg", "a/notes.txt", "b/1.webp", "b/.git/5.jpg",
        "__MACOSX/6.jpg", "__pycache__/7.jpg",
    )  # fmt: skip
    make(tmp_path / "elsewhere", "8.jpg", "deep/9.jpg")
    (root / "c").symlink_to(tmp_path / "elsewhere")  # a linked class
    (root / "b/up").symlink_to(root)  # it leads back up
    (root / "b/gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "a/pipe.jpg")
    (root / "a/empty.jpg").mkdir()
    return root


def test_what_is_found_and_what_is_left_out(odd: Path) -> None:
    found = walk(odd)
    assert sorted(found.files) == [
        "__pycache__/7.jpg", "a/1.jpg", "a/2.JPG", "a/__3.png", "b/1.webp", "c/8.jpg", "c/deep/9.jpg",
    ]  # fmt: skip
    assert found.unreadable == {
        "a/empty.jpg": "a folder, not a picture",
        "a/pipe.jpg": "not a regular file",
        "b/gone.jpg": "a link to a file that is not there",
    }
    assert found.ignored == ["a/notes.txt", "b/up"]
    assert found.left_out == {HIDDEN: 3, NO_IMAGE: 1, FAR_LINK: 1}


def test_a_prediction_takes_what_a_training_takes(odd: Path, caplog: pytest.LogCaptureFixture) -> None:
    (odd / "c/deep/9.jpg").unlink()  # a training would refuse the layout
    (odd / "c/deep").rmdir()
    table = load_images(str(odd))
    taken = {*table.files, *table.unreadable}
    with caplog.at_level("INFO", logger="accel_flowers"):
        assert {file.relative_to(odd).as_posix() for file in find_images([odd])} == taken
    assert caplog.messages == [
        "left out: 3 hidden, 1 links to folders that are not followed, 1 not named like a picture"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_listed_is_an_error_for_all(odd: Path) -> None:
    (odd / "b").chmod(0)
    try:
        for act in (lambda: load_images(str(odd)), lambda: find_files([odd]), lambda: find_files([odd / "*"])):
            with pytest.raises(UserError, match=r"The folder '.*/b' cannot be read: Permission denied"):
                act()
    finally:
        (odd / "b").chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_an_error(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the tests run as root."""
    really = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for act in (lambda: load_images(str(odd)), lambda: find_files([odd])):
        with pytest.raises(UserError, match=r"The folder '.*/b' cannot be read: Permission denied"):
            act()


def test_what_several_patterns_match_is_counted_once(odd: Path) -> None:
    whole = find_files([odd])
    below = find_files([odd / "**"])
    assert sorted(below.files) == sorted(whole.files)
    assert below.left_out == whole.left_out
    images = [file for file in whole.files if file.suffix == ".jpg" and "empty" not in file.name]
    assert find_files([odd / "**/[!e]*.jpg"]).files == sorted(images)


@pytest.mark.holds("No photo is passed over in silence")
def test_photos_of_other_kinds_and_without_a_suffix_are_images(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "a/1.HEIC", "a/2.avif", "a/3.jp2", "a/4.NEF", "a/5.dng", "a/notes", "a/list.txt")
    for name in ("b/6", "b/7.jpg_large", "b/8.jpeg?w=300", "b/9.png~"):
        (root / name).parent.mkdir(exist_ok=True)
        draw_image("rose", 1).save(root / name, format="PNG")
    (root / "b/10").write_text("no image")
    os.mkfifo(root / "b/pipe")
    found = walk(root)
    assert sorted(found.files) == [
        "a/1.HEIC", "a/2.avif", "a/3.jp2", "a/4.NEF", "a/5.dng", "b/6", "b/7.jpg_large", "b/8.jpeg?w=300", "b/9.png~",
    ]  # fmt: skip
    assert sorted(found.ignored) == ["a/list.txt", "a/notes", "b/10", "b/pipe"]


@pytest.mark.holds("No photo is passed over in silence")
def test_what_the_program_wrote_itself_is_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path / "photos", "a/1.jpg", "b/1.jpg", "runs/x/plots/loss.png", "runs/y/plots/loss.png")
    make(root, "runs/x/config.yaml", "runs/x/split.json", "runs/y/.lock", "runs/y/checkpoints/last")
    make(root, "b/model/config.json", "b/model/model.safetensors", "b/model/x.png")
    make(root, "wandb/latest-run", "wandb/offline-run-1/files/media/x.png")
    found = walk(root)
    assert sorted(found.files) == ["a/1.jpg", "b/1.jpg"]
    assert found.left_out == {OWN: 4}
    assert found.empty_folders == []
    assert load_images(str(root)).class_names == ("a", "b")
    for asked in ([root], [root / "**"], [root / "**/*.*g"], [root / "*"]):
        assert sorted(find_files(asked).files) == [root / "a/1.jpg", root / "b/1.jpg"], asked


def test_an_empty_answer_says_what_was_left_out(tmp_path: Path) -> None:
    make(tmp_path / "x", "notes.txt", ".hidden.jpg")
    with pytest.raises(UserError, match=r"No pictures in '.*' \(left out: 1 hidden, 1 not named like a picture\)"):
        find_files([tmp_path / "x"])
