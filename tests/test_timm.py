"""Networks of timm: built, trained, read back and explained like torchvision's; each test skips where timm is not installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import is_own_name, register
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.models.backbone import NORMS
from accel_flowers.models.find import find_backbone
from accel_flowers.models.freezing import freeze
from accel_flowers.models.saved import load_model
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.report.cam import explain
from accel_flowers.report.draw import draw_report
from accel_flowers.training.train import train
from tests.conftest import CLASSES, make_folder
from tests.runs import tiny_config

timm = pytest.importorskip("timm")

SMALL = "timm/test_resnet"  # made for tests: half a million parameters
FAMILIES = (
    "convnext_atto", "densenet121", "mobilenetv3_large_100", "resnet50.a1_in1k", "resnetv2_50", "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0", "vit_tiny_patch16_224",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_and_stages_cover_a_network_once(name: str) -> None:
    backbone = find_backbone(f"timm/{name}")
    with torch.device("meta"):
        network, report = backbone.build(7)
    head = network.get_submodule(backbone.head(network))
    assert isinstance(head, torch.nn.Linear | torch.nn.Conv2d)
    assert head.weight.shape[0] == 7
    assert report.head_is_new
    held = [
        parameter
        for stage in backbone.stages(network)
        for path in stage
        for parameter in (
            network.get_submodule(path).parameters()
            if path in dict(network.named_modules())
            else [network.get_parameter(path)]
        )
    ]
    assert len(held) == len(set(map(id, held)))
    assert {*map(id, held), *map(id, head.parameters())} == {id(parameter) for parameter in network.parameters()}
    for stage in backbone.stages(network):
        modules = [dict(network.named_modules()).get(path) for path in stage]
        assert not all(isinstance(module, NORMS) for module in modules), "a norm on its own is no stage"


def test_stages_can_be_frozen() -> None:
    backbone = find_backbone(SMALL)
    network, _ = backbone.build(3)
    stages = backbone.stages(network)
    frozen = freeze(network, 1, backbone)
    assert frozen
    assert len(stages) > 2
    assert all(not network.get_parameter(name).requires_grad for name in frozen)
    assert network.get_parameter(f"{backbone.head(network)}.weight").requires_grad


@pytest.mark.holds("A network of timm is timm's")
def test_preprocessing_is_that_of_the_weights() -> None:
    seen = find_backbone("timm/tf_efficientnet_lite2").preprocessing()
    assert (seen.size, seen.mean, seen.interpolation) == ((260, 260), (0.5, 0.5, 0.5), "bicubic")
    for name in FAMILIES:
        network, ours = timm.create_model(name, pretrained=False), find_backbone(f"timm/{name}").preprocessing()
        theirs = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
        assert theirs.transforms[0].size == ours.resize
        assert tuple(theirs.transforms[1].size) == ours.size


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnet5", "has no model 'resnet5'"),
        ("timm/resnet50.nothing", r"no weights 'nothing' of resnet50\. It has: a1_in1k"),
        ("timm/hf-hub:owner/name", "has no model"),
        ("timm/local-dir:/etc", "has no model"),
        ("timm/", "has no model"),
    ],
)
def test_a_name_that_timm_does_not_know(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_backbone(name)


def test_two_heads_are_refused() -> None:
    with pytest.raises(UserError, match="2 heads"):
        find_backbone("timm/deit_tiny_distilled_patch16_224").build(3)


def test_the_prefix_belongs_to_timm() -> None:
    assert not is_own_name(SMALL)
    with pytest.raises(UserError, match="prefix of its own"):
        register("model", "timm/mine")(lambda num_classes: torch.nn.Linear(1, num_classes))


def test_no_network_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"are not to be had(.|\n)*--model\.weights PATH"):
        find_backbone(SMALL).build(3, weights="imagenet")


def test_weights_of_a_file_are_taken_but_for_the_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    there = timm.create_model(SMALL.removeprefix("timm/"), pretrained=False, num_classes=1000)
    save_file(clean_state_dict(there), tmp_path / "weights.safetensors")
    network, report = find_backbone(SMALL).build(3, weights=str(tmp_path / "weights.safetensors"), dropout=0.25)
    head = find_backbone(SMALL).head(network)
    assert report.head_is_new
    assert not report.at_random
    assert network.drop_rate == 0.25
    for name, tensor in there.state_dict().items():
        if not name.startswith(f"{head}."):
            assert torch.equal(network.state_dict()[name], tensor)


@pytest.mark.holds("A network of timm is timm's")
def test_from_training_to_the_report(photos: Path, tmp_path: Path) -> None:
    """Trained, scored, asked, explained, drawn, and read by timm."""
    result = train(tiny_config(photos, tmp_path / "run", model={"name": SMALL}, train={"epochs": 1}))
    scores = evaluate(result.run_dir / "model", photos, num_workers=0)
    assert scores.num_images == 12 * len(CLASSES)
    files = sorted(photos.rglob("*.png"))
    answers = result.model.predict(files)
    assert sum(answer.label == file.parent.name for answer, file in zip(answers, files, strict=True)) == round(
        scores.num_images * scores.accuracy
    )
    saved = load_model(result.run_dir / "model")
    plain = timm.create_model(SMALL.removeprefix("timm/"), pretrained=False, num_classes=len(CLASSES))
    plain.load_state_dict(load_file(result.run_dir / "model" / "model.safetensors"), strict=False)
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(inputs), saved.network(inputs))
    found = explain(saved, [Image.open(files[0]).convert("RGB")], [0])
    assert found.method.startswith("Grad-CAM")
    assert draw_report(result.run_dir).exists()


@pytest.mark.slow
def test_real_weights_know_flowers(tmp_path: Path) -> None:
    """The files of real weights fit, and the network with its own head calls a daisy a daisy."""
    weights, pictures = os.environ.get("ACCEL_FLOWERS_TEST_WEIGHTS"), os.environ.get("ACCEL_FLOWERS_TEST_PHOTOS")
    file = Path(weights or "", "timm-tf_efficientnet_lite0-imagenet.safetensors")
    if not (weights and pictures and file.exists()):
        pytest.skip("ACCEL_FLOWERS_TEST_WEIGHTS and ACCEL_FLOWERS_TEST_PHOTOS name no weights of timm and no photos")
    config = tiny_config(
        Path(pictures), tmp_path / "run",
        model={"name": "timm/tf_efficientnet_lite0", "weights": str(file), "freeze": "backbone"},
        debug={"fast_dev_run": True}, tracking={"report": False},
    )  # fmt: skip
    open_fields = dict.fromkeys(("train_transforms", "eval_transforms", "mean", "std"))
    result = train(config.model_copy(update={"data": config.data.model_copy(update=open_fields)}))
    saved = load_model(result.run_dir / "model")
    assert saved.spec.mean == (0.5, 0.5, 0.5)
    assert saved.spec.transforms[1] == {"CenterCrop": {"size": 224}}
    network, report = find_backbone("timm/tf_efficientnet_lite0").build(1000, weights=str(file))
    assert not report.head_is_new
    daisies = sorted(Path(pictures, "daisy").glob("*.jpg"))[:20]
    pixels = torch.stack([saved.transform(Image.open(daisy).convert("RGB")) for daisy in daisies])
    with torch.no_grad():
        called = network.eval()(saved.normalizer(pixels)).argmax(dim=1)
    assert (called == _DAISY).float().mean() > 0.7


_DAISY = 985
"""Its number among ImageNet's classes."""
