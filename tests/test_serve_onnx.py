"""An exported file is served without torch, by what the container installs and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from accel_flowers.cli.main import main
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.export.export import export
from accel_flowers.export.parity import reference
from accel_flowers.inference.onnx_classifier import OnnxImageClassifier
from accel_flowers.models.saved import load_model
from accel_flowers.serving.subject import load_subject
from tests.exported import drawn_photos, save_vivid
from tests.runs import PROJECT

IMPORTED_AS = {
    "pillow": "PIL", "python-multipart": "python_multipart", "prometheus-client": "prometheus_client", "ruamel.yaml": "ruamel",
    "scikit-learn": "sklearn", "huggingface_hub": "huggingface_hub",
}  # fmt: skip
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Blocked())
from accel_flowers.cli.main import main
main(sys.argv[1:])
"""


def not_in_the_container() -> set[str]:
    """What the project depends on and the Dockerfile leaves out, by the names of imports."""
    listed = (PROJECT / "docker/serve.Dockerfile").read_text().split("RUN pip install \\\n")[1].split("\n\n")[0]
    installed = {line.strip(" \\") for line in listed.splitlines()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [re.match(r"[\w.-]+", each)[0] for each in project["dependencies"]]  # type: ignore[index]
    left_out = {IMPORTED_AS.get(name, name) for name in wanted if name not in installed}
    assert {"torch", "torchvision", "accelerate", "datasets"} <= left_out
    return left_out | {"timm", "transformers", "onnx"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    model, photos = save_vivid(folder / "model"), drawn_photos(folder / "photos")
    export(model, folder / "pixels.onnx", data=str(photos))
    export(model, folder / "picture.onnx", picture_in=True, data=str(photos))
    return {"model": model, "photos": photos, "pixels": folder / "pixels.onnx", "picture": folder / "picture.onnx"}


@pytest.fixture
def without_torch(files: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server in which nothing can be imported that the container lacks."""
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED.format(names=not_in_the_container()), "serve", files[request.param], "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=PROJECT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.holds("An exported file is served without torch")
@pytest.mark.parametrize("without_torch", ["pixels", "picture"], indirect=True)
def test_it_answers_as_the_model_does(without_torch: str, files: dict[str, Path]) -> None:
    saved, pictures = load_model(files["model"]), sorted(files["photos"].rglob("*.png"))
    plain = saved.transform.plainly()
    ours = reference(saved, np.stack([plain.of_file(file.read_bytes(), file.name).numpy() for file in pictures]))
    with httpx.Client(base_url=without_torch, timeout=30) as client:
        for file, expected in zip(pictures, ours, strict=True):
            answer = client.post("predict", params={"top_k": 4}, files={"file": (file.name, file.read_bytes())})
            assert answer.status_code == 200, answer.text
            told = {row["class"]: row["probability"] for row in answer.json()["predictions"][0]["top"]}
            for name, probability in zip(saved.spec.class_names, expected, strict=True):
                assert told[name] == pytest.approx(probability, abs=2e-2)
        bad = client.post("predict", files={"file": ("x.jpg", b"\xff\xd8\xff\xe0 nothing")})
        assert 400 <= bad.status_code < 500
        looked = client.post("predict", params={"heatmap": "true"}, files={"file": ("x.png", pictures[0].read_bytes())})
        assert looked.status_code == 422 or "not available" in looked.text
        assert client.get("/").status_code == client.get("/health").status_code == 200


def test_reading_is_that_of_the_model(files: dict[str, Path]) -> None:
    saved, light = load_model(files["model"]), OnnxImageClassifier(files["pixels"])
    plain = saved.transform.plainly()
    for file in files["photos"].rglob("*.png"):
        np.testing.assert_array_equal(light.read(file.read_bytes(), "x"), plain.of_file(file.read_bytes(), "x").numpy())
    with pytest.raises(BadImageError):
        light.read(b"nothing", "x")


def test_other_transforms_are_served_with_torch(tmp_path: Path, files: dict[str, Path], monkeypatch: Any) -> None:
    grey = save_vivid(
        tmp_path / "model", transforms=({"Grayscale": {"num_output_channels": 3}}, {"Resize": {"size": [32, 32]}})
    )
    export(grey, tmp_path / "m.onnx", data=str(files["photos"]))
    subject = load_subject(tmp_path / "m.onnx")
    picture = next(files["photos"].rglob("*.png")).read_bytes()
    ours = load_subject(grey)
    near = subject.model.probabilities([subject.model.read(picture, "x")])
    np.testing.assert_allclose(near, ours.model.probabilities([ours.model.read(picture, "x")]), atol=1e-5)
    assert not subject.heatmap
    assert ours.heatmap


def test_a_file_that_is_none_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as end:
        main(["serve", str(tmp_path / "m.onnx"), "--port", "0"])
    assert end.value.code == 2
    assert "is no ONNX file that can be run" in capfd.readouterr().err
