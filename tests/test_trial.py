"""float32 or bf16 on a CPU: the trial takes the faster, disturbs nothing, and is remembered by the run and between runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accel_flowers.core.backends import precision_before_bf16
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_spec
from accel_flowers.tracking.run_dir import CONFIG_FILE
from accel_flowers.training import precision as trial
from accel_flowers.training.precision import (
    PrecisionChoice,
    recall,
    remember,
    time_in_turn,
    trials_file,
    try_precisions,
)
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.ranks import Ranks
from tests.runs import metrics, tiny_config, write_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "BUDGET_SECONDS", 0.2)
    return tmp_path / "cache"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` with cpu.yaml."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")


def slow_in(precision: str, seconds: float = 0.3) -> Callable[..., tuple[nn.Module, Any]]:
    """`build_network`, but the network sleeps in one of the precisions."""

    def sleep(*_: object) -> None:
        if torch.is_autocast_enabled("cpu") == (precision == "bf16"):
            time.sleep(seconds)

    def build(*args: Any, **words: Any) -> tuple[nn.Module, Any]:
        network, report = build_network(*args, **words)
        network.register_forward_pre_hook(sleep)
        return network, report

    return build


def never(*_: object, **__: object) -> Any:
    raise AssertionError("nothing is to be tried here")


def environment_of(run_dir: Path) -> dict[str, Any]:
    values = parse_yaml((run_dir / CONFIG_FILE).read_text(), CONFIG_FILE)
    environment: dict[str, Any] = values["environment"]
    return environment


@pytest.mark.parametrize(("slow", "taken"), [("bf16", "no"), ("no", "bf16")])
def test_the_faster_is_taken(slow: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "build_network", slow_in(slow))
    before = torch.get_rng_state()
    choice = try_precisions(tiny_config(tmp_path, tmp_path / "run"), num_processes=1)
    assert choice is not None
    assert choice.precision == taken
    assert (choice.ratio > 1) == (taken == "no")
    assert torch.equal(torch.get_rng_state(), before), "whoever draws next draws what he would have drawn"
    assert "tried just now" in choice.words("squeezenet1_1")


def test_about_equal_stays_with_the_launcher() -> None:
    assert PrecisionChoice(1.04).precision == PrecisionChoice(1.0).precision == PrecisionChoice(0.3).precision == "bf16"
    assert PrecisionChoice(1.06).precision == "no"
    assert "the launcher's bf16 stays" in PrecisionChoice(1.04).words("resnet18")
    assert "float32 is taken" in PrecisionChoice(1.06).words("resnet18")


def test_single_slow_repeats_decide_nothing() -> None:
    """The first of each warms up, and other work on the machine hits one repeat of the faster."""
    delays = {"bf16": iter([0.3, 0.02, 0.5, *[0.02] * 20]), "no": iter([0.2, 0.025, *[0.025] * 20])}
    steps = {name: lambda each=each: time.sleep(next(each)) for name, each in delays.items()}
    best = time_in_turn(steps, budget_seconds=10.0)  # type: ignore[arg-type]
    assert best["bf16"] < best["no"] < 0.2


def test_what_cannot_be_tried_is_left_to_the_run(tmp_path: Path) -> None:
    for sections in (
        {"model": {"name": "resnet8"}},
        {"model": {"name": "vit_b_16"}},  # takes no 32 x 32
        {"train": {"micro_batch_size": 3}},
        {"data": {"train_transforms": ["RandomCrops"]}},
    ):
        assert try_precisions(tiny_config(tmp_path, tmp_path / "run", **sections), num_processes=1) is None
    assert not trials_file().exists()


# Between runs


def test_the_second_run_tries_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, tmp_path / "run")
    first = try_precisions(config, num_processes=1)
    assert first is not None
    assert trials_file() == cache / "accel_flowers/trials.json"
    (key,) = json.loads(trials_file().read_text())
    assert all(words in key for words in ("squeezenet1_1", "freeze none", "32 x 32", "4 pictures", torch.__version__))
    with monkeypatch.context() as patched:
        patched.setattr(trial, "build_network", never)
        assert try_precisions(config, num_processes=1) == PrecisionChoice(first.ratio, remembered=True)
    for other in ({"model": {"freeze": "backbone"}}, {"train": {"micro_batch_size": 2}}, {"model": {"dropout": 0.0}}):
        assert try_precisions(tiny_config(tmp_path, tmp_path / "run", **other), num_processes=1) is not None
    assert len(json.loads(trials_file().read_text())) == 3, "dropout changes no speed"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"KEY": "fast"}', b'{"KEY": -1}', b'{"KEY": null}', b'{"KEY": true, "KEY": 1}', b"[" * 10**5],
)  # fmt: skip
def test_a_damaged_file_is_as_none(content: bytes, cache: Path) -> None:
    trials_file().parent.mkdir(parents=True)
    trials_file().write_bytes(content)
    assert recall("KEY") is None
    remember("KEY", 1.5)
    assert recall("KEY") == 1.5


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the directory would be")
    remember("KEY", 1.5)
    assert recall("KEY") is None
    assert try_precisions(tiny_config(tmp_path, tmp_path / "run"), num_processes=1) is not None


def test_the_file_does_not_grow_for_ever() -> None:
    for number in range(1, 6):
        remember(f"key {number}", number, at_most=3)
    assert [recall(f"key {number}") for number in range(1, 6)] == [None, None, 3, 4, 5]


# In a run


@pytest.mark.holds("A run goes on in the precision in which it began")
@pytest.mark.usefixtures("launched")
def test_a_run_takes_it_and_keeps_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(photos, tmp_path / "auto", train={"epochs": 1})
    monkeypatch.setattr(trial, "build_network", slow_in("bf16"))
    train(config)
    assert "float32 is taken, not the launcher's bf16" in capsys.readouterr().err
    assert load_spec(tmp_path / "auto/model").precision == "no"
    environment = environment_of(tmp_path / "auto")
    assert (environment["precision"], environment["launcher_precision"]) == ("no", "bf16")

    # On another machine, or with other findings there: the run stays what it is.
    trials_file().unlink()
    monkeypatch.setattr(trial, "build_network", never)
    train(config.model_copy(update={"resume": "auto"}))
    said = capsys.readouterr().err
    assert "precision: no, in which this run began" in said
    assert "1 x cpu, precision no;" in said
    # Unless somebody wants it otherwise.
    by_launcher = config.train.model_copy(update={"precision": "launcher"})
    train(config.model_copy(update={"resume": "auto", "train": by_launcher}))
    assert "1 x cpu, precision bf16;" in capsys.readouterr().err

    scores = evaluate(
        tmp_path / "auto/model", str(photos), split_file=tmp_path / "auto/split.json", part="test"
    ).as_json()
    recorded = load_spec(tmp_path / "auto/model").scores["test"]
    assert {name: recorded.get(name) for name in scores if name not in ("part", "seen")} == {
        name: value for name, value in scores.items() if name not in ("part", "seen")
    }


@pytest.mark.holds("A run goes on in the precision in which it began")
@pytest.mark.parametrize("taken", ["no", "bf16"])
def test_the_trial_disturbs_nothing(taken: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with a trial, and the one that was told: the same to the last bit, dropout and batch norm included."""
    sections: dict[str, Any] = {
        "model": {"name": "mobilenet_v3_small", "dropout": 0.3},
        "optim": {"name": "adamw"},
        "train": {"epochs": 1},
    }
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(trial, "build_network", slow_in("no" if taken == "bf16" else "bf16", 0.6))
    train(tiny_config(photos, tmp_path / "tried", **sections))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", taken)
    monkeypatch.setattr(trial, "build_network", never)
    train(tiny_config(photos, tmp_path / "told", **{**sections, "train": {"epochs": 1, "precision": "launcher"}}))
    assert environment_of(tmp_path / "tried")["precision"] == taken
    assert metrics(tmp_path / "tried", "train/loss") == metrics(tmp_path / "told", "train/loss")
    tried, told = (load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("tried", "told"))
    assert all(torch.equal(tried[name], tensor) for name, tensor in told.items())


@pytest.mark.usefixtures("launched")
def test_bf16_stays_in_a_run_that_began_so(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(photos, tmp_path / "run", train={"epochs": 1})
    monkeypatch.setattr(trial, "build_network", slow_in("no"))
    train(config)
    (key,) = json.loads(trials_file().read_text())
    remember(key, 9.0)  # meanwhile another trial ended the other way
    monkeypatch.setattr(trial, "build_network", never)
    train(config.model_copy(update={"resume": "auto"}))
    assert load_spec(tmp_path / "run/model").precision == "bf16"


@pytest.mark.parametrize(
    ("launcher", "asked"), [(None, "auto"), ("no", "auto"), ("bf16", "launcher")], ids=["none", "no", "not asked for"]
)
def test_else_nothing_is_tried(
    launcher: str | None, asked: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr(trial, "build_network", never)
    train(tiny_config(photos, tmp_path / "run", train={"epochs": 1, "precision": asked}))
    assert environment_of(tmp_path / "run")["precision"] == (launcher or "no")
    assert not trials_file().exists()


@pytest.mark.holds("A run goes on in the precision in which it began")
@pytest.mark.multiprocess
def test_two_processes_take_what_the_main_one_finds(photos: Path, tmp_path: Path, cache: Path) -> None:
    """That they compute in the same precision is checked by the run itself before the first step."""
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1, "precision": "auto"})
    variables = {"ACCELERATE_MIXED_PRECISION": "bf16", "XDG_CACHE_HOME": str(cache)}

    def run(name: str) -> tuple[str, str]:
        words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / name]
        with Ranks(tmp_path, words, words, variables=variables) as ranks:
            assert ranks.codes(120) == [0, 0], ranks.output()
            return ranks.said(0), ranks.said(1)

    main, other = run("first")
    assert main.count("tried just now") == 1
    assert "tried" not in other
    (key,) = json.loads(trials_file().read_text())
    for ratio, taken in ((2.0, "no"), (0.5, "bf16")):
        remember(key, ratio)
        main, other = run(taken)
        assert main.count("tried before") == 1
        assert f"2 x cpu, precision {taken};" in main
        assert environment_of(tmp_path / taken)["precision"] == taken


class OnCpu:
    """Processes as `choose_precision` looks at them."""

    device, num_processes = torch.device("cpu"), 1


@pytest.mark.parametrize(("slow", "taken"), [("bf16", "no"), ("no", "bf16")])
def test_without_a_launcher_the_command_line_takes_the_faster(
    slow: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(trial, "bf16_instructions", lambda: ["avx512_bf16"])
    monkeypatch.setattr(trial, "build_network", slow_in(slow))
    config = tiny_config(tmp_path, tmp_path / "run")
    assert trial.choose_precision(config, OnCpu(), bare=True) == taken  # type: ignore[arg-type]
    monkeypatch.setattr(trial, "build_network", never)
    assert trial.choose_precision(config, OnCpu()) is None, "a program of somebody's own is left as it is"  # type: ignore[arg-type]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert trial.choose_precision(config, OnCpu(), bare=True) is None, "the launcher says so"  # type: ignore[arg-type]


def test_a_processor_without_instructions_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(trial, "bf16_instructions", list)
    monkeypatch.setattr(trial, "build_network", never)
    assert trial.choose_precision(tiny_config(tmp_path, tmp_path / "run"), OnCpu(), bare=True) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_recipe_may_name_it_and_the_run_goes_on_so(precision: str, folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run", train={"epochs": 1, "precision": precision})
    train(config)
    assert environment_of(tmp_path / "run")["precision"] == precision
    auto = config.model_copy(update={"resume": "auto", "train": config.train.model_copy(update={"precision": "auto"})})
    assert trial.choose_precision(auto, OnCpu(), run_dir=tmp_path / "run", bare=True) == precision  # type: ignore[arg-type]


# GPUs without bf16


@pytest.mark.parametrize(
    ("capability", "fast"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "no"), ((6, 0), "fp16"), ((5, 2), "no")],
)  # fmt: skip
def test_what_a_gpu_is_fast_in(capability: tuple[int, int], fast: str) -> None:
    assert precision_before_bf16(capability) == fast


class OnGpu:
    """Processes as `choose_precision` looks at them."""

    device, num_processes = torch.device("cuda"), 1


@pytest.mark.holds("On a GPU that only emulates bf16, fp16 is taken")
@pytest.mark.parametrize("launcher", ["bf16", None])
def test_a_gpu_that_emulates_bf16_takes_fp16(
    launcher: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch says of a T4 that it has bf16, and computes it in float32 and back."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)

    def chosen(precision: str, run: str = "run", *, bare: bool = True) -> tuple[str | None, str]:
        config = tiny_config(tmp_path, tmp_path / run, train={"precision": precision})
        return trial.choose_precision(config, OnGpu(), run_dir=tmp_path / run, bare=bare), capsys.readouterr().err  # type: ignore[arg-type]

    precision, said = chosen("auto")
    assert precision == "fp16"
    assert "precision: Tesla T4 has no bf16 of its own: fp16 is taken" in said
    assert chosen("fp16") == ("fp16", "")
    assert chosen("no") == ("no", "")
    precision, said = chosen("bf16")  # who insists is told
    assert (precision, "only emulates bf16" in said) == ("bf16", True)
    precision, said = chosen("launcher")
    assert (precision, "only emulates bf16" in said) == (None, launcher == "bf16")

    # A run goes on in it, wherever that is.
    (tmp_path / "begun").mkdir()
    words = launcher or "'no'"
    (tmp_path / "begun" / CONFIG_FILE).write_text(
        f"environment: {{run_id: abc123, precision: fp16, launcher_precision: {words}}}\n"
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert chosen("auto", "begun")[0] == "fp16"
    assert chosen("auto")[0] == (None if launcher else "bf16")
