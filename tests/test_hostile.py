"""Files made to harm: whatever a weights file, a model folder, a run directory, a recipe or a zip holds, nothing of it
runs, nothing hangs or fills the memory, and the user gets a message that names the file and the cause."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from accel_flowers.cli.main import main
from accel_flowers.config.loading import config_from_yaml
from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.walk import FAR_LINK
from accel_flowers.data.split import load_split
from accel_flowers.data.transforms import build as transforms
from accel_flowers.inference.predict import find_images
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, read_state
from accel_flowers.models.weights import read_weights
from accel_flowers.report.read import read_run
from accel_flowers.tracking.jsonl import forget_after
from accel_flowers.training.checkpoint import Checkpoints
from accel_flowers.training.checkpoint_folders import describe_files
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.made_runs import make_run
from tests.runs import tiny_config, write_recipe
from tests.specs import change_spec

NAME = "squeezenet1_1"
CLASSES = ("daisy", "rose", "tulip")


class Evil:
    """Unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Evil]:
    """Code that must not run."""
    mark = tmp_path / "the code did run"
    yield Evil(mark)
    assert not mark.exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The directory of a run of two steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(photos, run_dir, **SHORT))
    return run_dir


SHORT: dict[str, dict[str, Any]] = {"train": {"epochs": 1}, "data": {"split": "60/40"}}


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A run directory to tamper with."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def model(run_dir: Path) -> Path:
    """A model folder to tamper with."""
    return run_dir / "model"


def ends_with_2(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message with which `accel-flowers WORDS` ends."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    _, err = capfd.readouterr()
    assert end.value.code == 2, err
    assert "accel-flowers: " in err or "╭" in err  # tyro's own messages come in a box
    assert "Traceback" not in err
    assert len(err) < 25_000
    return err


def refusal(read: Callable[[], object]) -> str:
    """The message with which something is refused."""
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


# --- weights


def pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.holds("Nothing unpickles what may be untrusted, nothing runs what a file holds")
@pytest.mark.parametrize("write", [torch.save, pickled], ids=["zip", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_weights_that_run_code(
    write: Any, suffix: str, evil: Evil, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"weights{suffix}"
    write({"state_dict": {"classifier.1.weight": torch.ones(1)}, "hook": evil}, file)
    recipe = write_recipe(tmp_path / "recipe.yaml", model={"weights": str(file)})
    told = ends_with_2(capfd, "train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run")
    assert f"{file} holds more than tensors (" in told
    assert not (tmp_path / "run").exists()


def safetensors(header: bytes | dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "header of exabytes": safetensors({}, length=2**62),
    "header of 90 MB": safetensors({}, length=90_000_000),
    "deep": safetensors(b'{"a":' * 100_000),
    "no JSON": safetensors(b"\x80\4." * 9),
    "overlapping": safetensors({"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}),
    "beyond the end": safetensors({"a": tensor([400], 0, 1600)}),
    "backwards": safetensors({"a": tensor([4], 16, 0)}),
    "size that overflows": safetensors({"a": tensor([2**62, 2**62], 0, 16)}),
    "negative": safetensors({"a": tensor([-4], 0, 16)}),
    "unknown type": safetensors({"a": tensor([4], 0, 16, "OBJ")}),
    "hole": safetensors({"a": tensor([2], 8, 16)}),
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie(name: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(SAFETENSORS[name])
    assert f"{file} is damaged or no file of weights" in refusal(lambda: read_weights(file))
    assert refusal(lambda: read_state(file)).startswith(f"The weights {file} cannot be read: ")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.empty(10**6, 10**6, device="meta"),
        torch.zeros(3, 3).to_sparse(),
    ],
    ids=["four bytes for terabytes", "meta", "sparse"],
)
def test_tensors_without_plain_values(odd: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.ones(3), "conv1.weight": odd}, file)
    assert "conv1.weight" in refusal(lambda: read_weights(file))


def test_weights_that_are_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    os.mkfifo(tmp_path / "w.safetensors")
    assert "There is no file of weights" in refusal(lambda: read_weights(tmp_path / "w.pth"))
    assert "no regular file" in refusal(lambda: read_state(tmp_path / "w.safetensors"))


# --- a model from a stranger


@pytest.mark.holds("Nothing unpickles what may be untrusted, nothing runs what a file holds")
def test_model_whose_weights_are_a_pickle(
    model: Path, evil: Evil, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pickled({"features.0.weight": evil}, model / WEIGHTS)
    assert f"The weights {model / WEIGHTS} cannot be read" in ends_with_2(capfd, "predict", model, photos)


def nested(depth: int) -> Any:
    value: Any = "RandomHorizontalFlip"
    for _ in range(depth):
        value = {"RandomApply": {"transforms": [value]}}
    return value


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architecture": "../../etc/passwd"}, "There is no model '../../etc/passwd'"),
        ({"architecture": "os.system"}, "There is no model 'os.system'"),
        ({"architecture": "x" * 1_000_000}, "There is no model 'xxx"),
        ({"architecture": "vit_h_14"}, "does not fit"),
        ({"class_names": [f"class {number}" for number in range(100_000)]}, "(3, 512, 1, 1) for (100000, 512, 1, 1)"),
        ({"class_names": ["a", "a", "b"]}, "two classes have the same name"),
        ({"class_names": {"a": 1}}, "class_names"),
        ({"transforms": [{"Lambda": {"lambd": "exit()"}}]}, "code does not belong in a recipe"),
        ({"transforms": ["../../x"]}, "no transform '../../x'"),
        ({"transforms": ["__init__"]}, "no transform '__init__'"),
        (
            {"transforms": [{"Resize": {"size": [10**9, 10**9]}}]},
            "size 1000000000 is not allowed; numbers up to 2,048 are",
        ),
        ({"transforms": [{"Resize": {"size": 10**400}}]}, "numbers up to 2,048 are"),
        ({"transforms": [{"Pad": {"padding": 2000}}] * 9}, "Pad makes a picture of"),
        ({"transforms": [nested(3), {"RandomApply": {"transforms": [{"Pad": {"padding": 2000}}] * 9, "p": 1}}]}, "Pad"),
        (
            {"transforms": [{"CenterCrop": {"size": [1, 2000]}}, {"Resize": {"size": 2000}}]},
            "CenterCrop makes a picture",
        ),
        ({"transforms": [{"GaussianBlur": {"kernel_size": 999}}]}, "kernel_size 999 is not allowed"),
        ({"transforms": [{"AugMix": {"mixture_width": 10**6}}]}, "mixture_width 1000000 is not allowed"),
        ({"transforms": ["RandomHorizontalFlip"] * 10_000}, "has more than 20,000 characters"),
        ({"transforms": [{"RandomZoomOut": {"side_range": [9, 9]}}]}, "RandomZoomOut does not belong in the list"),
        ({"transforms": [{"Resize": {"size": [32, 32]}}], "mean": [1e300, 0, 0], "std": [0, 1, 1]}, "above 0"),
        ({"mean": "0.5"}, "mean"),
        ({"eval_batch_size": -1}, "eval_batch_size"),
        ({"weights": "http://example.org/w.pth"}, "weights: Extra inputs are not permitted"),
        ({"x" * 1_000_000: 1}, "Extra inputs are not permitted"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_card_that_was_tampered_with(
    model: Path, photos: Path, values: dict[str, Any], told: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(transforms, "MAX_PIXELS", 20_000_000)  # what is allowed takes seconds
    change_spec(model, **values)
    err = ends_with_2(capfd, "predict", model, photos)
    assert told in err
    assert str(model) in err


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"scores": ' + b'{"a": ' * 100_000,
        b'{"mean": [NaN, 0, 0]}',
        b'{"format": ' + b"9" * 100_000 + b"}",
        b'{"class_names": ["\\ud800", "b"]}',
        "{}".encode("utf-16"),
        b'{"accel_flowers": ' + b"[" * 100_000,
        b'{"accel_flowers": {"mean": [NaN, 0, 0]}}',
        b'{"accel_flowers": {}, "accel_flowers": {}}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_card_that_is_no_json_of_ours(
    model: Path, photos: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (model / SPEC_FILE).write_bytes(content)
    assert str(model / SPEC_FILE) in ends_with_2(capfd, "predict", model, photos)


def test_card_that_is_a_giant_or_a_pipe(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.truncate(model / SPEC_FILE, 2**33)
    assert "larger than the 1,024 MiB allowed" in ends_with_2(capfd, "predict", model, photos)
    (model / SPEC_FILE).unlink()
    os.mkfifo(model / SPEC_FILE)
    assert "has no config.json" in ends_with_2(capfd, "predict", model, photos)


def test_class_names_are_text_and_no_more(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They name no files and steer no terminal."""
    change_spec(
        model, class_names=["../../x", "<script>alert(1)</script>\n\x1b[2J", "\u202egpj"], eval_batch_size=10**30
    )
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model), str(photos), "--top-k", "3"])
    out, _ = capfd.readouterr()
    assert end.value.code == 0
    assert len(out.splitlines()) == 15
    assert r"</script>\n\x1b[2J" in out
    assert all(character.isprintable() or character == "\n" for character in out)


# --- a split


def split_text(**values: Any) -> str:
    parts = {f"{name}/00.png": "train" for name in CLASSES}
    return json.dumps({"format": 1, "class_names": list(CLASSES), "parts": parts, **values})


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('{"a": ' * 100_000, "is not valid JSON: it is nested too deeply"),
        (
            '{"format": 1, "parts": {"a/1.jpg": "train", "a/1.jpg": "test"}}',
            "is not valid JSON: it has 'a/1.jpg' twice",
        ),
        ('{"format": ' + "9" * 10_000 + "}", "is not valid JSON"),
        ('{"format": NaN, "parts": {}}', "its format is nan"),
        (
            split_text(parts={"../../etc/passwd": "train"}),
            "1 of its files are not there, for example '../../etc/passwd'",
        ),
        (split_text(parts={"/etc/passwd": "train"}), "1 of its files are not there, for example '/etc/passwd'"),
        (split_text(parts={"daisy/00.png": ["train"]}), "has the part ['train']"),
        (split_text(parts=[["daisy/00.png", "train"]]), "it needs an object 'parts'"),
        (split_text(class_names="daisy"), "it needs a list 'class_names'"),
        (split_text(left_out=["a"]), "'left_out' must be an object"),
        (split_text(duplicates=[[1]]), "'duplicates' must be a list of lists of files"),
        (split_text(class_names=["daisy", "rose", "<script>"]), "is a split of the classes"),
    ],
    ids=lambda value: value[:60],
)
def test_split_that_was_tampered_with(
    text: str, told: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "split.json"
    file.write_text(text)
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ("--data.path", photos, "--data.split", file, "--run-dir", tmp_path / "run")
    err = ends_with_2(capfd, "train", recipe, *words)
    assert str(file) in err
    assert told in err
    assert not (tmp_path / "run").exists()


def test_split_that_is_a_giant_or_a_pipe(tmp_path: Path) -> None:
    for name in ("giant.json", "pipe.json"):
        (tmp_path / name).touch()
    os.truncate(tmp_path / "giant.json", 2**40)
    assert "larger than" in refusal(lambda: load_split(tmp_path / "giant.json"))
    (tmp_path / "pipe.json").unlink()
    os.mkfifo(tmp_path / "pipe.json")
    assert "not a regular file" in refusal(lambda: load_split(tmp_path / "pipe.json"))


# --- a run directory


def resume(capfd: pytest.CaptureFixture[str], run_dir: Path, photos: Path) -> str:
    """The message with which a resume of the run ends."""
    recipe = write_recipe(run_dir.parent / "recipe.yaml", **SHORT)
    return ends_with_2(capfd, "train", recipe, "--data.path", photos, "--run-dir", run_dir, "--resume", "auto")


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("run_id:", "run:"), "does not tell the run_id"),
        (lambda text: text.replace("environment:", "about:"), "has mistakes|is not valid YAML|run_id"),
        (lambda text: text + "\nenvironment: &a [*a]", "is not valid YAML"),
        (lambda text: "!!python/object/apply:os.system [exit]", "is not valid YAML"),
        (lambda text: "[" * 10_000, "is not valid YAML: it is nested too deeply"),
        (lambda text: "\0", "is not valid YAML"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace("epochs: 1", "epochs: 7"), "was begun with another configuration"),
    ],
)
def test_configuration_of_a_run_that_was_tampered_with(
    run_dir: Path, photos: Path, change: Callable[[str], str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = run_dir / "config.yaml"
    file.write_text(change(file.read_text()))
    err = resume(capfd, run_dir, photos)
    assert str(run_dir) in err
    assert any(part in err for part in told.split("|"))


def test_configuration_of_a_run_that_is_no_text(run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run_dir / "config.yaml"
    file.write_bytes(b"\xff\xfea\0")
    assert f"'{file}' cannot be read: no UTF-8 text" in resume(capfd, run_dir, photos)
    file.unlink()
    file.mkdir()
    assert f"'{file}' cannot be read: Is a directory" in resume(capfd, run_dir, photos)


GOOD_LINE = '{"step": 1, "train/loss": 0.5}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("garbage", "damaged"),
        ("", "damaged"),
        ("\0\0\0", "damaged"),
        ('{"step": 1', "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "needs a 'step'"),
        ("{}", "needs a 'step'"),
        ('{"step": "1"}', "needs a 'step'"),
        ('{"step": true}', "needs a 'step'"),
        ('{"step": NaN}', "needs a 'step'"),
    ],
    ids=lambda value: value[:20],
)
def test_damaged_line_of_metrics(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "metrics.jsonl"
    text = f"{GOOD_LINE}\n{line}\n{GOOD_LINE}\n"
    file.write_text(text)
    message = refusal(lambda: forget_after(file, 5, scored=True))
    assert message.startswith(f"{file}, line 2 is ")
    assert told in message
    assert file.read_text() == text, "nothing of it is lost"


def test_resume_with_damaged_metrics(run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run_dir / "metrics.jsonl"
    file.write_text("garbage\n" + file.read_text())
    assert f"{file}, line 1 is damaged" in resume(capfd, run_dir, photos)


def newest_of(run_dir: Path) -> Path:
    return max(path for path in (run_dir / "checkpoints").glob("step-*"))


def sign(directory: Path) -> None:
    """Make the manifest fit what was tampered with."""
    (directory / "manifest.json").write_text(json.dumps(describe_files(directory)))


def checkpoints_of(run_dir: Path) -> Checkpoints:
    return Checkpoints(run_dir, Accelerator(cpu=True), CheckpointConfig())


@pytest.mark.holds("Nothing unpickles what may be untrusted, nothing runs what a file holds")
@pytest.mark.parametrize("write", [torch.save, pickled], ids=["zip", "pickle"])
def test_optimizer_that_runs_code(
    run_dir: Path, photos: Path, evil: Evil, write: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = newest_of(run_dir)
    write({"optimizer": evil, "scaler": None}, newest / "optimizer.pt")
    sign(newest)
    assert f"The checkpoint {newest / 'optimizer.pt'} is damaged" in resume(capfd, run_dir, photos)


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize(
    "tamper",
    [
        lambda saved: saved["param_groups"][0].update(momentum="0.9"),
        lambda saved: saved["param_groups"][0].update(lr=None),
        lambda saved: saved["param_groups"].clear(),
        lambda saved: saved["state"].update({0: {"momentum_buffer": torch.zeros(7)}}),
        lambda saved: saved["state"].update({10**6: {"momentum_buffer": torch.zeros(7)}}),
        lambda saved: saved["state"].update({0: {"momentum_buffer": "zero"}}),
    ],
    ids=["text", "nothing", "no groups", "another shape", "another parameter", "a word"],
)
def test_optimizer_of_another_form(
    run_dir: Path, photos: Path, tamper: Callable[[Any], object], capfd: pytest.CaptureFixture[str]
) -> None:
    newest = newest_of(run_dir)
    saved = torch.load(newest / "optimizer.pt", weights_only=True)
    tamper(saved["optimizer"])
    torch.save(saved, newest / "optimizer.pt")
    sign(newest)
    assert f"The checkpoint {newest / 'optimizer.pt'} is damaged" in resume(capfd, run_dir, photos)


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"}, {"step": -2}, {"step": 10**9}, {"step": 2.5}, {"step": None}, {"best_step": "../../x"},
        {"best_step": 10**9}, {"best_step": -1}, {"best_value": "high"}, {"epochs_since_improvement": [1]}, {"epochs_without_gain": [1]}, {"mood": 1},
    ],
    ids=str,
)  # fmt: skip
def test_state_that_was_tampered_with(run_dir: Path, change: dict[str, Any]) -> None:
    newest = newest_of(run_dir)
    file = newest / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    sign(newest)
    assert f"{newest} is damaged: state.json" in refusal(checkpoints_of(run_dir).find_newest)


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"", b"9" * 10_000, b"NaN"], ids=lambda c: repr(c[:9])
)
def test_checkpoint_whose_json_is_none(run_dir: Path, name: str, content: bytes) -> None:
    newest = newest_of(run_dir)
    (newest / name).write_bytes(content)
    if name == "state.json":
        sign(newest)
    assert f"{newest} is damaged: {name}" in refusal(checkpoints_of(run_dir).find_newest)


def test_checkpoint_with_a_pipe_or_a_giant(run_dir: Path) -> None:
    newest = newest_of(run_dir)
    for name in ("state.json", "manifest.json", "optimizer.pt"):
        (newest / name).rename(newest / f"{name}.kept")
        os.mkfifo(newest / name)
        assert f"{newest} is damaged: " in refusal(checkpoints_of(run_dir).find_newest)
        (newest / name).unlink()
        (newest / f"{name}.kept").rename(newest / name)
    assert checkpoints_of(run_dir).find_newest()[0] is not None
    os.truncate(newest / "manifest.json", 2**40)
    assert "larger than" in refusal(checkpoints_of(run_dir).find_newest)


def test_checkpoint_that_is_a_link_out_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    """What it leads to is neither read as a checkpoint nor removed as an old one."""
    precious = tmp_path / "precious"
    shutil.copytree(newest_of(run_dir), precious)
    for name in ("step-99999999", ".step-00000001.part", ".step-00000001.old"):
        (run_dir / "checkpoints" / name).symlink_to(precious, target_is_directory=True)
    checkpoints = checkpoints_of(run_dir)
    state, _ = checkpoints.find_newest()
    assert state is not None
    assert state.step < 99_999_999
    checkpoints._folders.remove_old(state.step)
    assert len(list(precious.iterdir())) == 5


# --- YAML


def laughs(line: str, levels: int = 40) -> str:
    """Each line repeats the one before nine times."""
    first = "a0: &a0 {k0: lol}\n"
    return first + "".join(line.format(n=n, nine=", ".join([f"*a{n - 1}"] * 9)) for n in range(1, levels))


YAML = {
    "laughs": (laughs("a{n}: &a{n} [{nine}]\n"), "more than 20,000 values"),
    "merged laughs": (laughs("a{n}: &a{n} {{<<: [{nine}], k{n}: 1}}\n"), "more than 20,000 values"),
    "empty laughs": (laughs("a{n}: &a{n} [{nine}]\n").replace("{k0: lol}", "[]"), "more than 20,000 values"),
    "laughs in a list": ("data:\n  train_transforms:\n  - &a0 [x]\n" + "".join(
        f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)), "more than 20,000 values"),
    "inside of itself": ("data: &a {path: *a}", "*a stands inside of what it names"),
    "list inside of itself": ("data: {train_transforms: &a [*a]}", "*a stands inside of what it names"),
    "runs code": ("data: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
    "imports": ("data: !!python/module:os", "could not determine a constructor"),
    "makes an object": ("data: !!python/object/new:os._wrap_close {}", "could not determine a constructor"),
    "brackets": ("data: " + "[" * 100_000, "nested too deeply"),
    "braces": ("data: " + "{a: " * 100_000, "nested too deeply"),
    "indented": ("\n".join(" " * level + "a:" for level in range(1000)), "nested too deeply"),
    "long": ("x: " + "y" * 2**20, "more than 1,048,576 characters"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(15_000)), "more than 20,000 values"),
    "tab": ("data:\n\tpath: x", "line 2, column 1"),
    "NUL": ("data: {path: a\0b}", "special characters are not allowed"),
    "NUL by its number": ('data: {path: "a\\0b"}', "data.path: must be UTF-8 text without NUL"),
    "half of a character": ('data: {path: "\\ud800"}', "data.path: must be UTF-8 text"),
    "undefined alias": ("data: *nowhere", "undefined alias"),
    "many mistakes": ("".join(f"k{n}: 1\n" for n in range(500)), "and 450 more"),
    "long number": ("train: {epochs: " + "9" * 10_000 + "}", "cannot be read"),
    "number beyond 64 bits": ("train: {epochs: " + "9" * 30 + "}", "train.epochs: must be a number of 64 bits"),
    "many workers": ("data: {num_workers: 1000000}", "data.num_workers"),
    "not a number": ("optim: {lr: .nan}", "optim.lr"),
    "endless": ("optim: {lr: .inf}", "optim.lr"),
    "two documents": ("data: {}\n---\ndata: {}", "expected a single document"),
}  # fmt: skip


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
@pytest.mark.parametrize("name", YAML)
def test_yaml_that_harms(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, told = YAML[name]
    file = tmp_path / "recipe.yaml"
    if name == "long":
        assert told in refusal(lambda: config_from_yaml(text, source="long"))
        return
    file.write_text(text)
    err = ends_with_2(capfd, "train", file)
    assert str(file) in err
    assert told in err


def test_yaml_that_repeats_a_little_is_read() -> None:
    text = "data:\n  train_transforms: &list [{Resize: {size: [32, 32]}}]\n  eval_transforms: *list\n"
    config = config_from_yaml(text, source="")
    assert config.data.train_transforms == config.data.eval_transforms
    assert config_from_yaml("\ufefftrain: {epochs: 3}", source="").train.epochs == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_yaml_of_another_encoding(encoding: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes("about: {summary: Glöckchen}".encode(encoding))
    assert f"The recipe {file} cannot be read: no UTF-8 text" in ends_with_2(capfd, "train", file)


def test_recipe_that_is_a_giant_a_pipe_or_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    giant, pipe, folder = (tmp_path / f"{name}.yaml" for name in ("giant", "pipe", "folder"))
    giant.touch()
    os.truncate(giant, 2**40)
    os.mkfifo(pipe)
    folder.mkdir()
    for file, told in (
        (giant, "larger than the 1 MiB allowed"),
        (pipe, "not a regular file"),
        (folder, "Is a directory"),
    ):
        assert f"The recipe {file} cannot be read: {told}" in ends_with_2(capfd, "train", file)


def test_list_of_transforms_among_the_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (laughs("a{n}: &a{n} [{nine}]\n"), "more than 20,000 values"),
        ("[" * 1000, "nested too deeply"),
    ):
        err = ends_with_2(capfd, "train", "quickstart", "--data.train-transforms", words)
        assert told in " ".join(err.replace("│", " ").split())


# --- words of the command line

LONG = "x" * 5000


@pytest.mark.holds("No recipe and no words on the command line end in a traceback")
@pytest.mark.parametrize(
    "words",
    [
        ["train", LONG],
        ["train", f"{LONG}.yaml"],
        ["train", "quickstart", "--data.path", LONG],
        ["train", "quickstart", "--data.path", f"hub:{LONG}"],
        ["train", "quickstart", "--data.path", "hub:pandas"],
        ["train", "quickstart", "--data.path", "\udce9"],
        ["train", "quickstart", "--data.path", "PHOTOS", "--data.split", LONG],
        ["train", "quickstart", "--data.path", "PHOTOS", "--data.split", f"{LONG}.json"],
        ["train", "quickstart", "--data.path", "PHOTOS", "--model.weights", LONG],
        ["train", "quickstart", "--data.path", "PHOTOS", "--model.weights", f"{LONG}.pth"],
        ["train", "quickstart", "--data.path", "PHOTOS", "--model.name", LONG],
        ["train", "quickstart", "--data.path", "PHOTOS", "--run-dir", LONG],
        ["predict", LONG, "1.jpg"],
        ["evaluate", LONG, "--data", "."],
        ["evaluate", "MODEL", "--data", LONG],
        ["evaluate", "MODEL", "--data", "PHOTOS", "--split", LONG],
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG")[:60],
)
def test_words_that_no_file_can_be_called(
    words: list[str], model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ends_with_2(capfd, *(word.replace("MODEL", str(model)).replace("PHOTOS", str(photos)) for word in words))


def test_image_that_no_file_can_be_called(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model), LONG, "\udce9.jpg", "/dev/zero", "/dev/full"])
    out, _ = capfd.readouterr()
    assert end.value.code == 1
    assert [line.partition("error: ")[2] for line in out.splitlines()] == [
        "File name too long", "No such file or directory", "not a regular file", "not a regular file",
    ]  # fmt: skip


# --- zips and folders


def zip_with(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], compressed: bool = True) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def unpacked() -> set[str]:
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "accel_flowers_zip"
    return {entry.name for entry in cache.glob("*")}


PICTURES = (("a/1.jpg", b"x"), ("b/1.jpg", b"y"))


@pytest.mark.parametrize("name", ["../../x.jpg", "/x.jpg", "a/../../x.jpg", "../.x.jpg"])
def test_zip_that_leads_out(name: str, tmp_path: Path) -> None:
    before = unpacked()
    path = zip_with(tmp_path / "p.zip", *PICTURES, (name, b"x"))
    assert f"The zip '{path}' holds '{name}', which leads out of its folder" in refusal(lambda: load_images(str(path)))
    assert unpacked() == before


@pytest.mark.holds(
    "Weights, checkpoints, `model/`, `split.json`, recipes and archives that are tampered with end in a message"
)
def test_zip_that_would_fill_the_disk(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/bomb.jpg", bytes(30_000_000)))
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<L", 2**32 - 2)  # four gigabytes, as the list of members says
    path.write_bytes(data)
    before = unpacked()
    told = refusal(lambda: load_images(str(path)))
    assert "and would unpack to 4,294,967,2" in told
    assert unpacked() == before


def test_zip_whose_member_is_larger_than_it_says(tmp_path: Path) -> None:
    """No more is unpacked than the list of members says, and then the checksum is wrong."""
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/bomb.jpg", bytes(30_000_000)))
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<L", 100)
    path.write_bytes(data)
    before = unpacked()
    assert "cannot be unpacked: Bad CRC-32" in refusal(lambda: load_images(str(path)))
    assert unpacked() == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_name_twice(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/1.jpg", b"z"))
    assert "holds 'a/1.jpg' twice" in refusal(lambda: load_images(str(path)))


def test_zip_with_a_file_without_a_name(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "p.zip", *PICTURES, (zipfile.ZipInfo(""), b"z"))
    assert "holds a file without a name" in refusal(lambda: load_images(str(path)))


def test_zip_with_a_folder_and_a_file_of_one_name(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/1.jpg/2.jpg", b"z"))
    assert "cannot be unpacked" in refusal(lambda: load_images(str(path)))


def test_zip_with_a_link(tmp_path: Path) -> None:
    """It becomes a file with the link's text in it, which is no image."""
    link = zipfile.ZipInfo("a/link.jpg")
    link.external_attr = 0o120777 << 16
    path = zip_with(tmp_path / "p.zip", *PICTURES, (link, b"/etc/passwd"))
    table = load_images(str(path))
    row = table.files.index("a/link.jpg")
    stored = Path(table.images.root, "a/link.jpg")
    assert not stored.is_symlink()
    assert stored.read_bytes() == table.read(row) == b"/etc/passwd"


def test_zip_in_a_zip_is_no_image(tmp_path: Path) -> None:
    inner = zip_with(tmp_path / "inner.zip", *PICTURES)
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/inner.zip", inner.read_bytes()))
    assert load_images(str(path)).ignored == ("a/inner.zip",)


def test_zip_with_a_name_that_is_not_what_it_says(tmp_path: Path) -> None:
    """Marked as UTF-8, and none."""
    path = zip_with(tmp_path / "p.zip", *PICTURES, ("a/é.jpg", b"z"))
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    assert "cannot be unpacked" in refusal(lambda: load_images(str(path)))


@pytest.mark.parametrize("bits", [1, 0x41])
def test_zip_that_is_encrypted(bits: int, tmp_path: Path) -> None:
    path = zip_with(tmp_path / "p.zip", *PICTURES)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= bits
    path.write_bytes(data)
    assert "cannot be unpacked" in refusal(lambda: load_images(str(path)))


TEN = "0123456789"


def test_folders_linked_into_each_other(tmp_path: Path) -> None:
    """Not followed within a class: its neighbours' images are none of its own, and there are endless ways through them."""
    root = tmp_path / "photos"
    for one in TEN:
        (root / one).mkdir(parents=True)
        (root / one / "1.jpg").touch()
        for other in TEN:
            (root / one / f"to {other}").symlink_to(root / other)
    table = load_images(str(root))
    assert table.files == tuple(f"{one}/1.jpg" for one in TEN)
    assert table.left_out == {FAR_LINK: 100}


def test_folders_nested_hundreds_of_levels_deep(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=1)
    here = os.open(root / "rose", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        assert "nested hundreds of levels deep" in refusal(lambda: load_images(str(root)))
        with contextlib.suppress(UserError):
            assert len(find_images([root])) == 3  # Python 3.13 walks without recursion
    finally:
        subprocess.run(["rm", "-r", root], check=True)  # pytest would not come to the end of it


def test_dataset_of_the_hub_that_is_a_script(tmp_path: Path, evil: Evil) -> None:
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers/flowers.py").write_text(f"import pathlib\npathlib.Path({str(evil.mark)!r}).touch()\n")
    assert "scripts are no longer supported" in refusal(lambda: load_images(f"hub:{tmp_path / 'flowers'}"))


def test_dataset_of_the_hub_that_is_a_pickle(tmp_path: Path, evil: Evil, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(evil, tmp_path / "train.pkl")
    monkeypatch.chdir(tmp_path)
    assert "is a loader of the library datasets" in refusal(lambda: load_images("hub:pandas"))
    with pytest.raises(UserError):
        load_images(f"hub:{tmp_path}")


# --- images that only the training finds out


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_image_that_no_transform_takes(num_workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An image of one pixel is none to cut 32 from: its name is told, also where a worker of the loader meets it."""
    folder = make_folder(tmp_path / "photos", per_class=5)
    for place, name in enumerate(CLASSES):
        for number in range(5):
            Image.new("RGB", (1, 1), (10 * number, 10 * place, 0)).save(folder / name / f"{number:02d}.png")
    recipe = write_recipe(tmp_path / "recipe.yaml", data={"train_transforms": [{"RandomCrop": {"size": 32}}]})
    words = ("--data.path", folder, "--data.num-workers", num_workers, "--data.split", "60/40")
    err = ends_with_2(capfd, "train", recipe, *words, "--run-dir", tmp_path / "run")
    last = err.splitlines()[-1]
    assert re.match(r"accel-flowers: \S*\w+/0\d\.png: its 1 x 1 pixels cannot be transformed: ", last), err


@pytest.mark.parametrize("text", ["", "null", "[]", "- a", "x", "environment: [1]"])
def test_a_run_whose_configuration_is_none(text: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", tmp_path / "photos", ("a", "b"), draw=False, finished=False)
    (tmp_path / "run/config.yaml").write_text(text)
    if text.startswith("environment"):
        assert read_run(tmp_path / "run").environment == {}
        return
    assert "config.yaml" in refusal(lambda: read_run(tmp_path / "run"))
