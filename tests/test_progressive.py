"""Pictures that grow: which size when, that all of a step have it, and what is told where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.data.transforms.build_batch import build_batch_transform
from accel_flowers.data.transforms.progressive import ProgressiveSize, size_at
from accel_flowers.report.text import parts_of_curves
from accel_flowers.training.graph import graphed, why_not
from accel_flowers.training.step import TrainStep
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.runs import metrics, tiny_config

RUN = BatchContext(num_classes=3, seed=5, micro_batch=4, num_images=100, epochs=4, global_batch=8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=8)


def test_sizes_of_a_run() -> None:
    """224 pixels, from six tenths (134) to three quarters of the run, in steps of 32."""
    sizes = [size_at(at / 100, (224, 224), start=0.6, until=0.75, multiple=32)[0] for at in range(101)]
    assert [sizes.index(size) for size in (128, 160, 192, 224)] == [0, 22, 49, 75]
    assert set(sizes) == {128, 160, 192, 224}


@given(height=st.integers(8, 400), width=st.integers(8, 400), start=st.floats(0.1, 0.99), until=st.floats(0.05, 1.0),
       multiple=st.sampled_from([1, 8, 32, 50]))  # fmt: skip
def test_sizes_rise_to_the_whole_and_all_are_known_before(
    height: int, width: int, start: float, until: float, multiple: int
) -> None:
    whole = (height, width)
    sizes = [size_at(at / 300, whole, start=start, until=until, multiple=multiple) for at in range(301)]
    assert sizes == sorted(sizes)
    assert all(size == whole for at, size in enumerate(sizes) if at / 300 >= until)
    for size in sizes:
        for side, of_whole in zip(size, whole, strict=True):
            assert side <= of_whole
            assert side == of_whole or side % multiple == 0
    smaller = {*sizes} - {whole}
    transform = ProgressiveSize(RUN, start, until, multiple)
    if smaller:
        assert smaller <= {*transform.smaller_sizes(whole)}
        assert whole not in transform.smaller_sizes(whole)
        assert transform.smaller_sizes(whole)[0] == sizes[0], "the smallest comes first"


@pytest.mark.holds("Pictures that grow have one size in a step")
def test_all_micro_batches_of_a_step_have_one_size() -> None:
    """Of a picture always the same pixels come, in any micro-batch; labels stay labels."""
    torch.manual_seed(0)
    inputs, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 3
    transform = ProgressiveSize(RUN, start=0.3, until=0.75, multiple=4)
    seen = set()
    for step in range(50):
        whole, targets = transform(inputs, labels, 8 * step)
        assert torch.equal(targets, labels)
        seen.add(whole.shape[-1])
        for place in range(0, 8, 2):
            piece, _ = transform(inputs[place : place + 2], labels[place : place + 2], 8 * step + place)
            assert torch.equal(piece, whole[place : place + 2])
    assert seen == {8, 12, 16, 20, 24, 28, 32}
    assert transform(inputs, labels, 304)[0] is inputs, "whole from three quarters on"
    trial = ProgressiveSize(BatchContext(3, 5, 4), multiple=4)
    assert trial(inputs, labels, 0)[0] is inputs, "a trial of the memory measures with whole pictures"


def test_a_resized_picture_is_the_picture() -> None:
    """A flat half stays flat, its edge in the middle, its mean the mean."""
    inputs = torch.zeros(2, 3, 32, 32)
    inputs[..., 16:] = 1.0
    small, _ = ProgressiveSize(RUN, start=0.5, multiple=16)(
        inputs.contiguous(memory_format=torch.channels_last), torch.tensor([0, 1]), 0
    )
    assert small.shape == (2, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small[..., :7], torch.zeros(2, 3, 16, 7))
    torch.testing.assert_close(small[..., 9:], torch.ones(2, 3, 16, 7))
    assert float(small.mean()) == pytest.approx(0.5)


def test_in_turn_with_mixing() -> None:
    inputs, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    both = build_batch_transform([{"mixup": {"alpha": 1.0}}, {"progressive_size": {"from": 0.5, "multiple": 8}}], RUN)
    assert both is not None
    mixed, targets = both(inputs, labels, 0)
    assert mixed.shape == (4, 3, 16, 16)
    assert targets.shape == (4, 3)
    alone = build_batch_transform(["mixup"], RUN)
    assert alone is not None
    assert not alone.resizes
    assert both.resizes
    assert build_batch_transform([], RUN) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"progressive_size": {"from": 1}}, "from is a share between 0 and 1, not 1"),
        ({"progressive_size": {"until": 0}}, "until is a share of the run above 0"),
        ({"progressive_size": {"multiple": 0.5}}, "multiple is a number of pixels"),
        ({"progressive_size": {"from": "half"}}, "does not take"),
        ({"progressive_size": {"start": 0.5}}, "unexpected argument 'start': from, until and multiple are known"),
        ("progresive_size", "Did you mean 'progressive_size'"),
    ],
)
def test_mistakes_are_told(spec: str | dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_batch_transform([spec], RUN)


def test_one_of_each_kind() -> None:
    with pytest.raises(UserError, match="mixed once"):
        build_batch_transform(["mixup", "cutmix"], RUN)
    with pytest.raises(UserError, match="progressive_size goes once"):
        build_batch_transform(["progressive_size", "progressive_size"], RUN)
    with pytest.raises(ValueError, match="several are a list"):
        Config.model_validate({"data": {"batch_transform": {"mixup": {}, "cutmix": {}}}})
    with pytest.raises(ValueError, match="or a list of such"):
        Config.model_validate({"data": {"batch_transform": [3]}})


def test_recipes_name_one_or_several() -> None:
    for given_, taken in (
        (None, ()),
        ("mixup", ("mixup",)),
        ({"mixup": {"alpha": 0.4}}, ({"mixup": {"alpha": 0.4}},)),
        (["cutmix", {"progressive_size": {"multiple": 8}}], ("cutmix", {"progressive_size": {"multiple": 8}})),
    ):
        config = Config.model_validate({"data": {"batch_transform": given_}})
        assert config.data.batch_transforms == taken
        again = Config.model_validate(config.model_dump(mode="json"))
        assert again == config
    told = parts_of_curves({"train": 9, "val": 3}, config, loss=True)
    assert "on mixed pictures, on smaller pictures at first." in told


def test_no_cuda_graph_of_pictures_that_grow(caplog: pytest.LogCaptureFixture) -> None:
    gpu, plan = torch.device("cuda"), BatchPlan(100, 4, 8)
    config = Config.model_validate({"train": {"cuda_graph": "on"}})
    assert why_not(config, device=gpu, plan=plan) is None
    mix = build_batch_transform(["progressive_size"], RUN)
    step = TrainStep(*[None] * 6, mix=mix)  # type: ignore[arg-type] # nothing of it is asked
    with pytest.raises(UserError, match="a graph takes pictures of one size, and these grow"):
        graphed(step, config, device=gpu, plan=plan)
    auto = Config.model_validate({"train": {"cuda_graph": "auto"}})
    assert graphed(step, auto, device=gpu, plan=plan) is step
    assert "these grow" in caplog.text


def test_what_cannot_take_them_is_told_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    """A vision transformer has a place for each patch; and 32 pixels have no smaller multiple of 32."""
    data = {"batch_transform": {"progressive_size": {"from": 0.5, "multiple": 16}}}
    size = [{"Resize": {"size": [224, 224]}}]
    config = tiny_config(
        photos, tmp_path / "vit", model={"name": "vit_b_32"},
        data={**data, "train_transforms": size, "eval_transforms": size},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"vit_b_32 112 x 112 pixels on the way to 224 x 224"):
        train(config)
    config = tiny_config(photos, tmp_path / "compiled", train={"compile": True}, data=data)
    with pytest.raises(UserError, match=r"goes without --train\.compile"):
        train(config)
    config = tiny_config(photos, tmp_path / "small", data={"batch_transform": "progressive_size"})
    with pytest.raises(UserError, match=r"changes nothing, because 0\.6 of pictures of 32 x 32 pixels"):
        train(config)


@pytest.mark.holds("Pictures that grow have one size in a step")
def test_the_network_sees_them_grow(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 images, 8 of them a step in two forward passes; evaluation is whole throughout, and accuracy is logged."""
    seen: dict[bool, list[int]] = {True: [], False: []}
    shown = nn.Module.__call__

    def note(module: nn.Module, *inputs: Any, **named: Any) -> Any:
        if type(module).__name__ == "SqueezeNet" and isinstance(inputs[0], Tensor) and len(inputs[0]) > 1:
            seen[module.training].append(inputs[0].shape[-1])
        return shown(module, *inputs, **named)

    config = tiny_config(
        photos, tmp_path / "run", train={"epochs": 4},
        data={"batch_transform": [{"progressive_size": {"from": 0.65, "until": 0.75, "multiple": 4}}]},
    )  # fmt: skip
    monkeypatch.setattr(nn.Module, "__call__", note)
    train(config)
    steps = len(metrics(tmp_path / "run", "train/loss"))
    tried, *sizes = seen[True]
    assert tried == 20, "whether training mode takes the smallest is seen before the first step"
    assert len(sizes) == 2 * steps
    assert sizes[::2] == sizes[1::2], "both forward passes of a step"
    assert sizes == sorted(sizes)
    assert {*sizes} == {20, 24, 28, 32}
    assert sizes.count(32) >= 2 * steps // 4
    assert {*seen[False]} == {32}
    assert len(metrics(tmp_path / "run", "train/accuracy")) == steps
