"""`accel-flowers benchmark`: rates that hold together, a bottleneck that is one, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from accel_flowers.config.loading import config_from_flags
from accel_flowers.config.schema import Config, OptimConfig
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.training.benchmark import Change, Measured
from accel_flowers.training.scaling import Scaled, Scaling, advice_on_batches, normalises_batches, settings
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import write_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def test_all_that_it_measures(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1, "global_batch_size": 8, "micro_batch_size": 8})
    before = sorted(tmp_path.iterdir())
    said = finish(tmp_path, ["benchmark", recipe, "--data.path", photos, "--seconds", "0.3", "--json"])
    found, _ = json.JSONDecoder().raw_decode(
        said[said.index("{\n") :]
    )  # the log holds what workers say at their end, too
    rates = found["images_per_second"]
    assert set(rates) == {"loading", "computing", "both"}
    assert min(rates.values()) > 0
    assert rates["both"] < 1.5 * min(rates["loading"], rates["computing"]), "both at once are no faster than either"
    assert found["share_of_computing_alone"] == pytest.approx(rates["both"] / rates["computing"])
    assert 0 < found["data_wait"] < 1
    assert found["bottleneck"] == ("loading" if rates["loading"] < 1.2 * rates["computing"] else "computing")
    assert "squeezenet1_1, 1 x cpu, precision no" in found["on"]
    changes = {change["what"]: change for change in found["changes"]}
    assert {"loading, 1 worker", "loading, decoded before", "computing, batches of 16", "computing, bf16"} <= set(
        changes
    )
    for what, change in changes.items():
        kind = what.split(",")[0]
        assert change["ratio"] == pytest.approx(change["images_per_second"] / rates[kind])
    assert sorted(path for path in tmp_path.iterdir() if path.suffix != ".log") == before


def measured(loading: float, computing: float, *changes: Change) -> str:
    bottleneck = "loading" if loading < computing else "computing"
    return Measured("here", loading, computing, min(loading, computing), 0.25, bottleneck, changes).in_words()


def test_the_words_name_what_helps_the_bottleneck_alone() -> None:
    workers = Change("loading, 2 workers", "--data.num-workers 2", 190.0, 1.9)
    cache = Change("loading, decoded before", "--data.pixels-from cache", 300.0, 3.0)
    batch = Change("computing, batches of 64", "--train.global-batch-size 64", 1100.0, 1.1)
    said = measured(100.0, 1000.0, workers, cache, batch)
    assert "The bottleneck is loading" in said
    assert "What would help: --data.pixels-from cache" in said
    assert "25% of the time" in said
    assert "What would help: --train.global-batch-size 64" in measured(5000.0, 1000.0, workers, cache, batch)
    assert "Nothing that was tried makes computing faster" in measured(5000.0, 1000.0, workers)


@pytest.mark.multiprocess
def test_several_processes_are_measured_together(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"global_batch_size": 8, "micro_batch_size": None})
    words = ["benchmark", recipe, "--data.path", photos, "--seconds", "0.1", "--json"]
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
        said, other = ranks.said(0), ranks.said(1)
    found, _ = json.JSONDecoder().raw_decode(said[said.index("{\n") :])
    rows = {(row["processes"], row["pictures_each"]): row["images_per_second"] for row in found["rows"]}
    assert list(rows) == [(1, 8), (2, 4), (2, 8)]
    assert min(rows.values()) > 0
    assert "rows" not in other, "the main process speaks"


@pytest.mark.parametrize(
    ("processes", "size", "micro", "expected"),
    [
        (4, 32, None, [(1, 32), (2, 16), (2, 32), (4, 8), (4, 32)]),
        (4, 32, 8, [(1, 8), (2, 8), (4, 8)]),
        (3, 24, None, [(1, 24), (2, 12), (2, 24), (3, 8), (3, 24)]),
    ],
)
def test_what_is_tried(processes: int, size: int, micro: int | None, expected: list[tuple[int, int]]) -> None:
    assert settings(processes, size, micro) == expected


def test_the_words_on_several_processes_name_the_fastest() -> None:
    rows = (Scaled(1, 32, 100.0), Scaled(2, 16, 90.0), Scaled(2, 32, 180.0))
    said = Scaling("here", 32, rows).in_words()
    assert "Fastest here: 2 of the processes with --train.global-batch-size 64" in said
    assert said.splitlines()[-2].split() == ["2", "32", "64", "180.0", "1.80"]
    assert Scaling("here", 32, rows[:2]).in_words().endswith("Fastest here: 1 of the processes.")


# What a training says of it


def advice(
    processes: int, *, num_images: int = 1140, on_cpu: bool = False, batch_norm: bool = True, **sections: Any
) -> str:
    config = Config.model_validate(sections)
    train = config.train
    plan = BatchPlan(num_images, 1, train.global_batch_size, processes, train.micro_batch_size)
    return advice_on_batches(plan, config, num_images, on_cpu=on_cpu, has_batch_norm=batch_norm) or ""


@pytest.mark.holds("Processes that share too small a step are told")
def test_advice_on_a_step_that_several_share() -> None:
    said = advice(4, optim={"name": "sgd", "lr": 0.01})
    assert said.startswith(
        "4 processes share a step of 32 pictures, 8 for each: batch norm normalises over 8 instead of 32"
    )
    assert (
        "(8 steps an epoch instead of 35): --train.global-batch-size 128 --optim.lr 0.04 --schedule.warmup-epochs 1"
        in said
    )
    flags = said.partition("instead of 35): ")[2].splitlines()[0].split()
    changed = config_from_flags(Config(), flags, program="train")
    assert (changed.train.global_batch_size, changed.optim.lr, changed.schedule.warmup_epochs) == (128, 0.04, 1)
    assert "--optim.lr 0.02 " in advice(4, optim={"name": "adamw", "lr": 0.01}) + " "
    assert "warmup" not in advice(4, schedule={"warmup_epochs": 2})
    own = Config().model_copy(update={"optim": OptimConfig().model_copy(update={"name": "my/own"})})
    plan = BatchPlan(1140, 1, 32, 4)
    unruled = advice_on_batches(plan, own, 1140, on_cpu=False, has_batch_norm=True)
    assert unruled is not None
    assert "--optim.lr" not in unruled, "nobody knows its rule"
    assert "global-batch-size" not in advice(4, num_images=100), "there is no room for a larger step"
    assert "batch norm" not in advice(4, train={"micro_batch_size": 8}), "it was chosen"
    assert "may take as long" in advice(4, train={"micro_batch_size": 8})
    assert "may take as long" not in advice(4, on_cpu=True)


@pytest.mark.holds("Processes that share too small a step are told")
@pytest.mark.parametrize(
    ("processes", "of"),
    [
        (1, {}),
        (4, {"train": {"global_batch_size": 128}}),
        (4, {"on_cpu": True, "batch_norm": False}),
        (2, {"on_cpu": True}),
        (4, {"on_cpu": True, "train": {"micro_batch_size": 8}}),
    ],
)
def test_no_advice_where_there_is_nothing_to_gain(processes: int, of: dict[str, Any]) -> None:
    assert advice(processes, **of) == ""


def test_batch_norm_that_is_trained_is_seen() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert normalises_batches(network)
    for parameter in network[:2].parameters():
        parameter.requires_grad = False
    assert not normalises_batches(network), "frozen layers keep their statistics"
    assert not normalises_batches(nn.Linear(2, 2))
