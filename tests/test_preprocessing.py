"""What a recipe leaves open of the images' preparation is what the network's weights were trained with."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import models

from accel_flowers.config.loading import config_from_flags, config_from_yaml
from accel_flowers.config.schema import Config
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.models.torchvision import model_names


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b3", "vit_b_16", "inception_v3", "regnet_y_400mf"])
def test_open_fields_are_what_the_library_scores_with(name: str) -> None:
    settled, told = settle_preprocessing(Config.model_validate({"model": {"name": name}}))
    theirs = models.get_model_weights(name).DEFAULT.transforms()
    got = settled.data.preprocessing()
    transform, _ = build_transform(got.eval_transforms, field="eval")
    image = Image.radial_gradient("L").convert("RGB").resize((400, 300))
    mean, std = (torch.tensor(values)[:, None, None] for values in (got.mean, got.std))
    levels = (transform(image) / 255 - mean) / std - theirs(image)
    assert levels.abs().max() <= 1.01 / 255 / min(got.std)
    assert build_transform(got.train_transforms, field="train")[1] == tuple(theirs.crop_size * 2)
    assert told == []


def test_every_network_has_lists_that_can_be_built() -> None:
    found = {}
    for name in model_names():
        got = settle_preprocessing(Config.model_validate({"model": {"name": name}}))[0].data.preprocessing()
        found[repr(got)] = got
    assert len(found) > 5
    for got in found.values():
        made = [build_transform(specs, field="data")[1] for specs in (got.train_transforms, got.eval_transforms)]
        assert made[0] == made[1]


def test_what_a_recipe_says_stays() -> None:
    data = {"train_transforms": [{"Resize": {"size": [9, 9]}}], "mean": [0.1, 0.2, 0.3]}
    settled, _ = settle_preprocessing(Config.model_validate({"data": data}))
    assert settled.data.train_transforms == ({"Resize": {"size": [9, 9]}},)
    assert settled.data.mean == (0.1, 0.2, 0.3)
    assert settled.data.std == (0.229, 0.224, 0.225)
    assert settle_preprocessing(settled)[0] == settled


@pytest.mark.parametrize("word", ["auto", "null", "None"])
def test_ways_to_write_it(word: str) -> None:
    config = config_from_yaml(f"data: {{train_transforms: {word}, mean: {word}}}", source="it")
    assert config.data.train_transforms is None
    assert config.data.mean is None


def test_on_the_command_line() -> None:
    recipe = Config.model_validate({"data": {"train_transforms": ["RandomHorizontalFlip"]}})
    config = config_from_flags(recipe, ["--data.train-transforms", "auto", "--data.mean", "None"], program="train")
    assert config.data.train_transforms is None
    assert config.data.mean is None


def test_a_contradiction_is_told() -> None:
    data = {"mean": [0.5, 0.5, 0.5], "eval_transforms": [{"Resize": {"size": [96, 96]}}]}
    _, told = settle_preprocessing(Config.model_validate({"data": data}))
    assert told == [
        "data.mean is 0.5, 0.5, 0.5; resnet18 was trained with 0.485, 0.456, 0.406",
        "data.eval_transforms make 96 x 96 pixels; resnet18 was trained with 224 x 224",
    ]
    _, silent = settle_preprocessing(Config.model_validate({"data": data, "model": {"weights": "none"}}))
    assert silent == [], "weights at random have been trained with nothing"


def test_a_rounded_mean_is_no_contradiction() -> None:
    _, told = settle_preprocessing(Config.model_validate({"data": {"mean": [0.485, 0.456, 0.405]}}))
    assert told == []


def test_a_size_may_be_that_of_the_network() -> None:
    train = [{"RandomResizedCrop": {"size": "auto", "scale": [0.3, 1.0]}}, "RandomHorizontalFlip"]
    evaluation = [{"Resize": {"size": "auto"}}, {"CenterCrop": {"size": "auto"}}]
    data = {"train_transforms": train, "eval_transforms": evaluation}
    for name, size, resize in (("resnet18", 224, 256), ("inception_v3", 299, 342)):
        settled, told = settle_preprocessing(Config.model_validate({"data": data, "model": {"name": name}}))
        got = settled.data
        assert got.train_transforms == (
            {"RandomResizedCrop": {"size": size, "scale": [0.3, 1.0]}},
            "RandomHorizontalFlip",
        )
        assert got.eval_transforms == ({"Resize": {"size": resize}}, {"CenterCrop": {"size": size}})
        assert told == []


def test_scoring_may_be_larger_than_training() -> None:
    """As large as is said, with the network's own share of the picture; what is settled is settled for good."""
    config = Config.model_validate({"model": {"name": "resnet18"}, "data": {"eval_size_factor": 1.29}})
    settled, told = settle_preprocessing(config)
    images = settled.data.preprocessing()
    assert images.train_transforms[0] == {"RandomResizedCrop": {"size": 224}}
    assert images.eval_transforms == ({"Resize": {"size": 329}}, {"CenterCrop": {"size": 288}})
    assert told == ["data.eval_size_factor 1.29: pictures are scored at 288 x 288 pixels, not at 224 x 224"]
    again = Config.model_validate(settled.model_dump(mode="json"))
    assert settle_preprocessing(again)[0] == settled


def test_a_network_of_one_size_keeps_it() -> None:
    config = Config.model_validate({"model": {"name": "vit_b_32"}, "data": {"eval_size_factor": 1.29}})
    before = torch.random.get_rng_state()
    settled, told = settle_preprocessing(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert settled.data.preprocessing().eval_transforms[-1] == {"CenterCrop": {"size": 224}}
    assert told == ["data.eval_size_factor 1.29 has no effect: vit_b_32 takes no other size than 224 x 224"]


def test_a_factor_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="eval_transforms are given"):
        Config.model_validate({"data": {"eval_size_factor": 1.29, "eval_transforms": [{"Resize": {"size": [64, 64]}}]}})
