"""The model card: what the hub reads of it is true, names stay names, and its recipe is the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from accel_flowers.config.loading import load_recipe
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.models.card import model_card
from accel_flowers.models.saved import CARD_FILE, load_spec
from accel_flowers.models.spec import ModelSpec, TrainingRecord
from accel_flowers.tracking.run_dir import fixed_fields
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import tiny_config

ODD = ("a|b", "*bold* `code`", "<script>alert(1)</script>", "# 薔薇\nnew line", "plain")
SCORES = {"num_images": 40, "accuracy": 0.75, "macro_f1": 0.5, "loss": 1.0}


def spec_of(**values: Any) -> ModelSpec:
    usual: dict[str, Any] = {
        "architecture": "resnet18", "class_names": ODD, "transforms": ({"Resize": {"size": 70}}, {"CenterCrop": {"size": 64}}),
        "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "scores": {"val": SCORES, "test": {**SCORES, "accuracy": 0.5}},
        "training": TrainingRecord(source="my photos", images={"train": {"plain": 30, "a|b": 3}, "val": {"plain": 5}}),
    }  # fmt: skip
    return ModelSpec.model_validate({**usual, **values})


def test_the_hub_reads_what_was_measured() -> None:
    data = ModelCard(model_card(spec_of(), licence="apache-2.0")).data
    assert data["license"] == "apache-2.0"
    assert (data["pipeline_tag"], data["library_name"]) == ("image-classification", "timm")
    results = data["eval_results"]
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in results}
    assert found == {
        ("validation", "accuracy"): 0.75, ("validation", "f1"): 0.5, ("test", "accuracy"): 0.5, ("test", "f1"): 0.5,
    }  # fmt: skip
    assert {result.dataset_name for result in results} == {"my photos"}


def test_no_licence_and_no_figure_are_made_up() -> None:
    text = model_card(spec_of(scores={}, training=None))
    data = ModelCard(text).data.to_dict()
    assert not {"license", "model-index", "metrics", "datasets"} & data.keys()
    assert "No figure was recorded." in text
    assert "%" not in text


def test_intervals_stand_beside_the_figures() -> None:
    text = model_card(spec_of())
    assert "| test | 40 | Accuracy 50.0% | 33.8% to 66.2% |" in text
    assert "The test images were scored once" in text
    assert "no image was kept apart" in model_card(spec_of(scores={"val": SCORES}))


def test_names_are_no_markup() -> None:
    text = model_card(spec_of())
    body = text.split("---\n", 2)[2]
    assert "<script" not in body.replace("\\<", "")
    assert "\\*bold\\* \\`code\\`" in body
    rows = [line for line in body.splitlines() if line.startswith("| a\\|b")]
    assert rows == ["| a\\|b | 3 | 0 |"]
    assert "# 薔薇\nnew" not in body


def test_classes_with_few_images_are_named() -> None:
    text = model_card(spec_of())
    assert "4 classes had fewer images to learn from than 10" in text


def test_a_data_set_of_the_hub_is_named_as_there() -> None:
    record = TrainingRecord(source="hub:somebody/flowers", images={"train": {"plain": 30}})
    data = ModelCard(model_card(spec_of(training=record))).data
    assert data["datasets"] == ["somebody/flowers"]


@pytest.mark.holds("A model card tells how to have the run again, and no folder of the machine")
def test_the_recipe_of_a_run_is_the_run(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "secret place/flowers", per_class=10)
    config = tiny_config(
        photos, tmp_path / "run", optim={"lr": 0.003, "weight_decay": 0.01}, train={"epochs": 1, "seed": 7}
    )
    train(config)
    spec, card = load_spec(tmp_path / "run/model"), (tmp_path / "run/model" / CARD_FILE).read_text()
    assert spec.training is not None
    assert spec.training.source == "flowers"
    split = json.loads((tmp_path / "run/split.json").read_text())["parts"]
    for part in ("train", "val", "test"):
        assert sum(spec.training.images[part].values()) == list(split.values()).count(part)
    for text in (card, spec.model_dump_json()):
        assert "secret place" not in text
        assert str(tmp_path) not in text
    block = card.split("```yaml\n")[1].split("```")[0]
    assert parse_yaml(block, "the card") == spec.training.settings
    (tmp_path / "recipe.yaml").write_text(block)
    again = load_recipe(str(tmp_path / "recipe.yaml"), {"data.path": str(photos)})
    assert fixed_fields(again) == fixed_fields(config)
    assert model_card(spec) == card, "it follows from config.json alone"
