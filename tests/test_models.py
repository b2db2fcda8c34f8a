"""Networks: heads of every family, first weights from every kind of file, freezing, and the size of images.

Large networks are built on the meta device, which has shapes and no values, so all 80 take seconds.
"""

from __future__ import annotations

import copy
import os
import pickle
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers.core.errors import UserError
from accel_flowers.models import freezing
from accel_flowers.models.backbone import check_input, last_layer, wants_channels_last
from accel_flowers.models.find import find_backbone
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.torchvision import DropoutLinear, model_names
from accel_flowers.models.weights import WeightsReport, clean_state_dict, load_state, read_weights

SMALL = "shufflenet_v2_x0_5"  # 0.4 million parameters, batch norms, no dropout
FAMILIES = {
    "alexnet": "classifier.6",
    "vgg11": "classifier.6",
    "vgg11_bn": "classifier.6",
    "squeezenet1_1": "classifier.1",
    "densenet121": "classifier",
    "googlenet": "fc",
    "inception_v3": "fc",
    "resnet18": "fc",
    "resnext50_32x4d": "fc",
    "wide_resnet50_2": "fc",
    "shufflenet_v2_x0_5": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "efficientnet_v2_s": "classifier.1",
    "mnasnet0_5": "classifier.1",
    "regnet_y_400mf": "fc",
    "convnext_tiny": "classifier.2",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "swin_v2_t": "head",
    "maxvit_t": "classifier.5",
}


@pytest.fixture
def meta() -> Iterator[None]:
    """What is built has shapes and no values."""
    with torch.device("meta"):
        yield


def build_network(name: str, num_classes: int, **options: Any) -> tuple[nn.Module, WeightsReport]:
    """By the adapter; on the meta device as a saved model's is built there, for RegNet computes its widths with tensors."""
    if torch.get_default_device().type != "meta":
        return find_backbone(name).build(num_classes, **options)
    with torch.device("cpu"), init_empty_weights():
        network, report = find_backbone(name).build(num_classes, **options)
    return network.to("meta"), report


def head_module(network: nn.Module) -> nn.Module:
    return network.get_submodule(last_layer(network))


def freeze(network: nn.Module, how: str | int) -> list[str]:
    return freezing.freeze(network, how, find_backbone(SMALL))


def stage_names(network: nn.Module) -> list[tuple[str, ...]]:
    return find_backbone(SMALL).stages(network)  # of torchvision all are found in the same way


def build(name: str = SMALL, num_classes: int = 5, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, num_classes, **options)[0]


def state_of(name: str = SMALL, num_classes: int = 5, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return clean_state_dict(build_network(name, num_classes)[0])


def saved(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def trainable(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Architectures and heads


def test_names_are_those_of_classification() -> None:
    names = model_names()
    assert names == sorted(names)
    assert len(names) >= 80
    assert set(FAMILIES) <= set(names)
    assert not any("rcnn" in name or "quantized" in name or "raft" in name or "3d" in name for name in names)


@pytest.mark.parametrize("names", [FAMILIES, pytest.param(model_names(), marks=pytest.mark.slow)], ids=["one", "all"])
def test_every_model_has_a_head_and_stages(meta: None, names: Iterable[str]) -> None:
    for name in names:
        network = build(name, 7)
        head = head_module(network)
        assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == 7, name
        stages = stage_names(network)
        assert 5 <= len(stages) <= 33, name
        classifier = find_backbone(name).head(network).split(".")[0]
        for parameter, _ in network.named_parameters():
            owners = [path for stage in stages for path in stage if f"{parameter}.".startswith(f"{path}.")]
            assert len(owners) == (0 if parameter.startswith(f"{classifier}.") else 1), (name, parameter)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(meta: None, name: str) -> None:
    network, report = build_network(name, 7, dropout=0.3)
    side = {"inception_v3": 299, "swin_v2_t": 256}.get(name, 224)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)
    assert find_backbone(name).head(network) == FAMILIES[name]
    assert network.get_submodule(FAMILIES[name]) is head_module(network)
    frozen = freeze(network, "backbone")
    tensors = ["weight"] if name == "maxvit_t" else ["weight", "bias"]
    assert trainable(network) == [f"{FAMILIES[name]}.{tensor}" for tensor in tensors]
    assert len(frozen) + len(tensors) == len(list(network.parameters()))
    assert report.head == tuple(trainable(network))
    assert report.head_is_new
    assert report.summary() == f"all {len(report.missing)} tensors at random"
    set_training_mode(network)
    assert head_module(network).training
    assert not any(m.training for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", SMALL])
def test_forward_with_values(name: str) -> None:
    scores = build(name, 7, dropout=0.2)(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2, 7)
    assert scores.isfinite().all()
    scores.sum().backward()


def test_inceptions_take_the_usual_normalisation(meta: None) -> None:
    for name in ("googlenet", "inception_v3"):
        network = build(name)
        assert network.transform_input
        assert not network.aux_logits
        assert isinstance(network.train()(torch.zeros(2, 3, 299, 299)), Tensor)


def test_unknown_name_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet81'\. Did you mean 'resnet18'\?.*models\.html"):
        build_network("resnet81", 5)


def test_what_is_random_follows_the_global_seed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    first = clean_state_dict(build_network(SMALL, 5)[0])
    file = saved(tmp_path / "w.safetensors", state_of(num_classes=9))
    for options in ({}, {"dropout": 0.5}, {"weights": file}):
        torch.manual_seed(3)
        again = clean_state_dict(build_network(SMALL, 5, **options)[0])
        assert torch.equal(again["fc.weight"], first["fc.weight"])
        assert torch.equal(again["fc.bias"], first["fc.bias"])


# Dropout


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_probability(p: float) -> None:
    with pytest.raises(UserError, match=r"model\.dropout"):
        build_network(SMALL, 5, dropout=p)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mobilenet_v2", "classifier.0"),
        ("mobilenet_v3_small", "classifier.2"),
        ("efficientnet_b0", "classifier.0"),
        ("squeezenet1_1", "classifier.0"),
        ("vgg11", "classifier.5"),
        ("googlenet", "dropout"),
        ("inception_v3", "dropout"),
    ],
)
def test_dropout_that_stands_there_is_set(meta: None, name: str, path: str) -> None:
    untouched, network = build(name), build(name, dropout=0.35)
    before = {n: m.p for n, m in untouched.named_modules() if isinstance(m, nn.Dropout)}
    assert {n: m.p for n, m in network.named_modules() if isinstance(m, nn.Dropout)} == {**before, path: 0.35}
    assert not isinstance(head_module(network), DropoutLinear)
    freeze(network, "backbone")
    set_training_mode(network)
    active = [n for n, m in network.named_modules() if isinstance(m, nn.Dropout) and m.training]
    assert active == [path]  # VGG's other one stands in the frozen part


@pytest.mark.parametrize(
    "name", ["resnet18", "alexnet", "densenet121", "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t"]
)
def test_dropout_is_put_in_front_under_the_same_names(meta: None, name: str) -> None:
    plain, network = build(name), build(name, dropout=0.35)
    head = head_module(network)
    assert isinstance(head, DropoutLinear)
    assert head.p == 0.35
    assert "p=0.35" in repr(head)
    assert list(plain.state_dict()) == list(network.state_dict())
    assert not isinstance(head_module(build(name, dropout=0.0)), DropoutLinear)


def test_dropout_acts_in_training_only() -> None:
    network = build(dropout=0.5)
    freeze(network, "backbone")
    head, ones = head_module(network), torch.ones(64, 1024)
    set_training_mode(network)
    assert not torch.equal(head(ones)[0], head(ones)[1])
    network.eval()
    assert torch.equal(head(ones), head_module(build().eval())(ones))


# Files of weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".PTH"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    network = build().to(memory_format=torch.channels_last)
    state = clean_state_dict(network)
    assert all(tensor.is_contiguous() for tensor in state.values())
    again, report = build_network(SMALL, 5, weights=saved(tmp_path / f"w{suffix}", state))
    assert same(clean_state_dict(again), state)
    assert report.missing == report.mismatched == report.unexpected == report.at_random == ()
    assert not report.head_is_new
    assert report.summary() == f"loaded 282 of 282 tensors from {tmp_path / f'w{suffix}'}; head loaded"
    assert trainable(again) == [name for name, _ in again.named_parameters()]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "w.safetensors", state_of())
    assert read_weights("~/w.safetensors").keys() == state_of().keys()


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": _prefixed(state)},
        _prefixed,
    ],
)
def test_checkpoints_of_training_scripts(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    state = state_of()
    network, report = build_network(SMALL, 5, weights=saved(tmp_path / "w.pth", wrap(state)))
    assert same(clean_state_dict(network), state)
    assert len(report.loaded) == 282


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state_of().items()}
    network, report = build_network(SMALL, 5, weights=saved(tmp_path / "w.safetensors", state))
    assert len(report.loaded) == 282
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    assert torch.equal(network.conv1[0].weight, state["conv1.0.weight"].float())


def test_part_of_a_network_with_another_head(tmp_path: Path) -> None:
    state = state_of(num_classes=1000)
    part = {n: t for n, t in state.items() if not n.startswith("conv5.")} | {"extra.weight": torch.zeros(1)}
    part["stage2.0.branch1.0.weight"] = torch.zeros(3, 2)
    file = saved(tmp_path / "part.safetensors", part)
    torch.manual_seed(0)
    network, report = build_network(SMALL, 5, weights=file)
    fresh = clean_state_dict(build())
    conv5 = ("conv5.0.weight", "conv5.1.weight", "conv5.1.bias", "conv5.1.running_mean", "conv5.1.running_var")
    assert report.missing == conv5
    assert report.mismatched == (
        ("stage2.0.branch1.0.weight", (3, 2), (24, 1, 3, 3)),
        ("fc.weight", (1000, 1024), (5, 1024)),
        ("fc.bias", (1000,), (5,)),
    )
    assert report.unexpected == ("extra.weight",)
    assert report.head_is_new
    for name, tensor in clean_state_dict(network).items():
        assert torch.equal(tensor, state[name] if name in report.loaded else fresh[name]), name
    assert report.summary() == (
        f"loaded 274 of 282 tensors from {file}; "
        "at random: conv5.0.weight, conv5.1.weight, conv5.1.bias (+3); "
        "other shapes: stage2.0.branch1.0.weight (3, 2) for (24, 1, 3, 3); ignored: extra.weight; head new"
    )


@pytest.mark.parametrize("name", ["efficientnet_b0", "mnasnet0_5", "mobilenet_v3_small", "squeezenet1_1", SMALL])
def test_a_new_head_on_known_features_begins_near_even_scores(tmp_path: Path, name: str) -> None:
    """Some families' first weights are made for a thousand classes; of five, scores would begin far apart."""
    file = saved(tmp_path / "w.safetensors", state_of(name, num_classes=1000))
    torch.manual_seed(0)
    network, report = build_network(name, 5, weights=file)
    assert report.head_is_new
    head = head_module(network)
    features = torch.rand(200, *head.weight.shape[1:])
    with torch.no_grad():
        scores = functional.conv2d(features, head.weight) if features.dim() > 2 else features @ head.weight.T
    assert scores.std(dim=0).mean() < 1, "features of about one"


def test_counters_do_not_count(tmp_path: Path) -> None:
    state = {name: t for name, t in state_of().items() if not name.endswith("num_batches_tracked")}
    network, report = build_network(SMALL, 5, weights=saved(tmp_path / "w.safetensors", state))
    assert report.missing == ()
    assert "at random" not in report.summary()
    load_state(network, state, source="w")


def test_nothing_for_the_backbone(tmp_path: Path) -> None:
    state = state_of()
    foreign = {f"encoder.block.{number}": torch.zeros(2) for number in range(5)}
    with pytest.raises(
        UserError, match=r"nothing for the backbone.*encoder\.block\.0.*\(\+2\).*conv1\.0\.weight.*\(\+"
    ):
        build_network(SMALL, 5, weights=saved(tmp_path / "foreign.safetensors", foreign))
    head_only = {name: state[name] for name in ("fc.weight", "fc.bias")}
    with pytest.raises(UserError, match="nothing for the backbone"):
        build_network(SMALL, 5, weights=saved(tmp_path / "head.safetensors", head_only))


def test_quantised_weights_are_not_taken_for_values(tmp_path: Path) -> None:
    state = state_of()
    state["conv1.0.weight"] = torch.ones(24, 3, 3, 3, dtype=torch.int8)
    with pytest.raises(UserError, match=r"integers for conv1\.0\.weight"):
        build_network(SMALL, 5, weights=saved(tmp_path / "w.safetensors", state))


@pytest.mark.parametrize(
    ("name", "in_file", "in_network"),
    [
        (
            "densenet121",
            "features.denseblock1.denselayer1.norm.1.weight",
            "features.denseblock1.denselayer1.norm1.weight",
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer1.conv.2.weight",
            "features.denseblock1.denselayer1.conv2.weight",
        ),
        ("vit_b_16", "encoder.layers.encoder_layer_0.mlp.linear_1.bias", "encoder.layers.encoder_layer_0.mlp.0.bias"),
        ("vit_b_16", "encoder.layers.encoder_layer_0.mlp.linear_2.bias", "encoder.layers.encoder_layer_0.mlp.3.bias"),
    ],
)
def test_names_of_old_downloads(meta: None, tmp_path: Path, name: str, in_file: str, in_network: str) -> None:
    shape = build(name).state_dict()[in_network].shape
    with torch.device("cpu"):
        file = saved(tmp_path / "old.pth", {in_file: torch.zeros(shape)})
    _, report = build_network(name, 5, weights=file)
    assert report.loaded == (in_network,)
    assert report.unexpected == ()


def test_auxiliary_heads_of_a_file_are_ignored(meta: None, tmp_path: Path) -> None:
    with torch.device("cpu"):
        content = {
            "conv1.conv.weight": torch.zeros(64, 3, 7, 7),
            "aux1.fc1.weight": torch.zeros(3),
            "x": torch.zeros(1),
        }
    _, report = build_network("googlenet", 5, weights=saved(tmp_path / "w.pth", content))
    assert report.loaded == ("conv1.conv.weight",)
    assert report.unexpected == ("x",)


def test_vision_transformer_takes_on_the_image_size_of_its_weights(meta: None, tmp_path: Path) -> None:
    with torch.device("cpu"):
        content = {"encoder.pos_embedding": torch.zeros(1, 65, 768)}
    network, report = build_network("vit_b_16", 5, weights=saved(tmp_path / "w.pth", content))
    assert report.loaded == ("encoder.pos_embedding",)
    check_input(network, (3, 128, 128))
    fresh = build("vit_b_16")
    load_state(fresh, find_backbone("vit_b_16").adapt_state(fresh, network.state_dict()), source="w")
    check_input(fresh, (3, 128, 128))
    with torch.device("cpu"):  # 60 positions are no square of patches and a class token
        content = {"encoder.pos_embedding": torch.zeros(1, 60, 768), "class_token": torch.zeros(1, 1, 768)}
    _, report = build_network("vit_b_16", 5, weights=saved(tmp_path / "w.pth", content))
    assert [name for name, _, _ in report.mismatched] == ["encoder.pos_embedding"]


class Evil:
    """Unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "dump", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
@pytest.mark.parametrize(
    "wrap", [lambda evil: evil, lambda evil: {"state_dict": {"fc.weight": torch.ones(1)}, "args": evil}]
)
def test_code_in_a_pickle_is_not_run(tmp_path: Path, dump: Any, wrap: Any) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pth"
    dump(wrap(Evil(mark)), file)
    with pytest.raises(UserError, match=r"evil\.pth holds more than tensors \(\S+\).*not read"):
        build_network(SMALL, 5, weights=str(file))
    assert not mark.exists()


def test_pickled_network_is_not_read(tmp_path: Path) -> None:
    file = saved(tmp_path / "whole.pth", build())
    with pytest.raises(UserError, match=r"more than tensors \(torchvision\.models\.shufflenetv2.*state_dict\(\)"):
        build_network(SMALL, 5, weights=file)


def _half(suffix: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        file = Path(saved(folder / f"half{suffix}", state_of()))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return str(file)

    return make


def _bytes(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "no.pth"), "There is no file of weights"),
        (lambda folder: str(folder), "is a folder"),
        (lambda folder: "imagnet", "imagenet, none or a file.*Did you mean 'imagenet'"),
        (_bytes("w.onnx", b"x"), r"ends in \.safetensors"),
        (_bytes("empty.safetensors", b""), "damaged"),
        (_bytes("empty.pth", b""), "damaged"),
        (_bytes("page.safetensors", b"<!DOCTYPE html>" * 20), "damaged"),
        (_bytes("page.pth", b"<!DOCTYPE html>" * 20), "damaged"),
        (_half(".safetensors"), "damaged"),
        (_half(".pth"), "damaged"),
        (lambda folder: saved(folder / "t.pth", torch.zeros(2)), "no tensors by name"),
        (lambda folder: saved(folder / "l.pth", {"state_dict": {"epoch": 3}}), "no tensors by name"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, make: Callable[[Path], str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_network(SMALL, 5, weights=make(tmp_path))
    assert "weights_only" not in str(caught.value)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "w.pth", state_of())

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"w\.pth cannot be read: Permission denied"):
        read_weights(file)


# The download of torchvision


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and a network that is not there."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("https://x", 403, "Forbidden", {}, None),  # type: ignore[arg-type]
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")'),
    ],
)
def test_no_download(cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(UserError) as caught:
        build_network("resnet18", 5, weights="imagenet")
    message = str(caught.value)
    assert str(error).rstrip(".") in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache / "resnet18-f37072fd.pth") in message
    assert "--model.weights PATH" in message
    assert "delete" not in message
    assert not list(cache.iterdir())


def test_file_put_into_the_cache_is_used(cache: Path) -> None:
    cache.mkdir(parents=True)
    state = state_of(num_classes=1000)
    saved(cache / "shufflenetv2_x0.5-f707e7126e.pth", state)
    network, report = build_network(SMALL, 5, weights="imagenet")
    assert torch.equal(network.conv1[0].weight, state["conv1.0.weight"])
    assert report.summary() == "loaded 280 of 282 tensors from ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1; head new"
    _, report = build_network(SMALL, 1000, weights="imagenet")
    assert not report.head_is_new


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", None])
def test_bad_file_in_the_cache(cache: Path, tmp_path: Path, content: bytes | None) -> None:
    cache.mkdir(parents=True)
    file = cache / "shufflenetv2_x0.5-f707e7126e.pth"
    file.write_bytes(pickle.dumps(Evil(tmp_path / "mark")) if content is None else content)
    with pytest.raises(UserError, match="delete it if it is damaged"):
        build_network(SMALL, 5, weights="imagenet")
    assert not (tmp_path / "mark").exists()


# State in and out


def test_clean_state_is_a_copy_under_plain_names(tmp_path: Path) -> None:
    network = build().to(memory_format=torch.channels_last)
    state = clean_state_dict(nn.ModuleDict({"module": network}))
    assert list(state) == list(network.state_dict())
    save_file(state, tmp_path / "w.safetensors")
    before = state["fc.weight"].clone()
    with torch.no_grad():
        network.fc.weight.zero_()
    assert torch.equal(state["fc.weight"], before)
    assert same(load_file(tmp_path / "w.safetensors"), state)


def test_load_state_is_strict_and_all_or_nothing() -> None:
    network, state = build(dropout=0.5), state_of()
    load_state(network, state, source="best.safetensors")
    assert same(clean_state_dict(network), state)
    other = state_of(seed=2)
    other["extra"] = torch.zeros(1)
    other["conv1.0.weight"] = torch.zeros(2)
    del other["fc.bias"]
    with pytest.raises(
        UserError, match=r"best.*ShuffleNetV2; missing: fc\.bias; too many: extra; of another shape: conv1"
    ):
        load_state(network, other, source="best.safetensors")
    assert same(clean_state_dict(network), state)


def test_mnasnet_takes_a_state_without_a_version() -> None:
    network, state = build("mnasnet0_5"), state_of("mnasnet0_5")
    for again in (network, copy.deepcopy(network)):
        again.load_state_dict(state)
        assert same(clean_state_dict(again), state)


# Freezing


def test_stages() -> None:
    with torch.device("meta"):
        assert stage_names(build("resnet18")) == [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
        vit = stage_names(build("vit_b_16"))
        assert vit[0] == ("class_token", "encoder.pos_embedding", "conv_proj")
        assert vit[-1] == ("encoder.layers.encoder_layer_11", "encoder.ln")
        assert stage_names(build("vgg11_bn"))[1] == ("features.4", "features.5")
        assert stage_names(build("densenet121"))[-1] == ("features.denseblock4", "features.norm5")


def test_freezing_stages_and_thawing() -> None:
    network = build()
    frozen = freeze(network, 2)
    assert frozen == [n for n, _ in network.named_parameters() if n.startswith(("conv1.", "stage2."))]
    assert trainable(network) == [n for n, _ in network.named_parameters() if n not in frozen]
    assert freeze(network, "none") == freeze(network, 0) == []
    assert trainable(network) == [n for n, _ in network.named_parameters()]
    freeze(network, 5)
    assert trainable(network) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("how", [6, -1, "head"])
def test_freezing_what_is_not_there(how: str | int) -> None:
    with pytest.raises(UserError, match=rf"up to 5, not {how}\.(?s:.*)1: conv1\n  2: stage2"):
        freeze(build(), how)


def test_frozen_part_stays_the_same_in_training() -> None:
    network = build("resnet18", dropout=0.5)
    freeze(network, 2)
    before = clean_state_dict(network)
    set_training_mode(network)
    network(torch.rand(4, 3, 64, 64)).sum().backward()
    changed = {name for name, tensor in clean_state_dict(network).items() if not torch.equal(tensor, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {n for n in before if n.startswith(("layer2", "layer3", "layer4")) and n.endswith(statistics)}
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(trainable(network))
    assert network.training
    assert network.layer2.training
    assert not network.layer1[0].bn1.training
    freeze(network, "none")
    set_training_mode(network)
    assert all(module.training for module in network.modules())


def test_stochastic_depth_of_frozen_stages_is_off(meta: None) -> None:
    network = build("efficientnet_b0")
    freeze(network, 3)
    set_training_mode(network)
    depths = {name: m.training for name, m in network.named_modules() if name.endswith("stochastic_depth")}
    assert {training for name, training in depths.items() if name.split(".")[1] in "012"} == {False}
    assert {training for name, training in depths.items() if name.split(".")[1] not in "012"} == {True}


# Images


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vit_b_16", (3, 128, 128), "Expected 224 but got 128"),
        ("inception_v3", (3, 32, 48), "(?:[Kk]ernel size|too small)"),
        ("maxvit_t", (3, 200, 200), ""),
        ("resnet18", (1, 64, 64), "[Cc]hannel"),
    ],
)
def test_size_that_a_network_does_not_take(meta: None, name: str, shape: tuple[int, int, int], words: str) -> None:
    network = build(name)
    freeze(network, 2)
    set_training_mode(network)
    modes = [module.training for module in network.modules()]
    pattern = rf"pictures of {shape[1]} x {shape[2]} pixels and {shape[0]} channels: .*{words}.*data\.train_transforms"
    with pytest.raises(UserError, match=pattern):
        check_input(network, shape)
    assert [module.training for module in network.modules()] == modes


def test_check_input_leaves_no_trace() -> None:
    network = build()
    before = clean_state_dict(network)
    check_input(network, (3, 64, 48))
    assert network.training
    assert same(clean_state_dict(network), before)
    network(torch.rand(2, 3, 64, 64)).sum().backward()


def test_channels_last_is_for_convolutional_networks(meta: None) -> None:
    assert {n for n in FAMILIES if not wants_channels_last(build(n))} == {"vit_b_16", "swin_t", "swin_v2_t"}


# Real weights, where the machine has them


@pytest.fixture
def folder() -> Path:
    if "ACCEL_FLOWERS_TEST_WEIGHTS" not in os.environ:
        pytest.skip("ACCEL_FLOWERS_TEST_WEIGHTS names no folder of weights")
    return Path(os.environ["ACCEL_FLOWERS_TEST_WEIGHTS"])


def test_part_of_resnet18(folder: Path) -> None:
    file = folder / "resnet18-imagenet-layers1to3.safetensors"
    network, report = build_network("resnet18", 17, weights=str(file))
    assert all(n.startswith(("layer4.0.conv", "layer4.0.bn", "layer4.1", "fc.")) for n in report.missing)
    assert {n.split(".")[0] for n in report.loaded} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert report.summary() == (
        f"loaded 80 of 102 tensors from {file}; "
        "at random: layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias (+17); head new"
    )
    state = load_file(file)
    assert all(torch.equal(network.state_dict()[name], tensor.float()) for name, tensor in state.items())


def test_whole_mobilenet(folder: Path) -> None:
    file = str(folder / "mobilenet_v2-imagenet.safetensors")
    _, report = build_network("mobilenet_v2", 17, weights=file)
    assert report.missing == report.unexpected == report.at_random == ()
    assert [name for name, _, _ in report.mismatched] == ["classifier.1.weight", "classifier.1.bias"]
    assert report.summary() == f"loaded 260 of 262 tensors from {file}; head new"
    assert not build_network("mobilenet_v2", 1000, weights=file)[1].head_is_new
