"""What a run ends with: the mean of several epochs' weights, and the views of a picture whose scores are averaged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import accel_flowers as af
from accel_flowers import register
from accel_flowers.config.schema import Config
from accel_flowers.data.sampler import random_key
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_model, load_spec
from accel_flowers.models.views import MeanOfViews
from accel_flowers.training import choose
from accel_flowers.training import epoch as ends
from accel_flowers.training.choose import between, is_no_worse, mean_of
from accel_flowers.training.state import TrainState
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import tiny_config


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6))
def test_states_taken_in_one_by_one_are_their_mean(values: list[float]) -> None:
    states = [{"w": torch.full((2, 3), value), "n": torch.tensor(place)} for place, value in enumerate(values)]
    mean = states[0]
    for count, state in enumerate(states[1:], start=1):
        mean = mean_of(mean, state, count)
    torch.testing.assert_close(
        mean["w"], torch.stack([state["w"] for state in states]).mean(dim=0), atol=1e-5, rtol=1e-5
    )
    assert mean["n"] == 0, "a counter is no mean"
    assert mean_of({"w": torch.ones(2).half()}, {"w": torch.zeros(2).half()}, 1)["w"].dtype == torch.float16


def test_the_best_epochs_are_ranked_and_ties_fall_to_the_lower_loss() -> None:
    state = TrainState()
    for epoch, (value, loss) in enumerate([(0.5, 1.0), (0.7, 0.9), (0.6, 0.8), (0.7, 0.7), (0.7, 0.7)], start=1):
        state.step = 10 * epoch
        state.update_best(value, loss=loss, epoch=epoch, lower_is_better=False, keep_ranked=3)
    assert [each.epoch for each in state.ranked] == [4, 5, 2]
    assert state.ranked[0].step == state.best_step == 40


class Sums(nn.Module):
    """Scores that tell what was looked at: the left half's mean, the right half's, and the mean of the rim."""

    def forward(self, images: Tensor) -> Tensor:
        rim = images.mean(dim=(1, 2, 3)) - functional.avg_pool2d(images[..., 4:12, 4:12], 8).mean(dim=(1, 2, 3)) / 4
        return torch.stack([images[..., :8].mean(dim=(1, 2, 3)), images[..., 8:].mean(dim=(1, 2, 3)), rim], dim=1)


def test_scores_are_the_mean_over_views() -> None:
    images = torch.randn(2, 3, 16, 16)
    network = Sums()
    plain = network(images)
    assert torch.equal(MeanOfViews(network, "none")(images), plain)
    mirrored = MeanOfViews(network, "mirror")(images)
    torch.testing.assert_close(mirrored[:, 0], plain[:, :2].mean(dim=1))
    torch.testing.assert_close(mirrored[:, 0], mirrored[:, 1])
    torch.testing.assert_close(MeanOfViews(network, "mirror")(images.flip(-1)), mirrored)
    dot = torch.zeros(1, 3, 16, 16)
    dot[..., 0, 0] = 1.0
    assert MeanOfViews(network, "mirror_zoom")(dot)[0, 2] < MeanOfViews(network, "mirror")(dot)[0, 2] * 0.6, (
        "half of the views do not show the corner"
    )


def scores_of(run_dir: Path, part: str = "val") -> dict[str, Any]:
    return load_spec(run_dir / "model").scores[part]


def test_a_run_ends_with_the_mean_of_its_epochs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The saved weights are the mean of the checkpoints that the log names, and the scores are of them."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    run_dir = tmp_path / "run"
    config = tiny_config(photos, run_dir, soup={"epochs": 3}, train={"epochs": 4}, checkpoint={"keep_last": 1})
    train(config)
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    ranked = {each["epoch"]: each["step"] for each in state["ranked"]}
    assert len(ranked) == 3
    there = {int(folder.name[5:]) for folder in (run_dir / "checkpoints").glob("step-*")}
    assert there == {*ranked.values(), state["step"]}, "what is averaged is kept, and nothing else"
    told = next(line for line in caplog.text.splitlines() if "soup: " in line)
    members = scores_of(run_dir).get("mean_of_epochs", [state["best_epoch"]])
    assert ", ".join(map(str, members)) in told
    states = [load_file(run_dir / f"checkpoints/step-{ranked[epoch]:08d}/model.safetensors") for epoch in members]
    for name, tensor in load_file(run_dir / "model/model.safetensors").items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([each[name] for each in states]).mean(dim=0))
    again = evaluate(run_dir / "model", photos, split_file=run_dir / "split.json", part="val")
    assert again.loss == pytest.approx(scores_of(run_dir)["loss"], abs=1e-6)


def test_views_that_lower_the_loss_are_kept_and_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    run_dir = tmp_path / "run"
    result = train(tiny_config(photos, run_dir, model={"tta": "mirror"}, train={"epochs": 1}))
    assert load_spec(run_dir / "model").tta == "mirror"
    assert "test-time augmentation mirror: validation loss" in caplog.text
    split = run_dir / "split.json"
    for part in ("val", "test"):
        again = evaluate(run_dir / "model", photos, split_file=split, part=part)
        assert again.loss == pytest.approx(result.scores[part].loss, abs=1e-6)
    saved = load_model(run_dir / "model")
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(saved.classifier(pixels), saved.classifier(pixels.flip(-1)))
    file = next((photos / "rose").iterdir())
    served = result.model.predict(file, top_k=3)[0]
    assert served == result.model.predict(file, top_k=3, tta=True)[0]
    mirrored = af.load_model(run_dir).predict(file, top_k=3)[0]
    assert served == mirrored


@pytest.mark.parametrize("asked", ["mirror", "auto"])
def test_auto_is_never_worse_than_none_on_validation(tmp_path: Path, asked: str) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    plain = train(tiny_config(photos, tmp_path / "plain", train={"epochs": 1})).scores["val"].loss
    config = tiny_config(photos, tmp_path / asked, model={"tta": asked}, train={"epochs": 1})
    found = train(config).scores["val"].loss
    assert found != plain if asked == "mirror" else found <= plain


@pytest.mark.parametrize(
    ("before", "after", "metric", "taken"),
    [
        ((0.8, 0.5), (0.9, 0.9), "accuracy", True),
        ((0.8, 0.5), (0.7, 0.1), "accuracy", False),
        ((0.8, 0.5), (0.8, 0.4), "accuracy", True),
        ((0.8, 0.5), (0.8, 0.6), "accuracy", False),
        ((0.8, 0.5), (0.1, 0.4), "loss", True),
        ((0.8, 0.5), (0.9, 0.6), "loss", False),
    ],
)
def test_an_epoch_joins_the_mean_where_validation_does_not_get_worse(
    before: tuple[float, float], after: tuple[float, float], metric: str, taken: bool
) -> None:
    assert is_no_worse(*({"accuracy": accuracy, "loss": loss} for accuracy, loss in (after, before)), metric) is taken


def test_between_is_a_line_and_counters_are_those_of_the_first() -> None:
    first = {"w": torch.tensor([1.0, 2.0]), "running_var": torch.tensor([4.0]), "num_batches_tracked": torch.tensor(7)}
    second = {
        "w": torch.tensor([3.0, -2.0]),
        "running_var": torch.tensor([2.0]),
        "num_batches_tracked": torch.tensor(1),
    }
    quarter = between(first, second, 0.25)
    assert torch.equal(quarter["w"], torch.tensor([1.5, 1.0]))
    assert torch.equal(quarter["running_var"], torch.tensor([3.5])), "batch norm's statistics, too"
    assert quarter["num_batches_tracked"] == 7
    assert all(torch.equal(between(first, second, 0.0)[name], value) for name, value in first.items())
    assert torch.equal(between(first, second, 1.0)["w"], second["w"])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"soup": {"start": 0.3}}, "without head_epochs the head of these has learnt nothing"),
        ({"soup": {"start": 0.3}, "train": {"head_epochs": 1}, "model": {"freeze": "backbone"}}, "take one of them"),
        ({"soup": {"start": 0}, "train": {"head_epochs": 1}}, "auto, or a share above 0, up to 1"),
        ({"soup": {"start": "best"}, "train": {"head_epochs": 1}}, "auto, or a share above 0, up to 1"),
    ],
)
def test_mistakes_of_the_start_are_told(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config.model_validate(sections)


@pytest.mark.holds("The first weights are kept for the end of the run")
@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_ends_on_the_line_to_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture, averaged: bool) -> None:
    """The saved weights are seven tenths of the best epoch's and three of those after the head's epochs, statistics of batch norm
    included; the first have the backbone that the run began with, to the bit, and their checkpoint is kept."""
    looks = itertools.count()
    register("metric", "test/later")(lambda _: next(looks))  # the last epoch is the best
    photos = make_folder(tmp_path / "photos", per_class=12)
    run_dir = tmp_path / "run"
    config = tiny_config(
        photos, run_dir, model={"name": "shufflenet_v2_x0_5"},
        train={"epochs": 4, "head_epochs": 0.9, "best_metric": "test/later"},
        soup={"start": 0.3}, checkpoint={"keep_last": 1}, ema={"decay": 0.9 if averaged else None},
    )  # fmt: skip
    train(config)
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    start, best = state["start_step"], state["best_step"]
    assert start == 4, "of 30 images, 8 a step"
    there = {int(folder.name[5:]) for folder in (run_dir / "checkpoints").glob("step-*")}
    assert there == {start, best}
    assert best == state["step"] > start
    file = "averaged.safetensors" if averaged else "model.safetensors"
    first, last = (load_file(run_dir / f"checkpoints/step-{step:08d}" / file) for step in (start, best))
    kept = load_file(run_dir / "model/model.safetensors")
    statistics = [name for name in kept if name.endswith("running_var")]
    assert any(not torch.equal(first[name], last[name]) for name in statistics)
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.7 * last[name] + 0.3 * first[name])
        else:
            assert torch.equal(tensor, last[name])
    begun = first_weights(config)
    assert all(torch.allclose(first[name], begun[name]) for name in kept if not name.startswith("fc."))
    assert not torch.allclose(first["fc.weight"], begun["fc.weight"])
    assert scores_of(run_dir)["share_of_start"] == 0.3
    assert f"0.3 of the weights from before fine-tuning, of step {start}: validation loss" in caplog.text
    again = evaluate(run_dir / "model", photos, split_file=run_dir / "split.json", part="val")
    assert again.loss == pytest.approx(scores_of(run_dir)["loss"], abs=1e-6)


def first_weights(config: Config) -> dict[str, Tensor]:
    """Those that a run with this configuration begins with."""
    torch.manual_seed(random_key(config.train.seed, "first weights"))
    return build_network(config.model.name, 3)[0].state_dict()


def test_auto_takes_the_share_that_validation_is_best_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all shares that do not make the accuracy worse that with the lowest loss; none where none lowers it."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    tried: list[tuple[float, float]] = []

    scored = ends._score

    def remember(session: Any, part: str, network: nn.Module) -> Any:
        found = scored(session, part, network)
        if session.run.state.step == session.run.plan.num_steps and part == "val":
            tried.append((found.scores["accuracy"], found.scores["loss"]))
        return found

    monkeypatch.setattr(ends, "_score", remember)
    config = tiny_config(photos, tmp_path / "run", train={"epochs": 3, "head_epochs": 1}, soup={"start": "auto"})
    train(config)
    _, plain, *mixed = tried  # the last epoch's end, then the best weights, then with the shares
    assert len(mixed) == len(choose.SHARES_TO_TRY)
    found = {0.0: plain} | dict(zip(choose.SHARES_TO_TRY, mixed, strict=True))
    allowed = {share: loss for share, (accuracy, loss) in found.items() if accuracy >= plain[0]}
    taken = min(allowed, key=allowed.__getitem__)
    assert scores_of(tmp_path / "run").get("share_of_start", 0.0) == taken
    assert scores_of(tmp_path / "run")["loss"] == found[taken][1]
    assert ("(auto) of the weights" if taken else "none of the shares 0.1, 0.2, 0.3, 0.5") in caplog.text


@pytest.mark.holds("The first weights are kept for the end of the run")
def test_a_run_whose_first_weights_are_damaged_goes_back_to_before_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every_checkpoint: None
) -> None:
    photos = make_folder(tmp_path / "photos", per_class=12)
    config = tiny_config(
        photos, tmp_path / "run", train={"epochs": 2, "head_epochs": 1}, soup={"start": 0.5},
        checkpoint={"keep_last": 20, "every_steps": 1},
    )  # fmt: skip
    train(config)
    before = load_file(tmp_path / "run/model/model.safetensors")
    (tmp_path / "run/checkpoints/step-00000004/model.safetensors").write_bytes(b"spoilt")
    train(config.model_copy(update={"resume": "auto"}))
    assert "going on after step 3" in caplog.text
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
