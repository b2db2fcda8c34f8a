"""The model folder: it comes back as it was saved, a damaged one is told, and a reader never meets half of one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_text_durably
from accel_flowers.models import saved as saved_model
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import CARD_FILE, SPEC_FILE, WEIGHTS, load_model, load_spec, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict
from tests.specs import change_spec

NAMES = ("aster", "Glöckchen", "薔薇")
CARD_VALUES: dict[str, Any] = {
    "architecture": "shufflenet_v2_x0_5",
    "class_names": NAMES,
    "transforms": ({"Resize": {"size": [48, 48]}},),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "precision": "bf16",
    "eval_batch_size": 7,
    "scores": {"val": {"accuracy": 0.5, "loss": 1.25, "epoch": 3}},
}


def spec(**values: Any) -> ModelSpec:
    return ModelSpec.model_validate({**CARD_VALUES, **values})


def network(seed: int = 0, *, name: str = "shufflenet_v2_x0_5", dropout: float | None = None) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(name, len(NAMES), dropout=dropout)[0].eval()


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "model"
    save_model(directory, clean_state_dict(network()), spec())
    return directory


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(saved_once, tmp_path / "run" / "model"))


def refused(load: Callable[[Path], object], directory: Path) -> str:
    """The message for the user."""
    with pytest.raises(UserError) as caught:
        load(directory)
    return str(caught.value)


# Saving and loading


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    original = network(3)
    save_model(tmp_path / "model", clean_state_dict(original), spec())
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "model")
    assert loaded.spec == spec()
    assert not loaded.network.training
    torch.testing.assert_close(loaded.network.state_dict(), original.state_dict(), rtol=0, atol=0)
    pixels = loaded.transform(Image.new("RGB", (90, 60), (10, 200, 30)))
    assert pixels.shape == (3, 48, 48)
    inputs = loaded.normalizer(pixels[None])
    expected = (np.array([10, 200, 30]) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    torch.testing.assert_close(inputs[0, :, 5, 5], torch.tensor(expected, dtype=torch.float32))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(inputs), original(inputs), rtol=0, atol=0)


def test_a_network_in_another_memory_layout_and_with_dropout_comes_back(tmp_path: Path) -> None:
    original = network(dropout=0.3).to(memory_format=torch.channels_last)
    save_model(tmp_path / "model", clean_state_dict(original), spec(dropout=0.3))
    loaded = load_model(tmp_path / "model")
    torch.testing.assert_close(loaded.network.state_dict(), original.state_dict(), rtol=0, atol=0)


def test_the_card_is_readable_text(saved: Path) -> None:
    text = (saved / SPEC_FILE).read_text("utf-8")
    assert "Glöckchen" in text
    assert "薔薇" in text
    assert load_spec(saved) == spec()
    assert sorted(file.name for file in saved.iterdir()) == [CARD_FILE, SPEC_FILE, WEIGHTS]


def test_scores_of_a_run_that_diverged_do_not_spoil_the_card(tmp_path: Path) -> None:
    save_model(
        tmp_path / "model", clean_state_dict(network()), spec(scores={"val": {"loss": float("nan"), "accuracy": 0.5}})
    )
    assert load_spec(tmp_path / "model").scores == {"val": {"loss": None, "accuracy": 0.5}}


def test_saving_over_a_model_replaces_it_whole(saved: Path) -> None:
    (saved / "left by somebody").write_text("")
    save_model(saved, clean_state_dict(network(5)), spec(eval_batch_size=9))
    loaded = load_model(saved)
    assert loaded.spec.eval_batch_size == 9
    torch.testing.assert_close(loaded.network.state_dict(), network(5).state_dict(), rtol=0, atol=0)
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"], "nothing temporary stays"
    assert sorted(file.name for file in saved.iterdir()) == [CARD_FILE, SPEC_FILE, WEIGHTS]


@pytest.mark.parametrize("name", ["save_file", "write_text_durably"])
def test_an_interrupted_saving_leaves_the_model_before(saved: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def cut_the_power(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saved_model, name, cut_the_power)
        with pytest.raises(KeyboardInterrupt):
            save_model(saved, clean_state_dict(network(5)), spec(eval_batch_size=9))
    loaded = load_model(saved)
    assert loaded.spec == spec()
    torch.testing.assert_close(loaded.network.state_dict(), network().state_dict(), rtol=0, atol=0)
    save_model(saved, clean_state_dict(network(5)), spec(eval_batch_size=9))
    assert load_spec(saved).eval_batch_size == 9
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    write_text_durably(path, "first\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_text_durably(path, "second\n")
    assert path.read_text() == "first\n"
    write_text_durably(path, "Blüte\n")
    assert path.read_text("utf-8") == "Blüte\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]


# A folder that is not a model's


def test_the_directory_of_a_run_is_its_model(saved: Path) -> None:
    assert load_spec(saved.parent) == load_spec(saved)
    assert load_model(saved.parent).spec == load_model(saved).spec


@pytest.mark.parametrize("name", ["nowhere", "photos", "photos/1.png"])
def test_what_is_no_model_folder_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").touch()
    message = refused(load_model, tmp_path / name)
    assert f"'{tmp_path / name}' is no model folder: it has no {SPEC_FILE}." in message
    assert "RUN_DIR/model" in message


# A card that was tampered with


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"code": "import os"}, ["code", "Extra inputs are not permitted"]),
        ({"format": 3}, ["format", "should be 1 or 2"]),
        ({"class_names": "aster"}, ["class_names", "valid tuple|array"]),
        ({"class_names": ["aster"]}, ["class_names", "at least 2 items"]),
        ({"class_names": ["aster", 3, "rose"]}, [r"class_names\.1", "string"]),
        ({"class_names": ["aster", "rose", "rose"]}, ["class_names", "two classes have the same name"]),
        ({"architecture": 18}, ["architecture", "string"]),
        ({"mean": [0, 0]}, ["mean", "required|at least 3"]),
        ({"mean": [0, 0, float("nan")]}, ["mean", "finite"]),
        ({"std": [1, 0, 1]}, ["std", "above 0"]),
        ({"std": ["a", 1, 1]}, [r"std\.0", "number"]),
        ({"dropout": 1}, ["dropout", "less than 1"]),
        ({"eval_batch_size": 0}, ["eval_batch_size", "greater than or equal to 1"]),
        ({"precision": "int8"}, ["precision", "'no', 'fp16' or 'bf16'"]),
        ({"transforms": [7]}, [r"transforms\.0", "name of a transform"]),
        ({"scores": []}, ["scores", "dictionary|object"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_card_with_a_wrong_value_is_told(saved: Path, values: dict[str, Any], told: list[str]) -> None:
    change_spec(saved, **values)
    message = refused(load_spec, saved)
    assert message.startswith(f"{saved / SPEC_FILE} is damaged or not of this program: ")
    for pattern in told:
        assert re.search(pattern, message), message
    assert "\n" not in message
    assert refused(load_model, saved) == message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'"model"', b"{}", b'{"a": ' * 3000, b"weights: none"],
    ids=["empty", "cut", "not text", "a list", "a word", "no values", "deep", "YAML"],
)
def test_a_card_that_is_none_is_told(saved: Path, content: bytes) -> None:
    (saved / SPEC_FILE).write_bytes(content)
    assert refused(load_spec, saved).startswith(f"{saved / SPEC_FILE} is damaged or not of this program: ")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architecture": "shuflenet_v2_x0_5"}, ["architecture: ", "Did you mean 'shufflenet_v2_x0_5'?"]),
        ({"architecture": "os.system"}, ["architecture: ", "There is no model 'os.system'"]),
        ({"architecture": "../../etc/passwd"}, ["architecture: ", "There is no model"]),
        ({"transforms": ["os.system"]}, ["transforms: ", "no transform 'os.system'"]),
        ({"transforms": ["__class__"]}, ["transforms: ", "no transform '__class__'"]),
        ({"transforms": ["Transform"]}, ["transforms: ", "no transform 'Transform'"]),
        ({"transforms": [{"Lambda": {"lambd": "exit"}}]}, ["transforms: ", "code does not belong in a recipe"]),
        (
            {"transforms": [{"RandomApply": {"transforms": [{"Lambda": {"lambd": "exit"}}]}}]},
            ["transforms: ", "code does not belong in a recipe"],
        ),
        ({"transforms": [{"Resize": {"size": -3}}]}, ["transforms"]),
        ({"transforms": []}, ["transforms makes pictures of different sizes"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_card_that_names_what_there_is_not_is_told(saved: Path, values: dict[str, Any], told: list[str]) -> None:
    change_spec(saved, **values)
    message = refused(load_model, saved)
    assert message.startswith(str(saved / SPEC_FILE))
    for words in told:
        assert words in message


# Weights that are damaged


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" * 30),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "empty", "another format", "cut at the end", "cut in the header", "wrong header", "a folder"],
)
def test_weights_that_cannot_be_read_are_told(saved: Path, spoil: Callable[[Path], object]) -> None:
    spoil(saved / WEIGHTS)
    assert refused(load_model, saved).startswith(f"The weights {saved / WEIGHTS} cannot be read: ")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architecture": "shufflenet_v2_x1_0"}, "of another shape: "),
        ({"architecture": "squeezenet1_1"}, "missing: "),
        ({"class_names": ["a", "b"]}, "of another shape: fc.weight (3, 1024) for (2, 1024)"),
    ],
    ids=["wider", "another family", "fewer classes"],
)
def test_weights_of_another_network_are_told(saved: Path, values: dict[str, Any], told: str) -> None:
    change_spec(saved, **values)
    message = refused(load_model, saved)
    assert message.startswith(f"{saved / WEIGHTS} does not fit this ")
    assert told in message
