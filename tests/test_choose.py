"""What a run ends with: the mean of several epochs' weights, and the views of a picture whose scores are averaged."""

from __future__ import annotations

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
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.models.saved import load_model, load_spec
from accel_flowers.models.views import MeanOfViews
from accel_flowers.training.choose import is_no_worse, mean_of
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
