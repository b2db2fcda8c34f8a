"""A network of the user's own: found by its name, built, frozen, trained, saved, read back, asked; and never imported
because a file names it."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.inference.image_classifier import load_model
from accel_flowers.metrics.classification import Seen
from accel_flowers.models.backbone import Backbone, Preprocessing, check_input
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, load_spec, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.torchvision import TorchvisionBackbone, model_names
from accel_flowers.models.weights import WeightsReport, clean_state_dict
from accel_flowers.report.cam import explain
from accel_flowers.training.train import train
from tests.runs import tiny_config
from tests.specs import change_spec, read_spec

MODULE = """
import sys
from pathlib import Path

from torch import nn

from accel_flowers.core.registry import register

Path(__file__).with_suffix(".imported").write_text("")


@register("model", "garden/net")
def net(num_classes, dropout=None):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout or 0.0), nn.Linear(12, num_classes),
    )
"""


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", {})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's that can be imported."""
    path = tmp_path / "parts" / "garden_parts.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(path.parent)
    yield path
    sys.modules.pop("garden_parts", None)


class Net(nn.Module):
    """Two stages, and a head inside of an inner module."""

    def __init__(self, num_classes: int, dropout: float | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.answer = nn.ModuleDict({"hidden": nn.Linear(8, 8), "scores": nn.Linear(8, num_classes)})
        self.p = dropout or 0.0

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.answer["hidden"](self.body(self.stem(pixels) * self.scale))
        scores: Tensor = self.answer["scores"](nn.functional.dropout(hidden, self.p, self.training))
        return scores


class Own(Backbone):
    """What a user writes: `build` alone."""

    def __init__(self, num_extra: int = 0) -> None:
        self.num_extra = num_extra

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        network = Net(num_classes, dropout)
        return network, self.first_weights(network, weights)


def spec(name: str, **values: Any) -> ModelSpec:
    given = {
        "class_names": ("daisy", "rose", "tulip"),
        "transforms": ({"Resize": {"size": [32, 32]}},),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    return ModelSpec.model_validate({"architecture": name, **given, **values})


def save(directory: Path, name: str, **values: Any) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(name, 3)[0].eval()
    save_model(directory, clean_state_dict(network), spec(name, **values))
    return network


# Found by its name


@pytest.mark.parametrize(
    ("make", "dropout"), [(Net, 0.25), (lambda num_classes: Net(num_classes), None), (Own, 0.25), (Own(), 0.25), (functools.partial(Net), 0.25)]
)  # fmt: skip
def test_functions_classes_and_objects_are_found(make: Any, dropout: float | None) -> None:
    registry.register("model", "my/net")(make)
    backbone = find_backbone("my/net")
    network, report = backbone.build(5, dropout=dropout)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert network.p == (dropout or 0.0)  # type: ignore[comparison-overlap]
    assert backbone.name == "my/net"
    assert backbone.head(network) == "answer.scores"
    assert report.head == ("answer.scores.weight", "answer.scores.bias")
    assert report.summary() == f"all {len(report.missing)} tensors at random"
    assert backbone.preprocessing() == Preprocessing()
    assert registry.described({"model": ["my/net"]})["model my/net"]["module"] == __name__
    assert registry.described({"model": ["my/net"]})["model my/net"]["digest"] != "unknown"


def test_stages_are_found_around_the_head() -> None:
    registry.register("model", "my/net")(Own)
    backbone = find_backbone("my/net")
    network = backbone.build(5)[0]
    assert backbone.stages(network) == [("scale", "stem"), ("body",), ("answer.hidden",)]
    assert freeze(network, 2, backbone) == [
        name for name, _ in network.named_parameters() if not name.startswith("answer")
    ]
    freeze(network, "backbone", backbone)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "answer.scores.weight",
        "answer.scores.bias",
    ]


def test_a_network_that_is_a_head_alone_has_no_stages() -> None:
    registry.register("model", "my/linear")(lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)))
    backbone = find_backbone("my/linear")
    network = backbone.build(4)[0]
    assert backbone.stages(network) == []
    assert freeze(network, "backbone", backbone) == []


def test_a_backbone_may_name_its_head() -> None:
    class Other(Own):
        def head(self, network: nn.Module) -> str:
            return "answer"

    registry.register("model", "my/net")(Other)
    network, report = find_backbone("my/net").build(5)
    assert len(report.head) == 4
    frozen = freeze(network, "backbone", find_backbone("my/net"))
    assert not any(name.startswith("answer") for name in frozen)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda num_classes: Net(num_classes), {"dropout": 0.5}, r"model\.dropout: my/net takes none.*no parameter `dropout`"),
        (lambda num_classes: "a network", {}, "'my/net' made a str, which is no torch.nn.Module"),
        (lambda num_classes: nn.Flatten(), {}, "Flatten has no Linear and no Conv2d layer"),
        (Net, {"weights": "imagenet"}, "my/net brings no ImageNet weights.*--model.weights none"),
        (Own, {"weights": "imagenet"}, "my/net brings no ImageNet weights.*--model.weights none"),
        (Own, {"weights": "nowhere.pth"}, "no file of weights nowhere.pth"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_told(make: Any, options: dict[str, Any], message: str) -> None:
    registry.register("model", "my/net")(make)
    with pytest.raises(UserError, match=message):
        build_network("my/net", 5, **options)


def test_an_unknown_name_says_how_parts_come_in() -> None:
    registry.register("model", "my/net")(Net)
    with pytest.raises(UserError, match=r"model\.name: .*'my/nett' is not known.*Did you mean 'my/net'.*--import"):
        find_backbone("my/nett")


@pytest.mark.parametrize(
    ("answer", "told"), [((1, 5), None), ((1, 4), r"shape \[1, 4\]"), ((1, 5, 1), r"shape \[1, 5, 1\]")]
)
def test_an_answer_that_is_no_row_of_scores_is_told(answer: tuple[int, ...], told: str | None) -> None:
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return torch.zeros(answer)

    network = Odd(1, 1)
    if told is None:
        check_input(network, (3, 8, 8), num_classes=5)
        return
    with pytest.raises(UserError, match=f"Odd answers one picture with a tensor of {told}.*scores \\[1, 5\\]"):
        check_input(network, (3, 8, 8), num_classes=5)


def test_first_weights_come_from_a_file(tmp_path: Path) -> None:
    registry.register("model", "my/net")(Net)
    torch.manual_seed(1)
    state = clean_state_dict(build_network("my/net", 9)[0])
    torch.save(state, tmp_path / "start.pth")
    network, report = build_network("my/net", 4, weights=str(tmp_path / "start.pth"))
    assert report.head_is_new
    assert [name for name, _, _ in report.mismatched] == ["answer.scores.weight", "answer.scores.bias"]
    assert torch.equal(network.state_dict()["stem.0.weight"], state["stem.0.weight"])
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has nothing for the backbone of my/net"):
        build_network("my/net", 4, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "efficientnet_b3", "vit_b_16"])
def test_torchvision_tells_how_its_images_looked(name: str) -> None:
    seen = TorchvisionBackbone(name).preprocessing()
    sizes = {"inception_v3": (299, 342), "efficientnet_b3": (300, 320)}
    side, resize = sizes.get(name, (224, 256))
    assert (seen.size, seen.resize, seen.mean) == ((side, side), resize, (0.485, 0.456, 0.406))
    assert seen.interpolation == ("bicubic" if name == "efficientnet_b3" else "bilinear")


def test_every_model_of_torchvision_has_a_preprocessing() -> None:
    for name in model_names():
        seen = TorchvisionBackbone(name).preprocessing()
        assert all(isinstance(value, int) for value in (*seen.size, seen.resize)), name


# Saved and read back


def test_it_comes_back_and_is_asked(module: Path, tmp_path: Path, folder: Path) -> None:
    registry.import_parts(["garden_parts"])
    network = save(tmp_path / "model", "garden/net", temperature=1.5)
    written = load_spec(tmp_path / "model").parts
    assert list(written) == ["model garden/net"]
    assert written["model garden/net"]["module"] == "garden_parts"
    assert len(written["model garden/net"]["digest"]) == 32

    model = load_model(tmp_path / "model")
    images = [Image.open(file) for file in sorted(folder.rglob("*.png"))]
    found = model.predict(images, top_k=3)
    with torch.inference_mode():
        pixels = torch.stack([model._saved.transform(image) for image in images])
        expected = (network((pixels / 255 - 0.5) / 0.25) / 1.5).softmax(dim=1)
    for answer, row in zip(found, expected.tolist(), strict=True):
        assert dict(answer.top) == pytest.approx(dict(zip(model.class_names, row, strict=True)), abs=1e-4)
    scores = evaluate(tmp_path / "model", folder)
    assert scores.num_images == 30
    assert "Grad-CAM on the last feature map (4)" in explain(model._saved, images[:1], [0]).method


@pytest.mark.holds("A `model/` that names a module never has it imported; without its parts a model says what to add")
def test_without_its_module_the_model_says_what_to_add(module: Path, tmp_path: Path) -> None:
    registry.import_parts(["garden_parts"])
    save(tmp_path / "model", "garden/net")
    registry._parts.clear()
    sys.modules.pop("garden_parts")
    module.with_suffix(".imported").unlink()
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model' / SPEC_FILE} needs parts of somebody's own")
    assert "model garden/net (recorded as from the module garden_parts)" in message
    assert "add --import garden_parts (in Python, import it first)" in message
    assert "\n" not in message
    assert "garden_parts" not in sys.modules, "the module lies on the path, and still"
    assert not module.with_suffix(".imported").exists()


@pytest.mark.holds("A `model/` that names a module never has it imported; without its parts a model says what to add")
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"model garden/net": {"module": "garden_parts", "digest": "0" * 32}},
        {"model garden/net": {"module": "garden_parts\x1b[2J\nimport os", "digest": ""}},
        {"model garden/net": {}},
        {"model other/net": {"module": "garden_parts"}},
        {"garden_parts": {"module": "garden_parts"}},
    ],
)
@pytest.mark.parametrize("architecture", ["garden/net", "garden_parts", "garden_parts.net", "garden_parts/net"])
def test_a_file_that_names_a_module_never_has_it_imported(
    module: Path, tmp_path: Path, architecture: str, parts: dict[str, dict[str, str]]
) -> None:
    save(tmp_path / "model", "shufflenet_v2_x0_5")
    change_spec(tmp_path / "model", architecture=architecture, parts=parts)
    sys.path.append(str(module.parent))
    for ask in (load_model, lambda directory: evaluate(directory, tmp_path)):
        with pytest.raises(UserError) as caught:
            ask(tmp_path / "model")
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert "garden_parts" not in sys.modules
    assert not module.with_suffix(".imported").exists()


def test_a_record_of_another_kind_is_told(tmp_path: Path) -> None:
    save(tmp_path / "model", "shufflenet_v2_x0_5")
    change_spec(tmp_path / "model", parts=["garden_parts"])
    with pytest.raises(UserError, match="parts: "):
        load_spec(tmp_path / "model")


def test_models_of_torchvision_are_saved_as_ever(tmp_path: Path) -> None:
    save(tmp_path / "model", "shufflenet_v2_x0_5")
    assert "parts" not in read_spec(tmp_path / "model")


def test_transforms_of_ones_own_are_recorded_and_missed(tmp_path: Path) -> None:
    inner = {"RandomApply": {"transforms": [{"my/fog": {"strength": 2}}]}}
    given = spec("shufflenet_v2_x0_5", transforms=("my/rain", inner, {"Resize": {"size": [32, 32]}}))
    assert list(given.own_parts()) == [("transform", "my/rain"), ("transform", "my/fog")]
    registry.register("transform", "my/rain")(Net)
    save_model(tmp_path / "model", clean_state_dict(build_network("shufflenet_v2_x0_5", 3)[0]), given)
    assert load_spec(tmp_path / "model").parts.keys() == {"transform my/rain"}
    registry._parts.clear()
    with pytest.raises(UserError, match=rf"transform my/rain, transform my/fog \(.*{__name__}.*--import {__name__}"):
        load_model(tmp_path / "model")


def test_a_source_that_changed_is_told(module: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry.import_parts(["garden_parts"])
    save(tmp_path / "model", "garden/net")
    load_model(tmp_path / "model")
    assert not caplog.records
    module.write_text(MODULE + "# changed\n")
    load_model(tmp_path / "model")
    assert "the source of model garden/net has changed since the model was saved" in caplog.text


@pytest.mark.parametrize("name", ["regnet_y_400mf", "regnet_x_400mf"])
def test_a_regnet_comes_back(tmp_path: Path, name: str) -> None:
    """It computes its widths with tensors while it is built."""
    network = save(tmp_path / "model", name)
    again = load_model(tmp_path / "model")._saved.network
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_nothing_is_allocated_for_a_giant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "shufflenet_v2_x0_5")
    change_spec(tmp_path / "model", architecture="vit_h_14")
    devices: list[set[str]] = []
    build = TorchvisionBackbone._build_at_random

    def seen(self: TorchvisionBackbone, *words: Any) -> nn.Module:
        network = build(self, *words)
        devices.append({p.device.type for p in network.parameters()})
        return network

    monkeypatch.setattr(TorchvisionBackbone, "_build_at_random", seen)
    with pytest.raises(UserError, match=f"{WEIGHTS} does not fit this VisionTransformer"):
        load_model(tmp_path / "model")
    assert devices == [{"meta"}]


# Trained


def test_it_is_trained_and_resumed_like_any_other(module: Path, folder: Path, tmp_path: Path) -> None:
    registry.import_parts([str(module)])
    model = {"name": "garden/net", "dropout": 0.1, "freeze": 1, "weights": "none"}
    config = tiny_config(folder, tmp_path / "run", model=model, train={"epochs": 1})
    train(config)
    before = (tmp_path / "run/model" / WEIGHTS).read_bytes()
    shutil.rmtree(tmp_path / "run/model")
    train(config.model_copy(update={"resume": "auto"}))
    assert (tmp_path / "run/model" / WEIGHTS).read_bytes() == before
    saved = load_spec(tmp_path / "run/model")
    assert (saved.architecture, saved.dropout) == ("garden/net", 0.1)
    assert saved.parts["model garden/net"]["module"] == "garden_parts"
    scores = evaluate(tmp_path / "run/model", folder, split_file=tmp_path / "run/split.json", part="val")
    assert scores.seen == Seen(train=0, val=scores.num_images, others=None)
    assert replace(scores, seen=None).as_json().items() <= {**saved.scores["val"], "part": "val"}.items()
    assert load_model(tmp_path / "run/model").predict(folder / "rose" / "00.png")[0].label in saved.class_names
