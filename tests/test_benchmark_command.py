"""`accel-flowers benchmark`: rates that hold together, a bottleneck that is one, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel_flowers.training.benchmark import Change, Measured
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
    assert {"loading, 1 workers", "loading, decoded before", "computing, batches of 16", "computing, bf16"} <= set(
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


def test_several_processes_are_refused(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["benchmark", recipe, "--data.path", photos]
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [2, 2]
        assert "A benchmark measures one process" in ranks.said(0)
