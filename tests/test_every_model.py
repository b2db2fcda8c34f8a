"""Every architecture that training accepts goes the whole way: trained, saved, read, scored, asked and explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from accel_flowers.inference.evaluate import evaluate
from accel_flowers.inference.image_classifier import load_model
from accel_flowers.models import saved as saved_models
from accel_flowers.models.find import find_backbone
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.saved import save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.torchvision import model_names
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.report.cam import explain
from accel_flowers.report.draw import draw_report
from accel_flowers.training.step import LocalEngine, TrainStep, blank_batch, loaded_whole
from accel_flowers.training.tasks import classification
from accel_flowers.training.train import train
from tests.conftest import CLASSES, make_folder
from tests.runs import tiny_config

FAMILIES = (
    "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
)  # fmt: skip
GIANTS = ("alexnet", "convnext_tiny", "maxvit_t", "swin_t", "vgg11", "vit_b_16")
"""Families without a member that is saved and read in a moment."""
SIZES = {"vit": 224, "maxvit": 224, "inception": 75}


def size_of(name: str) -> int:
    """A small size that the network takes, in pixels."""
    return next((size for start, size in SIZES.items() if name.startswith(start)), 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=1)


@pytest.mark.holds("What training accepts can be read back and asked")
@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in GIANTS)])
def test_one_of_each_family(name: str, photos: Path, tmp_path: Path) -> None:
    """With the parts of a run, but without what costs seconds around them."""
    size = size_of(name)
    torch.manual_seed(0)
    network, _ = find_backbone(name).build(3, weights="none")
    spec = ModelSpec(
        architecture=name,
        class_names=CLASSES,
        transforms=({"Resize": {"size": [size, size]}},),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    normalizer = Normalizer(spec.mean, spec.std, channels_last=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    step = TrainStep(
        LocalEngine(), network.train(), optimizer, classification(nn.functional.cross_entropy),
        loaded_whole, normalizer,
    )  # fmt: skip
    assert step(blank_batch(2, (size, size), 3, torch.device("cpu"))).loss.isfinite()
    save_model(tmp_path / "model", clean_state_dict(network), spec)
    scores = evaluate(tmp_path / "model", photos, num_workers=0)
    assert scores.num_images == 3
    files = sorted(photos.rglob("*.png"))
    answers = load_model(tmp_path / "model").predict(files, top_k=3)
    assert sum(answer.label == file.parent.name for answer, file in zip(answers, files, strict=True)) == round(
        3 * scores.accuracy
    )
    found = explain(saved_models.load_model(tmp_path / "model"), [Image.open(files[0]).convert("RGB")], [0])
    assert found.images[0].size == (size, size)


@pytest.mark.holds("What training accepts can be read back and asked")
@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
@pytest.mark.timeout(900)  # the largest take minutes
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """With the commands that a user has."""
    size = size_of(name)
    resize = [{"Resize": {"size": [size, size]}}]
    photos = make_folder(tmp_path / "photos", per_class=3)
    config = tiny_config(
        photos,
        tmp_path / "run",
        model={"name": name},
        data={"train_transforms": resize, "eval_transforms": resize, "split": "34/33/33"},
        train={"epochs": 1, "global_batch_size": 3, "micro_batch_size": 3, "eval_batch_size": 3},
        optim={"lr": 1e-6, "momentum": 0.0},
    )
    result = train(config)
    scores = evaluate(tmp_path / "run/model", photos, split_file=tmp_path / "run/split.json")
    assert scores.loss == result.scores["test"].loss
    answer = load_model(tmp_path / "run").predict(photos / "rose/00.png")[0]
    assert answer.label in CLASSES
    assert draw_report(tmp_path / "run").exists()
