"""`train.min_steps`: a run of few images has more epochs, and is the same run otherwise."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.config.loading import read_config
from accel_flowers.config.schema import Config
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.training.optim import schedule_of
from accel_flowers.training.stretch import stretched
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import write_recipe
from tests.specs import read_spec


@pytest.mark.holds("A run of few pictures has steps enough")
@given(
    epochs=st.integers(1, 20), min_steps=st.one_of(st.none(), st.integers(1, 300)), images=st.integers(1, 500),
    batch=st.integers(1, 64), head=st.sampled_from([0.0, 0.05, 0.5]), warmup=st.sampled_from([0.0, 0.05, 0.2]),
)  # fmt: skip
def test_steps_are_enough_and_the_course_is_the_same(
    epochs: int, min_steps: int | None, images: int, batch: int, head: float, warmup: float
) -> None:
    """As many epochs as are needed and no more; at each share of the run the rate is what it was."""
    given = Config.model_validate(
        {
            "train": {
                "epochs": epochs,
                "min_steps": min_steps,
                "head_epochs": head * epochs,
                "early_stopping_epochs": 3,
            },
            "schedule": {
                "name": "multistep",
                "milestones": [0.3 * epochs, 0.7 * epochs],
                "warmup_epochs": warmup * epochs,
            },
        }
    )
    config, told = stretched(given, images, batch)
    plan = BatchPlan(images, config.train.epochs, batch)
    assert plan.num_steps >= (min_steps or 0)
    assert bool(told) == (config != given) == (config.train.epochs > epochs)
    if told:
        assert (config.train.epochs - 1) * images < (min_steps or 0) * batch
        assert f"{config.train.epochs:,} epochs instead of {epochs}" in told[0]
    before, after = (schedule_of(each, BatchPlan(10**6, each.train.epochs, 1)) for each in (given, config))
    for share in (0.11, 0.33, 0.53, 0.67, 0.9):
        assert after(share * config.train.epochs) == pytest.approx(before(share * epochs), rel=0.05)
    assert config.train.early_stopping_epochs == math.ceil(3 * config.train.epochs / epochs)


@pytest.mark.holds("A run of few pictures has steps enough")
def test_a_run_of_few_images_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """30 images in steps of 8 make 3 epochs of 11 steps and not 2 of 8; killed and resumed it ends bit for bit alike."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        train={"epochs": 2, "min_steps": 11, "global_batch_size": 8, "micro_batch_size": 8},
        checkpoint={"every_steps": 1, "keep_last": 20},
    )
    words = ["train", recipe, "--data.path", photos, "--run-dir"]
    said = finish(tmp_path, [*words, tmp_path / "whole"])
    assert (
        "train.min_steps 11: 3 epochs instead of 2, for 30 pictures to train on make no more than 4 steps each" in said
    )
    assert read_config(tmp_path / "whole/config.yaml", what="it").train.epochs == 2, "the recipe stays what it is"
    assert max(line["step"] for line in read_metrics(tmp_path / "whole/metrics.jsonl")) >= 11
    with Ranks(tmp_path, [*words, tmp_path / "killed"]) as ranks:
        limit = time.monotonic() + 60
        while len(list((tmp_path / "killed/checkpoints").glob("step-*"))) < 3:
            assert time.monotonic() < limit, ranks.output()
            time.sleep(0.01)
        ranks.signal(0, signal.SIGKILL)
    finish(tmp_path, [*words, tmp_path / "killed", "--resume", "auto"])
    whole, killed = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    finish(tmp_path, ["report", tmp_path / "whole"])
    scores = [read_spec(tmp_path / name / "model")["scores"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]
