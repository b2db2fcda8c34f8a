"""Models and pictures for exports: small, and telling enough for a comparison to prove something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from accel_flowers.models.find import find_backbone
from accel_flowers.models.saved import save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict

NAMES = ("aster", "Glöckchen", 'a "quoted", one', "薔薇")
CROP = ({"Resize": {"size": 40}}, {"CenterCrop": {"size": [32, 32]}})


def save_vivid(directory: Path, name: str = "timm/test_resnet", **values: Any) -> Path:
    """A network at random, made to tell images apart: a fresh one says nearly the same of all of them."""
    torch.manual_seed(3)
    usual = {
        "class_names": NAMES,
        "transforms": CROP,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "temperature": 1.5,
    }
    spec = ModelSpec.model_validate({"architecture": name, **usual, **values})
    backbone = find_backbone(name)
    network = backbone.build(len(spec.class_names))[0]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.get_submodule(backbone.head(network)).weight.normal_(0, 0.1)  # type: ignore[operator]
        side = next((size for size in (224, 160) if str(size) in json.dumps(spec.transforms)), 32)
        network.train()(nn.functional.interpolate(torch.randn(8, 3, 6, 6), [side, side], mode="bicubic"))
    save_model(directory, clean_state_dict(network.eval()), spec)
    return directory


def drawn_photos(folder: Path) -> Path:
    """Eight pictures of several shapes, in folders of two of the classes."""
    chance = np.random.default_rng(0)
    for number in range(8):
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        place = folder / NAMES[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((45 + 17 * number, 120 - 9 * number), Image.Resampling.BICUBIC).save(place)
    return folder
