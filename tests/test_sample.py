"""The drawn sample data set: reproducible, honest about its difficulty, careful with folders."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from accel_flowers.core.errors import UserError
from accel_flowers.samples import draw as sample
from accel_flowers.samples.draw import draw_sample

CLASSES = ["daisy", "dandelion", "rose", "sunflower", "tulip"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.jpg")}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl+C on the third sunflower, when three classes are drawn already."""
    draw_sunflower = sample._FLOWERS["sunflower"]
    calls = 0

    def stop(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        draw_sunflower(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(sample._FLOWERS, "sunflower", stop)
    yield
    assert calls == 3


def test_draws_the_asked_number_of_rgb_images_in_a_folder_per_class(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "flowers"
    assert draw_sample(directory, images_per_class=3, image_size=40) == directory
    expected = [f"{name}/{name}_{number:04d}.jpg" for name in CLASSES for number in (1, 2, 3)]
    assert sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.*")) == expected
    for path in directory.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 40))
    assert [path.name for path in directory.parent.iterdir()] == ["flowers"], "no temporary folder stays behind"


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path) -> None:
    first, again, other = (
        contents(draw_sample(tmp_path / name, images_per_class=2, image_size=48, seed=seed))
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first), "every picture differs from every other"


def test_global_random_state_has_no_say_and_is_left_alone(tmp_path: Path) -> None:
    np.random.seed(1)
    first = contents(draw_sample(tmp_path / "first", images_per_class=1, image_size=32))
    after = np.random.random()
    np.random.seed(1)
    assert after == np.random.random()
    assert first == contents(draw_sample(tmp_path / "again", images_per_class=1, image_size=32))


def test_asking_for_more_keeps_the_first_images(tmp_path: Path) -> None:
    few = contents(draw_sample(tmp_path / "few", images_per_class=2, image_size=48))
    many = contents(draw_sample(tmp_path / "many", images_per_class=4, image_size=48))
    assert len(many) == 2 * len(few)
    assert few.items() <= many.items()


def test_colour_alone_does_not_tell_the_flowers_apart(tmp_path: Path) -> None:
    """Otherwise a model could look good without having learned any shape."""
    directory = draw_sample(tmp_path / "flowers", images_per_class=60, image_size=32)
    paths = sorted(directory.rglob("*.jpg"))
    colours = np.array([np.asarray(Image.open(path), dtype=float).mean(axis=(0, 1)) for path in paths])
    labels = np.array([path.parent.name for path in paths])
    train_x, test_x, train_y, test_y = train_test_split(colours, labels, test_size=0.2, stratify=labels, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_x, train_y)
    assert model.score(test_x, test_y) < 0.55


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "empty folder"])
@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_drawing_leaves_nothing_half_made(tmp_path: Path, existing: bool) -> None:
    directory = tmp_path / "flowers"
    if existing:
        directory.mkdir()
    with pytest.raises(KeyboardInterrupt):
        draw_sample(directory, images_per_class=4, image_size=32)
    assert list(tmp_path.rglob("*")) == ([directory] if existing else [])


def test_an_empty_folder_is_filled_even_when_standing_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_sample(Path("."), images_per_class=1, image_size=32)
    assert sorted(path.name for path in Path.cwd().iterdir()) == CLASSES


def test_a_folder_that_is_not_empty_is_refused_and_left_untouched(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "notes.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"mine' is not empty.*never overwrite.*new folder"):
        draw_sample(directory, images_per_class=1, image_size=32)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert (directory / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("name", ["taken", "taken/flowers"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=rf"Cannot write sample pictures to '.*{name}': .*Name another folder"):
        draw_sample(tmp_path / name, images_per_class=1, image_size=32)
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"images_per_class": 0}, "Cannot draw 0 images per class; ask for 1 or more"),
        ({"image_size": 31}, "Cannot draw pictures of 31 pixels; ask for 32 or more"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_sample(tmp_path / "flowers", **sizes)
    assert not list(tmp_path.iterdir())


def test_drawing_does_not_load_torch() -> None:
    code = "import sys, accel_flowers.samples.draw; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
