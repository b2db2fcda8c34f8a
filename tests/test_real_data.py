"""Real photos and real weights, where the environment names folders of them: they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_flowers.data.folder import load_images
from accel_flowers.data.inspect import decide_split
from accel_flowers.models import build_network, check_input
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


@needs_weights
def test_real_weights_fit_their_architecture() -> None:
    for file in sorted(Path(WEIGHTS or "").glob("*.safetensors")):
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
