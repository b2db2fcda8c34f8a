"""Trackers beside our own: one of the user's, Accelerate's by name; what fails ends its own part and never the run."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from accel_flowers.config.field_types import ACCELERATES_TRACKERS
from accel_flowers.config.loading import config_from_flags
from accel_flowers.config.schema import Config, TrackingConfig
from accel_flowers.core.errors import Diverged, Interrupted, UserError, printable
from accel_flowers.core.registry import register
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.metrics.classification import Predictions
from accel_flowers.tracking import accelerates
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.tensorboard import markdown_text
from accel_flowers.tracking.tracker import Guarded, Tracker
from accel_flowers.tracking.trackers import build_trackers
from accel_flowers.training.train import train
from tests.runs import tiny_config, without_photos

METHODS = (
    "check", "open", "store_init_configuration", "describe", "log", "show", "forget_after", "warn", "keep_model", "summarize",
    "stop", "finish",
)  # fmt: skip


@register("tracker", "test/spy")
class Spy(Tracker):
    """Remembers what it was called with, and fails where it is asked to."""

    name = "spy"
    made: ClassVar[list[Spy]] = []

    def __init__(self, run_dir: Path, fails_in: str = "", fails_with: type[Exception] = ConnectionError) -> None:
        super().__init__()
        self.run_dir, self.fails_in, self.fails_with = run_dir, fails_in, fails_with
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.made.append(self)

    def called(self, method: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, words) for name, args, words in self.calls if name == method]


def spied(method: str) -> Any:
    def call(self: Spy, *args: Any, **words: Any) -> None:
        self.calls.append((method, args, words))
        if self.fails_in == method:
            raise self.fails_with("the network is down")

    return call


for each in METHODS:
    setattr(Spy, each, spied(each))


@register("tracker", "test/none")
def no_tracker(run_dir: Path) -> Path:
    """Makes what is none."""
    return run_dir


def call(tracker: Tracker, method: str) -> None:
    """A call as the training makes it."""
    scored = Scored("val", Predictions(*[None] * 3), {}, (), None)  # type: ignore[arg-type]  # nobody looks inside
    {
        "check": lambda: tracker.check(),
        "open": lambda: tracker.open("id", 1),
        "describe": lambda: tracker.describe({"classes": ["rose"]}),
        "warn": lambda: tracker.warn(Diverged(1, 0.1, "the loss is nan")),
        "stop": lambda: tracker.stop(Interrupted(1)),
        "store_init_configuration": lambda: tracker.store_init_configuration({"optim": {"lr": 1}}),
        "log": lambda: tracker.log({"train/loss": 1.0}, step=1),
        "show": lambda: tracker.show(scored, step=1, epoch=1.0),
        "forget_after": lambda: tracker.forget_after(1),
        "keep_model": lambda: tracker.keep_model(Path("model"), None),
        "summarize": lambda: tracker.summarize({"best/epoch": 1}),
        "finish": lambda: tracker.finish(),
    }[method]()


def test_a_tracker_of_ones_own_gets_all_that_a_run_tells(folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = train(tiny_config(folder, run_dir, tracking={"also": ["test/spy"]}))
    spy = Spy.made[-1]
    assert spy.run_dir == run_dir
    assert [name for name, *_ in spy.calls][:4] == ["check", "open", "store_init_configuration", "describe"]
    assert [name for name, *_ in spy.calls][-1] == "finish"
    ((run_id, next_step), _), *more = spy.called("open")
    assert (next_step, more) == (1, [])
    assert parse_yaml((run_dir / "config.yaml").read_text(), "config.yaml")["environment"]["run_id"] == run_id
    ((values,), _), *_ = spy.called("store_init_configuration")
    assert Config.model_validate(values).optim.lr == 1e-2
    (((facts,), _),) = spy.called("describe")
    assert facts["classes"] == ["daisy", "rose", "tulip"]
    assert facts["images"] == {"train": 24, "val": 3, "test": 3}
    assert {"torch", "gpus", "num_processes", "precision"} <= set(facts["environment"])
    logged = [{"step": words["step"], **values} for (values,), words in spy.called("log")]
    assert logged == read_metrics(run_dir / "metrics.jsonl")
    shown = [(scored.part, words["epoch"]) for (scored,), words in spy.called("show")]
    assert [part for part, _ in shown] == ["val", "val", "test"]
    (((model_dir, _), _),) = spy.called("keep_model")
    assert model_dir == run_dir / "model"
    (((summary,), _),) = spy.called("summarize")
    assert summary["best/epoch"] == result.best_epoch
    assert spy.called("forget_after") == []


@pytest.mark.holds("A tracker that fails does not end the run")
def test_a_tracker_that_fails_does_not_end_the_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(folder, tmp_path / "run", tracking={"also": [{"test/spy": {"fails_in": "log"}}]})
    with caplog.at_level(logging.INFO, logger="accel_flowers"):
        result = train(config)
    assert result.scores["test"].num_images == 3
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) > 3
    assert [name for name, *_ in Spy.made[-1].calls][-1] == "log", "left alone then"
    said = [record.getMessage() for record in caplog.records if "spy" in record.getMessage()]
    assert said == [
        "tracker spy failed (ConnectionError: the network is down): it gets nothing more of this run; "
        "all numbers are in metrics.jsonl"
    ]


@pytest.mark.holds("A tracker that fails does not end the run")
def test_a_tracker_draws_after_the_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does to the process then, the epoch is on the disk."""
    there: list[bool] = []

    def look(spy: Spy, *args: Any, **words: Any) -> None:
        there.append(
            (spy.run_dir / f"checkpoints/step-{words['step']:08d}").is_dir() and (spy.run_dir / "model").is_dir()
        )

    monkeypatch.setattr(Spy, "show", look)
    train(tiny_config(folder, tmp_path / "run", tracking={"also": ["test/spy"]}))
    assert there == [True, True, True]


def test_a_tracker_that_refuses_is_asked_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Spy) -> None:
        raise UserError("nobody is logged in")

    monkeypatch.setattr(Spy, "check", refuse)
    with pytest.raises(UserError, match="nobody is logged in"):
        train(tiny_config(without_photos(tmp_path), tmp_path / "run", tracking={"also": ["test/spy"]}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [Interrupted(3), UserError("full"), None], ids=str)
def test_a_tracker_is_told_how_the_run_ends(
    error: Exception | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error:

        def ends(_: Any) -> None:
            raise error

        monkeypatch.setattr("accel_flowers.training.train.loop", ends)
    config = tiny_config(folder, tmp_path / "run", tracking={"also": ["test/spy"]}, train={"epochs": 1})
    if error:
        with pytest.raises(type(error)):
            train(config)
    else:
        train(config)
    spy = Spy.made[-1]
    assert [args for args, _ in spy.called("stop")] == ([(error,)] if error else [])
    assert [name for name, *_ in spy.calls][-2:] == (
        ["stop", "finish"] if error else ["summarize", "keep_model", "finish"][1:]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [ConnectionError, UserError])
def test_no_method_can_end_the_run(method: str, error: type[Exception]) -> None:
    spy = Spy(Path("run"), fails_in=method, fails_with=error)
    guarded = Guarded(spy)
    if method in ("check", "open") and error is UserError:
        with pytest.raises(UserError, match="the network is down"):
            call(guarded, method)
        return
    for each in (method, *METHODS):
        call(guarded, each)
    assert [name for name, *_ in spy.calls] == [method]


def test_every_method_is_passed_on() -> None:
    spy = Spy(Path("run"))
    for method in METHODS:
        call(Guarded(spy), method)
    assert [name for name, *_ in spy.calls] == list(METHODS)
    assert {name for name in vars(Tracker) if not name.startswith("_")} - {"tracker", "name", "after_failure"} <= {
        *METHODS, "requires_logging_directory", "main_process_only",
    }  # fmt: skip
    assert Guarded(spy).tracker is spy
    for method in METHODS:
        call(Tracker(), method)  # nothing is a must


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"test/spy": {"port": 1}}, r"tracking.also: test/spy does not take \{'port': 1\}: .*unexpected keyword"),
        ("test/none", "made a PosixPath: a tracker is a subclass of accel_flowers.tracking.tracker.Tracker"),
    ],
    ids=str,
)
def test_a_tracker_that_cannot_be_made_is_told(spec: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_trackers(TrackingConfig(also=(spec,)), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"also": ["mlfow"]}, "there is no tracker 'mlfow'. Did you mean 'mlflow'"),
        ({"also": ["my/unknown"]}, "add --import MODULE"),
        ({"also": [{"mlflow": {}, "aim": {}}]}, "one name and their values"),
        ({"also": [{"mlflow": 3}]}, "one name and their values"),
        ({"also": [3]}, "the name of a tracker, or its name with arguments"),
        ({"also": ["mlflow", {"mlflow": {}}]}, "mlflow would be opened twice"),
        ({"also": ["tensorboard"], "tensorboard": True}, "tensorboard would be opened twice"),
        ({"also": ["wandb"], "wandb": "offline"}, "wandb would be opened twice"),
    ],
    ids=str,
)
def test_names_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrackingConfig.model_validate(values)


def test_flags_and_files_say_the_same() -> None:
    for given, expected in (
        ("mlflow", ("mlflow",)),
        ("[mlflow, test/spy: {fails_in: log}]", ("mlflow", {"test/spy": {"fails_in": "log"}})),
    ):
        config = config_from_flags(Config(), ["--tracking.also", given], program="test")
        assert config.tracking.also == expected
        assert Config.model_validate(config.model_dump(mode="json")) == config


def test_accelerates_names_are_known() -> None:
    assert set(ACCELERATES_TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


def test_one_that_is_not_installed_is_told_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerates, "get_available_trackers", lambda: ["mlflow"])
    build_trackers(TrackingConfig(also=("mlflow",)), Path("run"))
    with pytest.raises(UserError, match=r"^tracking\.also: comet_ml is not installed: pip install comet-ml$"):
        build_trackers(TrackingConfig(also=("comet_ml",)), Path("run"))


def test_one_of_accelerates_by_name(folder: Path, tmp_path: Path) -> None:
    """TensorBoard through Accelerate: the same numbers as in metrics.jsonl, and its options are taken."""
    run_dir = tmp_path / "run"
    train(tiny_config(folder, run_dir, tracking={"also": [{"tensorboard": {"filename_suffix": ".mine"}}]}))
    lines = read_metrics(run_dir / "metrics.jsonl")
    files = [file for file in (run_dir / "tensorboard/run").iterdir() if file.is_file()]
    assert [file.name.endswith(".mine") for file in files] == [True]
    events = EventAccumulator(str(files[0]), size_guidance={"scalars": 0}).Reload()
    for name in ("train/loss", "val/accuracy", "test/loss"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line
        ]
    (hyperparameters,) = (run_dir / "tensorboard/run").rglob("hparams.yml")
    assert "optim.lr: 0.01\n" in hyperparameters.read_text()


def test_options_that_accelerates_does_not_take_are_told(tmp_path: Path) -> None:
    (*_, tracker) = build_trackers(TrackingConfig(also=({"tensorboard": {"colour": "red"}},)), tmp_path)
    with pytest.raises(UserError, match=r"tensorboard does not take \{'colour': 'red'\}"):
        tracker.open("id", 1)


@pytest.mark.parametrize("name", ["a|b", "![x](http://y)", "<b>x</b>", "`x`", "*x* _y_", "&amp;", "a\nb\\"])
def test_names_are_text_in_a_markdown_table(name: str) -> None:
    """Rendered as TensorBoard does it."""
    from markdown import markdown

    row = f"| file | class |\n|---|---|\n| {markdown_text(name)} | rose |"
    cells = re.findall(r"<td>(.*?)</td>", markdown(row, extensions=["markdown.extensions.tables"]), flags=re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [printable(name), "rose"]
    assert "<" not in cells[0]
