"""Settings that change nothing are told, and only these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from accel_flowers.config.effects import fit_warmup, settings_without_effect
from accel_flowers.config.loading import load_recipe, recipe_names
from accel_flowers.config.schema import Config
from accel_flowers.distributed.launch import build_accelerator
from accel_flowers.training.train import train
from tests.runs import tiny_config


@pytest.mark.holds("A setting without effect is told")
@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"optim": {"name": "adamw", "momentum": 0.5}}, "optim.momentum 0.5, because optim.name is adamw"),
        ({"optim": {"name": "rmsprop", "momentum": 0.5}}, ""),
        ({"optim": {"options": {"betas": [0.9, 0.9]}}}, "optim.options"),
        ({"optim": {"decay_norms_and_biases": False}}, "because optim.weight_decay is 0"),
        ({"optim": {"decay_norms_and_biases": False, "weight_decay": 0.1}}, ""),
        ({"schedule": {"name": "cosine", "gamma": 0.5}}, "schedule.gamma 0.5, because schedule.name is cosine"),
        ({"schedule": {"name": "step", "gamma": 0.5, "step_epochs": 3}}, ""),
        ({"schedule": {"name": "step", "milestones": [2]}}, "schedule.milestones"),
        ({"schedule": {"name": "step", "min_factor": 0.5}}, "it is for cosine and one_cycle"),
        ({"loss": {"options": {"gamma": 2}}}, "loss.options"),
        ({"tracking": {"wandb_project": "roses"}}, "tracking.wandb_project roses, because tracking.wandb is off"),
        ({"tracking": {"wandb_project": "roses", "also": ["mlflow"]}}, ""),
        ({"tracking": {"wandb_name": "roses", "also": ["mlflow"]}}, "tracking.wandb_name"),
        ({"tracking": {"wandb_name": "roses", "wandb": "offline"}}, ""),
        ({"data": {"cache_gib": 1.0, "pixels_from": "files"}}, "data.cache_gib"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_changes_nothing_is_told(sections: dict[str, Any], told: str) -> None:
    lines = settings_without_effect(Config.model_validate(sections), {})
    assert len(lines) == bool(told), lines
    assert all(line.startswith("without effect: ") and told in line for line in lines)


@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_sets_what_changes_nothing(name: str) -> None:
    assert settings_without_effect(load_recipe(name), {}) == []


@pytest.mark.holds("A setting without effect is told")
def test_flags_of_the_launcher_are_told() -> None:
    usual = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "no"}
    assert settings_without_effect(Config(), usual) == []
    given = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    accumulation, dynamo = settings_without_effect(Config(), given)
    assert "--gradient_accumulation_steps 4 of accelerate launch; here that is --train.micro-batch-size" in accumulation
    assert "--dynamo_backend inductor of accelerate launch; here that is --train.compile" in dynamo


def test_the_launcher_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else training alone would be compiled, and no file of the run would say so."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    network = nn.Linear(2, 2)
    assert build_accelerator().prepare(network) is network


def test_a_run_tells_it_once_before_its_first_step(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(folder, tmp_path / "run", schedule={"gamma": 0.7}, train={"epochs": 1}))
    said = capsys.readouterr().err
    assert said.count("without effect: schedule.gamma 0.7") == 1
    assert said.index("without effect") < said.index("steps in 1 epoch")


@pytest.mark.parametrize(("epochs", "fits"), [(1, 0.2), (3, 0.6), (6, 1.2), (7, 1.4)])
def test_a_warmup_that_is_cut_has_a_short_number(epochs: int, fits: float) -> None:
    config = Config.model_validate({"schedule": {"warmup_epochs": 9}, "train": {"epochs": epochs}})
    assert str(fit_warmup(config)[0].schedule.warmup_epochs) == str(fits)
