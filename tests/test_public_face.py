"""What `import accel_flowers` offers: quick, typed, the same results as the command line, in notebooks and their launcher too."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

import accel_flowers as af
from accel_flowers.core.console import ConsoleHandler
from tests.conftest import make_folder
from tests.ranks import finish
from tests.runs import PROJECT, metrics, write_recipe

SMALL = {"tracking.report": False, "train.log_every_steps": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="module")
def result(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> af.TrainResult:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return af.train(af.load_recipe(recipe, {"data.path": photos, "run_dir": run_dir, "tracking.report": False}))


def in_a_process(code: str, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, cwd=PROJECT,
    )  # fmt: skip


def test_every_name_is_there_typed_and_described() -> None:
    assert set(af.__all__) >= {
        "Config",
        "load_recipe",
        "train",
        "evaluate",
        "load_model",
        "inspect",
        "compare",
        "find_lr",
        "probe_photos",
        "train_study",
        "register",
    }
    tree = ast.parse(Path(af.__file__).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname or alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == set(af.__all__) - {"__version__"}
    for name in af.__all__:
        value = getattr(af, name)
        if name != "__version__":
            assert (inspect.getdoc(value) or "").strip(), name
        if inspect.isfunction(value):
            assert inspect.signature(value).return_annotation is not inspect.Signature.empty, name
    assert set(dir(af)) >= set(af.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'tain'; its names are .*train"):
        af.tain  # noqa: B018


def test_importing_it_is_quick_and_loads_nothing_heavy() -> None:
    code = "import time; a = time.process_time(); import accel_flowers; b = time.process_time(); import sys; print(b - a, 'torch' in sys.modules, 'numpy' in sys.modules)"
    said = [in_a_process(code).stdout.split() for _ in range(3)]
    assert {(torch, numpy) for _, torch, numpy in said} == {("False", "False")}
    assert median(float(seconds) for seconds, *_ in said) < 0.2


def test_a_run_gives_its_scores_and_its_model(result: af.TrainResult, photos: Path) -> None:
    assert result.scores.keys() == {"val", "test"}
    assert result.scores["test"].num_images == 3
    assert result.best_epoch in (1, 2)
    files = sorted((photos / "rose").iterdir())[:3]
    answers = result.model.predict(files, top_k=2)
    assert [Path(answer.file) for answer in answers] == files
    assert all(len(answer.top) == 2 for answer in answers)
    again = af.load_model(result.run_dir).predict(files, top_k=2)
    assert again == answers
    scores = af.evaluate(result.run_dir / "model", photos, split_file=result.run_dir / "split.json")
    assert scores == result.scores["test"]


def test_it_is_the_command_lines_run(result: af.TrainResult, photos: Path, recipe: Path, tmp_path: Path) -> None:
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run", "--tracking.no-report"]
    finish(tmp_path, words)
    assert metrics(tmp_path / "run", "train/loss") == metrics(result.run_dir, "train/loss")


def test_a_second_run_in_the_same_process_leaves_everything_as_it_was(
    photos: Path, recipe: Path, result: af.TrainResult, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    switches = (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.get_num_threads())
    during: list[object] = []

    @af.register("metric", "test/handlers")
    def note(predictions: af.Predictions) -> float:
        during.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)])
        return 0.0

    try:
        second = af.train(
            af.load_recipe(recipe, {"data.path": photos, "run_dir": tmp_path / "run", "tracking.report": False})
        )
    finally:
        from accel_flowers.core import registry

        registry._parts.pop(("metric", "test/handlers"))
    assert during
    assert all(each == handlers for each in during), "signals belong to whoever called"
    assert switches == (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.get_num_threads())
    assert metrics(second.run_dir, "train/loss") == metrics(result.run_dir, "train/loss")


def test_what_is_wrong_is_a_user_error(photos: Path, recipe: Path) -> None:
    with pytest.raises(af.UserError, match=r"no recipe 'resnet18-finetun'\. Did you mean"):
        af.load_recipe("resnet18-finetun")
    with pytest.raises(af.UserError, match=r"train\.epoch: there is no such field\. Did you mean 'epochs'"):
        af.load_recipe(recipe, {"train.epoch": 3})
    with pytest.raises(af.UserError, match=r"(?s)optim\.lr.*train\.epochs") as error:
        af.load_recipe(recipe, {"train.epochs": 0, "optim.lr": "fast", "nosuch.field": 1})
    assert "nosuch" in str(error.value)
    with pytest.raises(af.UserError, match="Where shall the run go"):
        af.train(af.load_recipe(recipe, {"data.path": photos}))


def test_inspect_and_compare(photos: Path, result: af.TrainResult, recipe: Path, tmp_path: Path) -> None:
    findings = af.inspect(photos)
    assert findings.num_images == 36
    other = af.train(
        af.load_recipe(
            recipe, {"data.path": photos, "run_dir": tmp_path / "b", "tracking.report": False, "optim.lr": 0.1}
        )
    )
    comparison = af.compare([result.run_dir, str(other.run_dir)])
    assert comparison.part == "test"
    assert len(comparison.rows) == 2


def test_probe_finder_and_study(photos: Path, recipe: Path, tmp_path: Path) -> None:
    probed = af.probe_photos(
        photos, backbones=["mobilenet_v3_small"], weights=["none"], size=64, num_folds=3, num_workers=0
    )
    assert probed is not None
    assert sum(len(rows.labels) for rows in probed.predictions.parts.values()) == 36
    config = af.load_recipe(recipe, {"data.path": photos, "tracking.report": False})
    found = af.find_lr(config, steps=20)
    assert len(found.losses) == len(found.lrs) <= 20
    study = af.train_study(config.model_copy(update={"run_dir": str(tmp_path / "study")}), seeds=[0, 1])
    assert study.summary is not None
    assert sorted(path.name for path in (tmp_path / "study").glob("seed-*")) == ["seed-0", "seed-1"]


def test_lines_go_through_logging(photos: Path, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("accel_flowers")
    before = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [], True
    try:
        with caplog.at_level(logging.INFO, logger="accel_flowers"):
            af.train(
                af.load_recipe(recipe, {"data.path": photos, "run_dir": tmp_path / "run", "tracking.report": False})
            )
    finally:
        logger.handlers, logger.propagate = before
    assert any("36 pictures of 3 classes" in line for line in caplog.messages)
    assert any(line.startswith("epoch 2/2") for line in caplog.messages)
    assert any(isinstance(handler, ConsoleHandler) for handler in logger.handlers)


NOTEBOOK = """
import sys
import accel_flowers as af
from accelerate import notebook_launcher

def main():
    config = af.load_recipe(sys.argv[1], {"data.path": sys.argv[2], "run_dir": sys.argv[3], "tracking.report": False})
    notebook_launcher(af.train, (config,), num_processes=2, use_port=sys.argv[4])
    print("model", af.load_model(sys.argv[3]).class_names)

main()
"""


@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_notebook_launcher_runs_it_on_two_processes(
    photos: Path, recipe: Path, result: af.TrainResult, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = in_a_process(NOTEBOOK, recipe, photos, tmp_path / "run", port, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "num_processes: 2" in (tmp_path / "run/config.yaml").read_text()
    assert metrics(tmp_path / "run", "train/loss") == pytest.approx(metrics(result.run_dir, "train/loss"), abs=1e-5)
    assert "model ('daisy', 'rose', 'tulip')" in done.stdout
