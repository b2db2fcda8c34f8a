"""What a model has seen in its training: recorded in `model/`, told by `evaluate`, and the others scored apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.data.split import load_split
from accel_flowers.data.table import content_digest
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.models.seen import SEEN_FILE, load_seen, save_seen, short_digests
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import tiny_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(scope="module")
def run_dir(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained on 30, chose by 3, and never saw 3."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(photos, run_dir, train={"epochs": 1}))
    return run_dir


@pytest.mark.holds("`evaluate` says how many of the pictures the model knows, and scores the others apart")
def test_a_model_records_what_it_was_trained_on(run_dir: Path, photos: Path) -> None:
    split, seen = load_split(run_dir / "split.json"), load_seen(run_dir / "model")
    assert seen is not None
    for part in ("train", "val"):
        digests = short_digests([content_digest((photos / file).read_bytes()) for file in split.files_of(part)])
        np.testing.assert_array_equal(seen[part], np.sort(digests))
    assert (run_dir / "model" / SEEN_FILE).stat().st_size < 33 * 8 + 300


@pytest.mark.holds("`evaluate` says how many of the pictures the model knows, and scores the others apart")
def test_evaluate_tells_known_images_from_others(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known by their content: under other names, in another folder, they are the same."""
    moved = tmp_path / "moved"
    for file in photos.rglob("*.png"):
        target = moved / file.parent.name / f"renamed-{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    whole = evaluate(run_dir / "model", moved)
    assert evaluate(run_dir, moved).seen == whole.seen, "a run is taken for its model"
    test = evaluate(run_dir / "model", photos, split_file=run_dir / "split.json", part="test")
    assert whole.num_images == 36
    assert whole.seen is not None
    assert (whole.seen.train, whole.seen.val) == (30, 3)
    assert whole.seen.others is not None
    assert whole.seen.others.accuracy == test.accuracy
    assert whole.seen.others.loss == pytest.approx(test.loss, abs=1e-6)
    assert test.seen is not None
    assert (test.seen.train, test.seen.val, test.seen.others) == (0, 0, None)

    def said(*words: object) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", str(run_dir / "model"), *map(str, words)])
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    text = said("--data", moved)
    assert "always one of the 3 largest classes would get 0.3333 of them right, guessing 0.3333" in text
    assert "30 of these 36 trained this model and 3 chose its best epoch" in text
    assert f"3 that it has not seen: accuracy {test.accuracy:.4f}" in text
    assert json.loads(said("--data", moved, "--json"))["seen"]["others"]["num_images"] == 3
    split = ("--split", run_dir / "split.json", "--part")
    assert "trained this model" not in said("--data", photos, *split, "test")
    text = said("--data", photos, *split, "val")
    assert "3 of these 3 chose its best epoch" in text
    assert "None is new to it" in text


def test_a_model_of_an_earlier_version_says_nothing(run_dir: Path, photos: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run_dir / "model", tmp_path / "model"))
    (model / SEEN_FILE).unlink()
    scores = evaluate(model, photos)
    assert scores.seen is None
    assert "seen" not in scores.as_json()


@pytest.mark.parametrize("damage", ["bytes", "names", "kind", "pipe"])
def test_a_damaged_record_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / SEEN_FILE
    if damage == "bytes":
        path.write_bytes(b"\xff" * 40)
    elif damage == "names":
        save_file({"train": np.zeros(2, np.int64), "x": np.zeros(2, np.int64)}, path)
    elif damage == "kind":
        save_file({"train": np.zeros(2, np.float32), "val": np.zeros(2, np.int64)}, path)
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{SEEN_FILE}.*cannot be read"):
        load_seen(tmp_path)


def test_the_record_is_sorted_and_holds_each_image_once(tmp_path: Path) -> None:
    digests = short_digests([content_digest(text) for text in (b"c", b"a", b"b", b"a")])
    save_seen(tmp_path / SEEN_FILE, {"train": digests})
    seen = load_seen(tmp_path)
    assert seen is not None
    assert seen["train"].tolist() == sorted(set(digests.tolist()))
    assert seen["val"].tolist() == []
