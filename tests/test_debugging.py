"""The flags of the section `debug`: each changes what it says and leaves the rest alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from accel_flowers.config.schema import Config, DebugConfig, LossConfig
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.errors import UserError
from accel_flowers.data.split import PARTS, Split, load_split, subsample_split
from accel_flowers.models.saved import load_spec
from accel_flowers.training.debugging import (
    check_deterministic,
    describe_overfitting,
    layers_not_deterministic,
    stricter,
)
from accel_flowers.training.train import train
from tests.conftest import draw_image, make_folder
from tests.ranks import finish
from tests.runs import metrics, tiny_config, write_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.integers(0, 60), seed=st.integers(0, 99))
def test_thinning_keeps_classes_in_proportion(counts: list[int], size: int, seed: int) -> None:
    labels = {f"{label}/{number}": label for label, count in enumerate(counts) for number in range(count)}
    whole = Split(tuple("abcd"[: len(counts)]), dict.fromkeys(labels, "train") | {"0/0": "val"})
    thin = subsample_split(whole, labels, {"train": size}, seed=seed, cause="because")
    assert thin.files_of("val") == ["0/0"]
    assert thin.parts.keys() | thin.left_out.keys() == whole.parts.keys()
    assert not thin.parts.keys() & thin.left_out.keys()
    assert set(thin.left_out.values()) <= {"because"}
    files = whole.files_of("train")
    num_classes = len({labels[name] for name in files})
    if size >= num_classes:
        # A class that would have less than one picture has one: of the others so many fewer, or so many more in all.
        assert min(size, len(files)) <= len(thin.files_of("train")) <= size + num_classes
    for label in {labels[name] for name in files}:
        of_class = sum(labels[name] == label for name in files)
        kept = sum(labels[name] == label for name in thin.files_of("train"))
        if size == 0:
            assert kept == 0
        else:
            assert 1 <= kept <= of_class
            assert abs(kept - min(1, size / len(files)) * of_class) <= 1
    assert thin == subsample_split(whole, labels, {"train": size}, seed=seed, cause="because")


def test_fast_dev_run_sees_every_stage(photos: Path, tmp_path: Path) -> None:
    debug = {"fast_dev_run": True}
    config = tiny_config(photos, tmp_path / "run", train={"epochs": 20, "global_batch_size": 4}, debug=debug)
    results = train(config).scores
    split = load_split(tmp_path / "run/split.json")
    assert {part: len(split.files_of(part)) for part in PARTS} == {"train": 8, "val": 3, "test": 3}
    assert len(metrics(tmp_path / "run", "train/loss")) == 2
    assert len(metrics(tmp_path / "run", "val/loss")) == 1
    assert results["test"].num_images == 3
    assert (tmp_path / "run/model/config.json").exists()
    assert (tmp_path / "run/checkpoints/last").exists()


def test_subset_is_listed_and_resumed(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "run", debug={"subset": 0.4}, train={"epochs": 1})
    train(config)
    split = load_split(tmp_path / "run/split.json")
    assert len(split.files_of("train")) == 12
    assert len(split.left_out) == 36 - len(split.parts)
    assert set(split.left_out.values()) == {"left out by debug.subset 0.4"}
    train(config.model_copy(update={"resume": "auto"}))
    assert load_split(tmp_path / "run/split.json") == split


@pytest.mark.holds("Debugging flags do what they say")
def test_overfitting_learns_its_few_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = {
        "debug": {"overfit_batches": 1},
        "train": {"epochs": 40, "best_metric": "loss"},
        "optim": {"name": "adam", "lr": 1e-3},
        "model": {"dropout": 0.0},
        "tracking": {"report": True},
    }
    results = train(tiny_config(photos, tmp_path / "run", **sections)).scores
    said = capsys.readouterr().err
    assert [line.split()[1] for line in said.splitlines() if line.startswith("epoch ")] == [
        f"{epoch}/40" for epoch in range(1, 41)
    ], "a step's pictures are an epoch: each is told"
    assert set(results) == {"val"}
    assert results["val"].num_images == len(load_split(tmp_path / "run/split.json").files_of("train"))
    assert results["val"].loss < 0.6 < metrics(tmp_path / "run", "val/loss")[0]
    assert f"in training mode, {results['val'].loss:.4f} in evaluation mode, on the same pictures" in said
    assert f"report: {tmp_path / 'run/report.html'}" in said
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "Accuracy on its own training pictures" in page
    assert "All pictures here trained the network" in page
    assert "optimistically biased" not in page
    assert load_spec(tmp_path / "run/model").temperature is None, "it would be fitted on what was learnt"


def test_profile_names_where_the_time_goes(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", "--debug.profile"]
    said = finish(tmp_path, words)
    trace = json.loads((tmp_path / "run/profile/trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert {"forward", "backward"} <= names
    assert sum(event.get("name") == "backward" for event in trace["traceEvents"]) == 6, "two a step, three steps"
    table = (tmp_path / "run/profile/table.txt").read_text()
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:6]}
    assert set(rows) == {"data", "forward", "backward", "optimizer", "other"}
    assert sum(float(row[2].rstrip("%")) for row in rows.values()) == pytest.approx(100, abs=0.3)
    assert all(float(row[1]) > 0 for name, row in rows.items() if name != "other")
    assert "forward   " in said
    assert len(metrics(tmp_path / "run", "val/loss")) == 2, "the training goes on after it"


def test_anomalies_are_named(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "run", debug={"detect_anomaly": True}, optim={"lr": 1e30})
    with pytest.raises(RuntimeError, match="returned nan values"), pytest.warns(UserWarning, match="Error detected in"):
        train(config)
    assert not torch.is_anomaly_enabled()


def test_deterministic_changes_no_number_on_a_cpu(photos: Path, tmp_path: Path) -> None:
    train(tiny_config(photos, tmp_path / "plain", train={"epochs": 1}))
    train(tiny_config(photos, tmp_path / "strict", train={"epochs": 1}, debug={"deterministic": True}))
    assert metrics(tmp_path / "plain", "train/loss") == metrics(tmp_path / "strict", "train/loss")
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_way_to_see_less_at_a_time() -> None:
    with pytest.raises(ValueError, match="one at a time"):
        Config.model_validate({"debug": {"subset": 0.5, "fast_dev_run": True}})
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("device", "deterministic", "fast"), [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)]
)
def test_a_gpu_computes_fast_unless_the_same_bits_are_wanted(device: str, deterministic: bool, fast: bool) -> None:
    """The settings exist without a GPU, too; afterwards they are what they were."""

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    before = settings()
    assert before == ("highest", False)
    with fast_arithmetic(torch.device(device), deterministic=deterministic):
        assert settings() == (("high", True) if fast else before)
    with pytest.raises(RuntimeError, match="in the middle"), fast_arithmetic(torch.device(device)):
        raise RuntimeError("in the middle")
    assert settings() == before


@pytest.mark.holds("Debugging flags do what they say")
def test_fast_dev_run_stays_fast_with_many_classes(tmp_path: Path) -> None:
    """Two steps and one batch of each evaluation, though there are more classes than that; and it goes on."""
    names = tuple(f"{number:02d}" for number in range(24))
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            draw_image("rose", 100 * int(name) + number).save(tmp_path / "photos" / name / f"{number}.png")
    sections = {"train": {"global_batch_size": 4, "eval_batch_size": 4}, "debug": {"fast_dev_run": True}}
    config = tiny_config(tmp_path / "photos", tmp_path / "run", tracking={"report": True}, **sections)
    train(config)
    split = load_split(tmp_path / "run/split.json")
    assert {part: len(split.files_of(part)) for part in PARTS} == {"train": 8, "val": 4, "test": 4}
    assert len({file.split("/")[0] for file in split.files_of("train")}) == 8, (
        "one of each class before a second of any"
    )
    assert len(metrics(tmp_path / "run", "train/loss")) == 2
    assert (tmp_path / "run/report.html").exists()
    train(config.model_copy(update={"resume": "auto"}))
    assert load_split(tmp_path / "run/split.json") == split


@given(size=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_bound_is_kept_whatever_the_classes(size: int, seed: int) -> None:
    labels = {f"{label}/{number}": label for label in range(12) for number in range(label % 3 + 1)}
    whole = Split(tuple("abcdefghijkl"), dict.fromkeys(labels, "train"))
    thin = subsample_split(whole, labels, {"train": size}, seed=seed, cause="because", each_class=False)
    kept = thin.files_of("train")
    assert min(size, 12) - 1 <= len(kept) <= size or len(kept) == len(labels)
    assert thin == subsample_split(whole, labels, {"train": size}, seed=seed, cause="because", each_class=False)


@pytest.mark.holds("Debugging flags do what they say")
@pytest.mark.parametrize(
    ("losses", "told"),
    [((0.002, 0.03), ": learnt."), ((0.002, 0.76), "learnt in training mode alone"), ((1.2, 1.2), "not learnt yet")],
)
def test_the_verdict_on_overfitting(losses: tuple[float, float], told: str) -> None:
    said = describe_overfitting(*losses, math.log(5))
    assert told in said
    assert f"loss {losses[0]:.4f} in training mode, {losses[1]:.4f} in evaluation mode" in said


def test_a_loss_whose_best_is_not_0_is_judged_by_the_cross_entropy() -> None:
    assert describe_overfitting(None, 0.03, math.log(5)).endswith(
        "cross-entropy 0.0300 in evaluation mode, on the same pictures: learnt."
    )
    assert "not learnt yet" in describe_overfitting(None, 1.2, math.log(5))
    assert LossConfig().is_plain
    for varied in (
        {"label_smoothing": 0.1},
        {"name": "focal"},
        {"class_weights": "balanced"},
        {"task": "distillation"},
    ):
        assert not LossConfig.model_validate(varied).is_plain


CANNOT = {"alexnet"} | {f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")}


def cannot_be_deterministic(name: str) -> bool:
    with torch.device("meta"):
        return bool(layers_not_deterministic(torchvision.models.get_model(name, weights=None)))


@pytest.mark.holds("Debugging flags do what they say")
def test_networks_that_cannot_be_deterministic_on_a_gpu_are_named_before_the_run() -> None:
    assert all(map(cannot_be_deterministic, ("alexnet", "vgg11")))
    assert not any(map(cannot_be_deterministic, ("resnet18", "squeezenet1_1", "mobilenet_v3_small")))
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    config = Config.model_validate({"model": {"name": "alexnet"}, "debug": {"deterministic": True}})
    with pytest.raises(
        UserError, match=r"alexnet cannot be trained deterministically .* its AdaptiveAvgPool2d\."
    ) as told:
        check_deterministic(config, network, torch.device("cuda"))
    assert f"alexnet and the {len(CANNOT - {'alexnet'})} of vgg".replace("8", "eight") in str(told.value)
    check_deterministic(config, network, torch.device("cpu"))
    check_deterministic(Config(), network, torch.device("cuda"))
    network.features.requires_grad_(False)
    check_deterministic(config, network, torch.device("cuda"))  # no gradient goes through its pooling


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_of_torchvisions_networks_nine_cannot_be_deterministic() -> None:
    names = torchvision.models.list_models(torchvision.models)
    here = [
        name for name in names if not name.startswith("regnet")
    ]  # which want numbers when they are made; small ones do
    assert len(here) > 60
    assert {name for name in here if cannot_be_deterministic(name)} == CANNOT
    assert not layers_not_deterministic(torchvision.models.regnet_y_400mf())


def test_whatever_has_no_deterministic_algorithm_ends_in_a_message() -> None:
    pool, back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    with (
        pytest.raises(UserError, match="does not have a deterministic implementation on this device: leave --debug"),
        stricter(DebugConfig(deterministic=True)),
    ):
        back(*pool(torch.zeros(1, 1, 4, 4)))
    assert not torch.are_deterministic_algorithms_enabled()
