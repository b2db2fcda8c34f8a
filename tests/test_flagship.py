"""The recipe to begin with: what it settles by itself, and that it runs from the command line to the report."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from accel_flowers.config.loading import load_recipe, read_config
from accel_flowers.models.preprocessing import settle_preprocessing
from tests.conftest import make_folder
from tests.ranks import finish
from tests.specs import read_spec

FLAGSHIPS = ("flagship", "flagship-fast")


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_it_chooses_a_network_and_says_which(name: str) -> None:
    settled, told = settle_preprocessing(load_recipe(name))
    expected = "timm/tf_efficientnet_lite0" if importlib.util.find_spec("timm") else "resnet18"
    assert settled.model.name in (expected, "timm/convnext_tiny.in12k_ft_in1k", "convnext_tiny")
    assert told[0].startswith(f"model.name auto: {settled.model.name}, a good one for a ")
    images = settled.data.preprocessing()
    assert ("288 x 288" in " ".join(told)) == (name == "flagship")
    assert images.eval_transforms[-1] == {"CenterCrop": {"size": 288 if name == "flagship" else 224}}


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_it_asks_nobody_for_a_test_part(name: str) -> None:
    """Its split has one, and what is chosen is chosen on validation."""
    assert load_recipe(name).data.split == "80/10/10"


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGSHIPS)
def test_it_runs_to_the_report(name: str, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=20)
    words = ["train", name, "--data.path", photos, "--run-dir", tmp_path / "run", "--model.name", "mobilenet_v3_small"]
    finish(tmp_path, [*words, "--model.weights", "none"], timeout=240)
    spec = read_spec(tmp_path / "run/model")
    assert 0 <= spec["scores"]["test"]["accuracy"] <= 1
    assert os.path.getsize(tmp_path / "run/report.html") > 10_000
    settled = read_config(tmp_path / "run/config.yaml", what="it")
    assert settled.data.eval_size_factor == 1
    assert spec["transforms"][-1] == {"CenterCrop": {"size": 288 if name == "flagship" else 224}}


@pytest.mark.slow
def test_it_is_sure_of_real_photos_soon(tmp_path: Path) -> None:
    """With real ImageNet weights, twenty photos a class: far above what lot would give, in a few steps."""
    photos, weights = os.environ.get("ACCEL_FLOWERS_TEST_PHOTOS"), os.environ.get("ACCEL_FLOWERS_TEST_WEIGHTS")
    if not photos or not weights:
        pytest.skip("ACCEL_FLOWERS_TEST_PHOTOS and ACCEL_FLOWERS_TEST_WEIGHTS name no folders")
    pytest.importorskip("timm")
    for folder in sorted(each for each in Path(photos).iterdir() if each.is_dir()):
        place = tmp_path / "photos" / folder.name
        place.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:20]:
            (place / file.name).symlink_to(file)
    file = Path(weights) / "timm-tf_efficientnet_lite0-imagenet.safetensors"
    words = ["train", "flagship-fast", "--data.path", tmp_path / "photos", "--run-dir", tmp_path / "run"]
    flags = ["--data.split", "60/20/20", "--model.weights", file, "--train.epochs", "4", "--tracking.no-report"]
    said = finish(tmp_path, [*words, *flags], timeout=240)
    assert f"model.name auto: timm/tf_efficientnet_lite0, for the tensors of {file} are its" in said
    assert read_spec(tmp_path / "run/model")["scores"]["test"]["accuracy"] > 0.5
