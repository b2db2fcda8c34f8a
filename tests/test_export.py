"""Exported files answer as the model does, and an export that does not is never written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import accel_flowers as af
from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.export import export as exporting
from accel_flowers.export import files, graph
from accel_flowers.export.export import export
from accel_flowers.export.files import Format
from accel_flowers.models.ecosystem import Crop
from accel_flowers.models.onnx_graph import METADATA
from accel_flowers.models.saved import load_spec, save_model
from accel_flowers.models.weights import clean_state_dict
from tests.exported import CROP, NAMES, drawn_photos, save_vivid
from tests.runs import PROJECT

PHOTOS, WEIGHTS = (os.environ.get(f"ACCEL_FLOWERS_TEST_{name}") for name in ("PHOTOS", "WEIGHTS"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vivid(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def exported(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in each form."""
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for name, picture_in in (("pixels.onnx", False), ("picture.onnx", True)):
        result = export(model, folder / name, picture_in=picture_in, data=str(photos))
        assert result.parity is not None
        assert result.parity.difference < 1e-4
        assert result.parity.same == result.parity.num_pictures == 8
        assert (result.parity.levels is None) == (not picture_in)
        found[name] = result.paths[0]
    return found


def probabilities(model: Path, photos: Path) -> list[dict[str, float]]:
    return [
        dict(answer.top)
        for answer in af.load_model(model, device="cpu").predict(sorted(photos.rglob("*.png")), len(NAMES))
    ]


def furthest(one: Sequence[dict[str, float]], other: Sequence[dict[str, float]]) -> float:
    return max(abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) for name in NAMES)


def refused(*words: str | Path, capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, words)])
    out, err = capfd.readouterr()
    assert end.value.code == 2, err
    assert "Traceback" not in err
    assert not out
    return err


# What is written


@pytest.mark.holds("An exported file answers as the model does, or is not written")
def test_predict_takes_the_file_as_the_folder(exported: dict[str, Path], model: Path, photos: Path) -> None:
    ours = probabilities(model, photos)
    assert furthest(ours[:1], ours[1:2]) > 1e-2
    assert furthest(ours, probabilities(exported["pixels.onnx"], photos)) < 1e-5
    assert furthest(ours, probabilities(exported["picture.onnx"], photos)) < 2e-2, "a grey level's effect"


def test_evaluate_scores_the_file_as_the_folder(exported: dict[str, Path], model: Path, photos: Path) -> None:
    ours = af.evaluate(model, photos)
    for name, near in (("pixels.onnx", 1e-5), ("picture.onnx", 2e-2)):
        theirs = af.evaluate(exported[name], photos)
        assert theirs.num_images == ours.num_images == 8
        assert theirs.accuracy == ours.accuracy
        assert theirs.loss == pytest.approx(ours.loss, abs=near)


@pytest.mark.slow
def test_loader_workers_have_the_files_own_preparation(exported: dict[str, Path], photos: Path) -> None:
    scores = [af.evaluate(exported["picture.onnx"], photos, num_workers=workers).loss for workers in (0, 2)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_the_file_knows_all_but_the_scores(exported: dict[str, Path], model: Path) -> None:
    spec = load_spec(model)
    for name in ("pixels.onnx", "picture.onnx"):
        assert load_spec(exported[name]) == spec.model_copy(update={"precision": "no", "scores": {}})
        props = {entry.key: entry.value for entry in onnx.load(exported[name]).metadata_props}
        assert json.loads(props["classes"]) == list(NAMES)
        assert len(props["weights_sha256"]) == 64


@pytest.mark.parametrize("name", ["pixels.onnx", "picture.onnx"])
def test_it_is_asked_without_torch(exported: dict[str, Path], photos: Path, model: Path, name: str) -> None:
    pictures = sorted(photos.rglob("*.png"))
    blocked = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['accel_flowers'] = None\n"
    script = blocked + (PROJECT / "scripts/onnx_predict.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", script, exported[name], *map(str, pictures)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, file, ours in zip(done.stdout.splitlines(), pictures, probabilities(model, photos), strict=True):
        best = max(ours, key=lambda each: ours[each])
        assert line.startswith(f"{file}: {best} ")
        assert float(line.rpartition(" ")[2]) == pytest.approx(ours[best], abs=2e-2)


@pytest.mark.slow
def test_views_several_labels_and_batches_are_in_the_file(tmp_path: Path, photos: Path) -> None:
    several = save_vivid(tmp_path / "model", several_labels=True, thresholds=(0.2, 0.4, 0.6, 0.5), tta="mirror_zoom")
    export(several, tmp_path / "m.onnx", data=str(photos))
    assert furthest(probabilities(several, photos), probabilities(tmp_path / "m.onnx", photos)) < 1e-5
    one, four = (
        af.load_model(tmp_path / "m.onnx").predict(sorted(photos.rglob("*.png")), batch_size=size) for size in (1, 4)
    )
    assert [answer.labels for answer in one] == [answer.labels for answer in four]


def test_other_views_than_those_in_the_file_are_refused(exported: dict[str, Path], photos: Path) -> None:
    with pytest.raises(UserError, match="views of an image are built into an exported file"):
        af.load_model(exported["pixels.onnx"]).predict(photos / NAMES[0] / "0.png", tta=True)


@pytest.mark.parametrize(
    ("transforms", "levels"),
    [
        (({"Resize": {"size": 36, "interpolation": "bicubic"}}, {"CenterCrop": {"size": 32}}), 1),
        pytest.param(({"Resize": {"size": [32, 32]}},), 1, marks=pytest.mark.slow),
        pytest.param(({"Resize": {"size": 33}}, {"CenterCrop": {"size": [30, 31]}}), 1, marks=pytest.mark.slow),
        pytest.param(({"Resize": {"size": 300}}, {"CenterCrop": {"size": 224}}), 1, marks=pytest.mark.slow),
    ],
)
def test_pictures_are_prepared_in_the_graph_as_by_pillow(
    tmp_path: Path, photos: Path, transforms: Any, levels: int
) -> None:
    model = save_vivid(tmp_path / "model", transforms=transforms)
    result = export(model, tmp_path / "m.onnx", picture_in=True, data=str(photos))
    assert result.parity is not None
    assert result.parity.levels is not None
    assert result.parity.levels <= levels


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [("m.pt2", "torch"), ("m.xml", "openvino")])
def test_other_forms_answer_as_the_model_does(
    tmp_path: Path, model: Path, photos: Path, name: str, how: Format
) -> None:
    result = export(model, tmp_path / name, how, data=str(photos))
    assert result.parity is not None
    assert result.parity.same == 8
    assert all(path.exists() for path in result.paths)
    assert len(list(tmp_path.iterdir())) == len(result.paths), "nothing else is left"


def test_another_size_where_the_network_takes_it(tmp_path: Path, model: Path, photos: Path) -> None:
    result = export(model, tmp_path / "m.onnx", size=64, data=str(photos))
    assert result.parity is not None
    assert result.parity.same == 8
    assert load_spec(tmp_path / "m.onnx").transforms == ({"Resize": {"size": 80}}, {"CenterCrop": {"size": 64}})
    assert furthest(probabilities(tmp_path / "m.onnx", photos), probabilities(model, photos)) > 1e-3, "another model"
    fixed = save_vivid(tmp_path / "fixed", "timm/vit_tiny_patch16_224", transforms=({"Resize": {"size": [224, 224]}},))
    with pytest.raises(
        UserError, match=r"--size 64: timm/vit_tiny_patch16_224 does not take it; .* made for 224 x 224"
    ):
        export(fixed, tmp_path / "f.onnx", size=64, data=str(photos))


# Proof that the proof can fail


def spoil_normaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong mean in the graph."""
    honest = graph.exportable

    def wrong(saved: Any) -> Any:
        module = honest(saved)
        module.classifier.normalizer.shift += 0.05
        return module

    monkeypatch.setattr(graph, "exportable", wrong)


def swap_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blue first, in the program that asks and in the graph's own preparation."""
    honest_prepared, honest_upright = files.prepared, files.upright
    monkeypatch.setattr(files, "prepared", lambda data, crop: honest_prepared(data, crop)[::-1].copy())
    monkeypatch.setattr(files, "upright", lambda data: honest_upright(data)[:, :, ::-1].copy())


def take_another_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bicubic, where the model was scored with bilinear."""
    wrong = Crop(40, (32, 32), "bicubic")
    monkeypatch.setattr(files, "crop_of", lambda _: wrong)


@pytest.mark.holds("An exported file answers as the model does, or is not written")
@pytest.mark.parametrize(
    ("fault", "picture_in"),
    [
        (spoil_normaliser, False),
        (swap_channels, True),
        (take_another_filter, False),
        pytest.param(spoil_normaliser, True, marks=pytest.mark.slow),
        pytest.param(swap_channels, False, marks=pytest.mark.slow),
        pytest.param(take_another_filter, True, marks=pytest.mark.slow),
    ],
)
def test_faults_that_are_put_in_are_found(
    tmp_path: Path, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, picture_in: bool
) -> None:
    # The reference must not be spoiled with it: it is what the model says before.
    ours = exporting.compare

    def compare(saved: Any, *words: Any, **more: Any) -> Any:
        return ours(af_saved(model), *words, **more)

    monkeypatch.setattr(exporting, "compare", compare)
    fault(monkeypatch)
    with pytest.raises(UserError, match=r"does not answer as the model does|prepares '.*' otherwise than the model"):
        export(model, tmp_path / "m.onnx", picture_in=picture_in, data=str(photos))
    assert not list(tmp_path.iterdir()), "nothing is left"


def af_saved(model: Path) -> Any:
    from accel_flowers.models.saved import load_model

    return load_model(model)


def test_a_network_that_says_the_same_of_all_proves_nothing(tmp_path: Path, photos: Path) -> None:
    model = save_vivid(tmp_path / "model")
    state = {name: tensor * (0 if name == "fc.weight" else 1) for name, tensor in state_of(model).items()}
    save_model(model, state, load_spec(model))
    with pytest.raises(UserError, match=r"says the same of all 8 pictures.*no comparison would prove anything"):
        export(model, tmp_path / "m.onnx", data=str(photos))


def state_of(model: Path) -> dict[str, torch.Tensor]:
    return clean_state_dict(af_saved(model).network)


# int8


def test_int8_costs_what_it_says_or_is_not_written(
    tmp_path: Path, model: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [model, "--format", "int8", "--data", photos, "--calibration-pictures", "6"]
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, words), "--out", str(tmp_path / "m.onnx"), "--accept-loss", "100", "--json"])
    out, err = capfd.readouterr()
    assert end.value.code == 0, err
    found = json.loads(out)
    assert found["bytes_after"] < 0.4 * found["bytes_before"]
    ours, theirs = probabilities(model, photos), probabilities(tmp_path / "m.onnx", photos)
    assert 0 < furthest(ours, theirs) < 0.3
    same = sum(
        max(a, key=lambda name: a[name]) == max(b, key=lambda name: b[name]) for a, b in zip(ours, theirs, strict=True)
    )
    assert abs(found["quantised"]["same"] - same) <= 1
    told = refused(*words, "--out", tmp_path / "n.onnx", "--accept-loss", "-100", capfd=capfd)
    assert "where -100 is accepted. Nothing was written. To take it all the same: --accept-loss" in told
    assert not (tmp_path / "n.onnx").exists()


# Mistakes


@pytest.fixture
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel_flowers.core import registry

    monkeypatch.setattr(registry, "_parts", {})

    class Moody(nn.Module):
        """What it does depends on what it sees, which no graph can hold."""

        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean(dim=(2, 3)) * (2 if x.sum().item() > 0 else 3))

    register("model", "my/moody")(Moody)


def test_a_network_that_no_graph_can_hold_is_told(tmp_path: Path, photos: Path, own_network: None) -> None:
    model = save_vivid(tmp_path / "model", "my/moody")
    with pytest.raises(UserError, match=r"my/moody cannot be exported as ONNX: .+"):
        export(model, tmp_path / "m.onnx", data=str(photos))
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.holds("An exported file answers as the model does, or is not written")
def test_mistakes_are_told(
    tmp_path: Path, model: Path, photos: Path, exported: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    other = save_vivid(
        tmp_path / "other", transforms=({"Grayscale": {"num_output_channels": 3}}, {"Resize": {"size": [32, 32]}})
    )
    for words, told in (
        ([model, "--out", tmp_path / "m.onnx"], "are compared|is compared with the model on real pictures.*--data DIR"),
        ([model, "--out", tmp_path / "m.pt", "--data", photos], r"tells no format: \.onnx .*\.pt2"),
        ([model, "--out", tmp_path / "m.xml", "--format", "int8", "--data", photos], "a file of --format int8 ends in .onnx"),
        ([model, "--out", tmp_path / "m.pt2", "--picture-in", "--data", photos], "--picture-in is for ONNX"),
        ([model, "--out", tmp_path / "no/m.onnx", "--data", photos], "no"),
        ([model, "--out", tmp_path / "m.onnx", "--data", photos, "--pictures", "1"], "--pictures 1 is not allowed"),
        ([model, "--out", tmp_path / "m.onnx", "--data", tmp_path / "missing"], "missing"),
        ([model, "--out", tmp_path / "m.onnx", "--data", flat], "."),
        ([photos, "--out", tmp_path / "m.onnx", "--data", photos], "is no model folder"),
        ([exported["pixels.onnx"], "--out", tmp_path / "m.onnx", "--data", photos], "is an exported file already"),
        ([other, "--out", tmp_path / "m.onnx", "--data", photos, "--picture-in"], "cannot be put into the graph"),
    ):  # fmt: skip
        said = refused(*words, capfd=capfd)
        assert re.search(told, said.replace("\n", " ")), (words, said)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x07" * 50, b"PK\x03\x04"])
def test_what_is_no_onnx_is_told(tmp_path: Path, photos: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"is no ONNX file that can be run"):
        af.load_model(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="There is no file"):
        af.load_model(tmp_path / "n.onnx")


def test_a_file_of_somebody_elses_is_told(exported: dict[str, Path], tmp_path: Path) -> None:
    for name, change, told in (
        ("none.onnx", None, "does not say that it is of this program"),
        ("damaged.onnx", '{"architecture": 3}', "is damaged or not of this program: accel_flowers: architecture"),
    ):
        foreign = onnx.load(exported["pixels.onnx"])
        kept = [entry for entry in foreign.metadata_props if entry.key != METADATA]
        del foreign.metadata_props[:]
        foreign.metadata_props.extend(kept)
        if change:
            foreign.metadata_props.add(key=METADATA, value=change)
        onnx.save(foreign, tmp_path / name)
        with pytest.raises(UserError, match=told):
            af.load_model(tmp_path / name)


# More networks, and real ones


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t", "densenet121",
     "regnet_y_400mf", "shufflenet_v2_x0_5", "timm/tf_efficientnet_lite0", "timm/vit_tiny_patch16_224"],
)  # fmt: skip
def test_more_networks_go_out(tmp_path: Path, photos: Path, name: str) -> None:
    big = ({"Resize": {"size": 232}}, {"CenterCrop": {"size": 224}})
    model = save_vivid(
        tmp_path / "model",
        name,
        transforms=big if name in ("vit_b_16", "swin_t", "timm/vit_tiny_patch16_224") else CROP,
    )
    result = export(model, tmp_path / "m.onnx", data=str(photos))
    assert result.parity is not None
    assert result.parity.same == 8


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not (PHOTOS and WEIGHTS), reason="needs ACCEL_FLOWERS_TEST_PHOTOS and ACCEL_FLOWERS_TEST_WEIGHTS")
def test_a_trained_network_on_real_photos(tmp_path: Path) -> None:
    """In float alike on a hundred; in int8 at most a point is lost, or the export says how much."""
    from tests.runs import run_program

    weights = str(Path(WEIGHTS or "") / "timm-tf_efficientnet_lite0-imagenet.safetensors")
    words = [
        "--data.path",
        PHOTOS or "",
        "--model.name",
        "timm/tf_efficientnet_lite0",
        "--model.weights",
        weights,
        "--tracking.no-report",
    ]
    done = run_program("train", "flagship-fast", *words, "--run-dir", tmp_path / "run", timeout=600)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "run/model"
    for picture_in in (False, True):
        result = export(model, tmp_path / f"{picture_in}.onnx", picture_in=picture_in)
        assert result.parity is not None
        assert result.parity.num_pictures == 100
        assert result.parity.same >= 99
    small = export(model, tmp_path / "int8.onnx", "int8", num_calibration=60, accept_loss=5.0)
    assert small.quantised is not None
    assert small.quantised.paired is not None
    assert small.bytes_after < 0.35 * small.bytes_before
