"""Real photos and real weights, where the environment names folders of them: they are not part of the project."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from accel_flowers.data.decide_split import decide_split
from accel_flowers.data.decoding.pillow import decode_image
from accel_flowers.data.sources.load import load_images
from accel_flowers.inspection.analysis import analyze_image
from accel_flowers.inspection.findings import ImageFacts, find
from accel_flowers.inspection.near_duplicates import group_alike
from accel_flowers.inspection.scan import look_at_table
from accel_flowers.models.backbone import check_input
from accel_flowers.models.find import build_network
from accel_flowers.models.torchvision import model_names
from tests.images import save
from tests.runs import TWO_PROCESSES, metrics, run_program

PHOTOS, WEIGHTS = (os.environ.get(f"ACCEL_FLOWERS_TEST_{name}") for name in ("PHOTOS", "WEIGHTS"))
needs_photos = pytest.mark.skipif(not PHOTOS, reason="ACCEL_FLOWERS_TEST_PHOTOS names no folder of photos")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="ACCEL_FLOWERS_TEST_WEIGHTS names no folder of weights")


@needs_photos
def test_split_of_real_photos_keeps_copies_together() -> None:
    table = load_images(PHOTOS or "")
    split = decide_split(table, "80/20", seed=0, on_bad_image="stop")
    assert set(split.parts) == set(table.files)
    assert len(split.files_of("val")) == round(0.2 * len(table.files))
    for group in split.duplicates:
        assert len({split.parts[name] for name in group}) == 1


@needs_photos
@pytest.mark.slow
def test_copies_of_real_photos_are_alike_and_other_photos_are_not() -> None:
    """The limits of near duplicates, on 100 photos: each edit of a photo is found, no two photos are taken for one."""
    files = sorted(Path(PHOTOS or "").glob("*/*.jpg"))
    chosen = [decode_image(file.read_bytes(), file.name) for file in files[:: max(1, len(files) // 100)]]
    edits: dict[str, Callable[[Image.Image], Image.Image]] = {
        "as it is": lambda photo: photo,
        "half size": lambda photo: photo.reduce(2),
        "square": lambda photo: photo.resize((224, 224)),
        "brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.15),
        "more contrast": lambda photo: ImageEnhance.Contrast(photo).enhance(1.2),
        "blurred": lambda photo: photo.filter(ImageFilter.GaussianBlur(1)),
    }
    seen = [analyze_image(save(edit(photo), "JPEG", quality=60), "1") for photo in chosen for edit in edits.values()]
    hashes = np.array([one.phash for one in seen], np.uint64)
    sketches = np.stack([one.sketch for one in seen if one.sketch is not None])
    step = len(edits)
    assert len(chosen) >= 50
    assert group_alike(hashes, sketches) == [list(range(k, k + step)) for k in range(0, len(seen), step)]


@needs_photos
def test_an_inspection_of_real_photos_names_few() -> None:
    table = load_images(PHOTOS or "")
    images = [
        ImageFacts(name, table.class_names[label], None, one)
        for name, label, one in zip(table.files, table.labels.tolist(), look_at_table(table), strict=True)
    ]
    findings = find("photos", table.class_names, images)
    assert findings.unreadable == {}
    assert sum(len(group.images) for group in findings.copies) < 0.02 * len(images)
    assert len(findings.far) < 0.01 * len(images)


@needs_weights
def test_real_weights_fit_their_architecture() -> None:
    files = [
        file for file in sorted(Path(WEIGHTS or "").glob("*.safetensors")) if file.name.split("-")[0] in model_names()
    ]
    assert files
    for file in files:
        network, report = build_network(file.name.split("-")[0], 5, weights=str(file))
        check_input(network, (3, 224, 224))
        assert len(report.loaded) > 50
        assert report.unexpected == ()


@pytest.mark.slow
@pytest.mark.multiprocess
@needs_photos
@needs_weights
def test_frozen_backbone_learns_and_two_processes_score_it_alike(tmp_path: Path) -> None:
    """One epoch of the published recipe for a frozen backbone, on MobileNetV2's whole weights."""
    assert WEIGHTS is not None
    assert PHOTOS is not None
    run_dir = tmp_path / "run"
    weights = str(Path(WEIGHTS) / "mobilenet_v2-imagenet.safetensors")
    model = ["--model.name", "mobilenet_v2", "--model.weights", weights, "--optim.lr", "0.01"]
    done = run_program(
        "train",
        "resnet18-frozen",
        *model,
        "--data.path",
        PHOTOS,
        "--run-dir",
        run_dir,
        "--train.epochs",
        "1",
        "--train.precision",
        "launcher",  # float32, which is what the launcher of two gives, too
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert metrics(run_dir, "val/accuracy")[-1] > 0.6

    words = [
        "evaluate",
        run_dir / "model",
        "--data",
        PHOTOS,
        "--split",
        run_dir / "split.json",
        "--part",
        "val",
        "--json",
    ]
    one, two = (run_program(*words, launcher=launcher, timeout=900) for launcher in (None, TWO_PROCESSES))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout
