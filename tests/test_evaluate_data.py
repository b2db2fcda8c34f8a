"""What `evaluate` is given need not be what a training needs: parts of the classes are scored, and what is missing is told."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.inference.evaluate import evaluate
from tests.conftest import draw_image, make_folder
from tests.ranks import finish
from tests.runs import write_recipe
from tests.specs import change_spec

GANS = unicodedata.normalize("NFD", "gänse")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    photos = make_folder(folder / "photos", per_class=8)
    (photos / "daisy").rename(photos / GANS)
    recipe = write_recipe(folder / "recipe.yaml", train={"epochs": 1})
    finish(folder, ["train", recipe, "--data.path", photos, "--run-dir", folder / "run"])
    return folder / "run/model"


@pytest.mark.holds("A part of the classes is scored")
@pytest.mark.parametrize("empty", [False, True])
def test_one_class_and_empty_classes_are_scored_with_a_note(
    model: Path, empty: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_folder(tmp_path / "new", per_class=3, classes=("rose",))
    if empty:
        (photos / "tulip").mkdir()
    with caplog.at_level("INFO", logger="accel_flowers"):
        scores = evaluate(model, photos)
    assert (scores.num_images, scores.per_class["rose"].count, scores.per_class["tulip"].count) == (3, 3, 0)
    assert "2 of the model's 3 classes have no picture here" in caplog.text
    assert ("folders without a picture: 'tulip'" in caplog.text) == empty


@pytest.mark.holds("A part of the classes is scored")
@pytest.mark.parametrize("part", ["test", "val", "train"])
def test_a_part_alone_is_scored(model: Path, part: str, tmp_path: Path) -> None:
    make_folder(tmp_path / part, per_class=2, classes=("rose", "tulip"))
    scores = evaluate(model, tmp_path)
    assert scores.num_images == 4
    assert evaluate(model, tmp_path / part).num_images == 4


@pytest.mark.parametrize("recorded", ["no", "bf16", "fp16"])
def test_the_models_own_precision_scores_it_whatever_a_launcher_says(
    model: Path, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_folder(tmp_path / "new", per_class=2, classes=("rose",))
    own = shutil.copytree(model, tmp_path / "model")
    change_spec(own, precision=recorded)
    losses = set()
    for says in (None, "no", "bf16"):
        if says:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", says)
        with caplog.at_level("INFO", logger="accel_flowers"):
            losses.add(evaluate(own, photos).loss)
    assert len(losses) == 1
    assert ("in float32, because cpu has no fp16" in caplog.text) == (recorded == "fp16")


def test_classes_are_matched_in_any_form_of_their_name(model: Path, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "new", per_class=2, classes=("daisy",))
    (photos / "daisy").rename(photos / unicodedata.normalize("NFC", GANS))
    assert evaluate(model, photos).per_class[GANS].count == 2


@pytest.mark.holds("No photo is passed over in silence")
def test_what_is_left_out_is_told(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = make_folder(tmp_path / "new", per_class=2, classes=("rose", "tulip"))
    (photos / "notes.txt").touch()
    (photos / "rose/.hidden.jpg").touch()
    with caplog.at_level("INFO", logger="accel_flowers"):
        assert evaluate(model, photos).num_images == 4
    assert "1 file that is no picture by name, for example notes.txt" in caplog.text
    assert "left out: 1 hidden" in caplog.text
    (photos / "rose/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photos / "rose/gone.jpg").symlink_to("nowhere")
    with pytest.raises(UserError) as caught:
        evaluate(model, photos)
    told = str(caught.value)
    assert told.startswith("2 pictures of")
    assert "rose/IMG_1.HEIC: a HEIC photo, a kind that is not read here" in told
    assert "rose/gone.jpg: a link to a file that is not there" in told
    assert "Convert a HEIC photo to JPEG, mend or remove the others." in told.splitlines()[-1]


def test_a_csv_of_labels_is_scored(model: Path, tmp_path: Path) -> None:
    draw_image("rose", 1).save(tmp_path / "1.png")
    draw_image("tulip", 1).save(tmp_path / "2.png")
    (tmp_path / "labels.csv").write_text("file,height,flower\n1.png,3,rose\n2.png,4,tulip\n")
    assert evaluate(model, tmp_path, label_column="flower").num_images == 2
    shutil.rmtree(tmp_path)
