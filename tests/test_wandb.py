"""What the environment says of W&B, where its files lie, what a table holds, and how it is told of a run's end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.errors import Diverged, Interrupted, RankLost, UserError
from accel_flowers.metrics.classification import Predictions, summarize
from accel_flowers.tracking.figures import MOST_DOTS, MOST_NAMED, draw_confusion
from accel_flowers.tracking.run_dir import check_run_id
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.tensorboard import TensorBoardTracker
from accel_flowers.tracking.wandb import WandbTracker
from accel_flowers.tracking.wandb_environment import files_under, obey_environment, said_by_environment, wandb_root
from accel_flowers.tracking.wandb_tables import cells_to_show, class_rows
from accel_flowers.training.train import train
from tests.runs import tiny_config, without_photos
from tests.servers import JsonHandler, serving

ONLINE, OFFLINE, OFF = (TrackingConfig(wandb=mode) for mode in ("online", "offline", "off"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def records_of(file: Path) -> list[dict[str, Any]]:
    """By W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


# The environment


@pytest.mark.holds("What the environment says of W&B holds")
@pytest.mark.parametrize(
    ("word", "asked", "mode"),
    [
        ("offline", ONLINE, "offline"), ("dryrun", ONLINE, "offline"), ("online", OFFLINE, "online"), ("run", OFFLINE, "online"),
        ("disabled", ONLINE, "off"), ("disabled", OFFLINE, "off"), ("", ONLINE, "online"), ("offline", OFF, "off"),
        ("nonsense", OFF, "off"),
    ],
)  # fmt: skip
def test_the_mode_of_the_environment_is_obeyed(
    word: str, asked: TrackingConfig, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    obeyed = obey_environment(asked, tmp_path)
    assert obeyed.wandb == mode
    told = said_by_environment(asked, obeyed)
    assert told == (
        [] if mode == asked.wandb else [f"W&B is {mode} and not {asked.wandb}, because WANDB_MODE is {word}"]
    )


@pytest.mark.parametrize("word", ["off", "Offline", "shared", "true", "0"])
def test_a_word_that_is_no_mode_is_told(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    with pytest.raises(UserError, match=f"WANDB_MODE is '{word}'.*online, offline or disabled"):
        train(tiny_config(without_photos(tmp_path), tmp_path / "run", tracking={"wandb": "offline"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.holds("What the environment says of W&B holds")
def test_project_and_name_come_from_the_nearest_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obey_environment(ONLINE, tmp_path).wandb_project == "accel-flowers"
    (tmp_path / "config.yaml").write_text("tracking: {wandb: online, wandb_project: first, wandb_name: one}")
    before = obey_environment(ONLINE, tmp_path)
    assert (before.wandb_project, before.wandb_name) == ("first", "one"), "a run that goes on stays where it is"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "blue")
    found = obey_environment(ONLINE, tmp_path)
    assert (found.wandb_project, found.wandb_name) == ("mine", "blue")
    flags = obey_environment(TrackingConfig(wandb="online", wandb_project="typed", wandb_name="typed"), tmp_path)
    assert (flags.wandb_project, flags.wandb_name) == ("typed", "typed")
    assert obey_environment(OFF, tmp_path) is OFF
    (tmp_path / "config.yaml").write_text("tracking: [damaged")
    assert obey_environment(ONLINE, tmp_path).wandb_project == "mine"


@pytest.mark.parametrize("given", ["flowers.exp-1", "a b", "Blüte_1", "$(x)", "x" * 128])
def test_a_run_id_that_wandb_takes_is_taken(given: str) -> None:
    assert check_run_id(given) == given
    wandb.Settings(run_id=given)


@pytest.mark.parametrize(
    "given", ["a/b", "a:b", "a;b", "a,b", "a#b", "a?b", "a'b", "a%b", "a\\b", " a", "a\n", "x" * 129]
)
def test_a_run_id_that_wandb_refuses_is_told_at_the_start(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", given)
    with pytest.raises(UserError, match="WANDB_RUN_ID"):
        train(tiny_config(without_photos(tmp_path), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WANDB_RESUME", "perhaps", "W&B does not take its settings .*resume"),
        ("WANDB_INIT_TIMEOUT", "soon", "W&B does not take its settings .*init_timeout"),
        ("WANDB_API_KEY", "short", "W&B does not .*API key.*wandb login"),
        ("WANDB_API_KEY", "", "W&B does not .*wandb login"),
    ],
)
def test_what_keeps_wandb_from_starting_is_a_sentence(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    wandb.teardown()
    try:
        with pytest.raises(UserError, match=message) as told:
            train(tiny_config(without_photos(tmp_path), tmp_path / "run", tracking={"wandb": "online"}))
    finally:
        wandb.teardown()
    assert "\n" not in str(told.value)
    assert "--tracking.wandb off" in str(told.value) or "offline" in str(told.value)
    assert not (tmp_path / "run").exists()


class NobodyIsKnown(JsonHandler):
    """A server that takes no key."""

    def do_POST(self) -> None:
        self.body()
        self.answer({"errors": [{"message": "user is not logged in"}]}, status=401)


@pytest.fixture
def refusing() -> Iterator[str]:
    with serving(NobodyIsKnown) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.holds("W&B is asked for the login before photos are read")
def test_a_key_that_is_refused_is_told_before_photos_are_read(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", refusing)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    try:
        with pytest.raises(UserError, match=r"W&B does not let you in: .*not logged in.*Log in with `wandb login`"):
            train(tiny_config(without_photos(tmp_path), tmp_path / "run", tracking={"wandb": "online"}))
    finally:
        wandb.teardown()
    assert not (tmp_path / "run").exists()


# Where the files lie


def test_files_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_root(tmp_path / "run") == tmp_path / "run"
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    assert wandb_root(tmp_path / "run") == tmp_path / "own"
    with files_under(tmp_path / "own", offline=True):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "data")
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "own/wandb/cache")
    assert "WANDB_CACHE_DIR" not in os.environ


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with W&B offline, whose home directory stayed empty, after it was finished a second time."""
    from tests.conftest import make_folder

    root = tmp_path_factory.mktemp("offline")
    photos, run_dir = make_folder(root / "photos"), root / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, folder in {"HOME": "home", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config"}.items():
            patch.setenv(name, str(root / "home" / folder))
        patch.setenv("WANDB_RUN_ID", "flowers.exp-1")
        wandb.teardown()
        config = tiny_config(photos, run_dir, tracking={"wandb": "offline"})
        train(config)
        before = sorted(path for path in run_dir.rglob("*") if path.is_file() and "cache" not in path.parts)
        train(config.model_copy(update={"resume": "auto"}))
        wandb.teardown()
        after = sorted(path for path in run_dir.rglob("*") if path.is_file() and "cache" not in path.parts)
    (root / "added").write_text("\n".join(str(path) for path in after if path not in before))
    return run_dir


@pytest.mark.holds("An offline W&B run is in the run directory, whole")
def test_nothing_lies_in_the_home_directory(offline_run: Path) -> None:
    assert [path for path in (offline_run.parent / "home").rglob("*") if path.is_file()] == []


@pytest.mark.holds("An offline W&B run is in the run directory, whole")
def test_a_copied_folder_holds_all_that_is_uploaded(offline_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(offline_run, copy, symlinks=True)
    (file,) = copy.glob("wandb/offline-run-*/run-*.wandb")
    records = records_of(file)
    named = [
        entry for record in records for entry in record.get("artifact", {}).get("manifest", {}).get("contents", ())
    ]
    assert {"model.safetensors", "config.json"} <= {entry["path"] for entry in named}
    for entry in named:
        assert (copy / entry["local_path"]).stat().st_size == int(entry["size"]), entry
        assert not Path(entry["local_path"]).is_absolute()
    listed = [each["path"] for record in records for each in record.get("files", {}).get("files", ())]
    assert listed
    assert all((file.parent / "files" / path).is_file() for path in listed)


@pytest.mark.holds("An offline W&B run is in the run directory, whole")
def test_a_run_that_is_finished_twice_adds_nothing(offline_run: Path) -> None:
    assert (offline_run.parent / "added").read_text() == ""
    (file,) = offline_run.glob("wandb/*run-*/run-*.wandb")
    links = [path for path in (offline_run / "wandb").iterdir() if path.is_symlink()]
    assert (offline_run / "wandb/latest-run").resolve() == file.parent
    assert all(link.exists() for link in links)


def test_the_dashboard_has_what_a_run_is_searched_by(offline_run: Path) -> None:
    (file,) = offline_run.glob("wandb/offline-run-*/run-*.wandb")
    records = records_of(file)
    assert file.name == "run-flowers.exp-1.wandb"
    config: dict[str, Any] = {}
    for record in records:
        config |= record.get("config", {}).get("update", {})
    assert config["classes"] == ["daisy", "rose", "tulip"]
    assert config["images"]["train"] == 24
    assert config["environment"]["num_processes"] == 1
    assert config["optim"]["lr"] == 0.01
    runs = [record["run"] for record in records if "run" in record]
    assert runs[-1]["job_type"] == "train"
    assert runs[-1]["tags"] == ["squeezenet1_1"]
    rows = [record["history"]["item"] for record in records if "history" in record]
    assert len([row for row in rows if "val_f1/rose" in row]) == 2
    said = "".join(record["output_logger"]["line"] for record in records if "output_logger" in record)
    assert "epoch 2/2  val accuracy" in said
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert set(summary["val/accuracy"]) == {"last", "max"}
    assert set(summary["val/loss"]) == {"last", "min"}


# How a run ends


@pytest.mark.parametrize(
    ("error", "code", "alert"),
    [
        (Interrupted(3), 75, None),
        (RankLost("process 1 is gone"), 1, "A process is lost"),
    ],
    ids=repr,
)
def test_wandb_is_told_how_the_run_ends(error: BaseException, code: int, alert: str | None, tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, OFFLINE)
    tracker.open("r1", 1)
    tracker.warn(Diverged(1, 0.1, "the loss is nan"))
    tracker.stop(error)
    tracker.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = records_of(file)
    assert [record["exit"].get("exit_code") for record in records if "exit" in record] == [code]
    alerts = [record["alert"]["title"] for record in records if "alert" in record]
    assert alerts == ["A loss is no number", *([alert] if alert else [])]
    assert any("preempting" in record for record in records) == isinstance(error, Interrupted)


def test_the_way_to_upload_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = WandbTracker(tmp_path / "my run", OFFLINE)
    with caplog.at_level(logging.INFO, logger="accel_flowers"):
        tracker.open("r$1", 1)
        tracker.finish()
    assert f"cd '{tmp_path / 'my run'}' && wandb sync wandb/*run-*-'r$1'" in caplog.text


# Many classes


def scored_of(num_classes: int, count: int) -> Scored:
    chance = np.random.Generator(np.random.Philox(key=num_classes))
    labels = chance.integers(0, num_classes, count)
    probabilities = np.full((count, num_classes), 1e-6, np.float32)
    probabilities[np.arange(count), chance.integers(0, num_classes, count)] = 1
    predictions = Predictions(labels, probabilities, np.ones(count, np.float32))
    names = tuple(f"species {number}" for number in range(num_classes))
    return Scored("val", predictions, summarize(predictions, names), names, None)  # type: ignore[arg-type]  # no images


@pytest.mark.holds("A confusion matrix is whole, or says what it leaves out")
@pytest.mark.parametrize("num_classes", [1, 3, 100, 101, 102, 2000])
def test_the_table_of_cells_is_whole(num_classes: int) -> None:
    scored = scored_of(num_classes, 500)
    predictions = scored.predictions
    cells, said = cells_to_show(predictions.labels, predictions.predicted, scored.class_names)
    assert said == ""
    matrix = np.zeros((num_classes, num_classes), int)
    for true, predicted, images in cells:
        matrix[int(true.split()[1]), int(predicted.split()[1])] = images
    assert matrix.tolist() == scored.scores["confusion_matrix"]
    assert len(cells) <= 10_000


@pytest.mark.holds("A confusion matrix is whole, or says what it leaves out")
def test_cells_that_do_not_fit_are_told() -> None:
    labels, predicted = np.array([0, 1, 1, 2, 2, 2]), np.array([3, 1, 1, 0, 1, 1])
    cells, said = cells_to_show(labels, predicted, "abcd", most=2)
    assert cells == [["b", "b", 2], ["c", "b", 2]]
    assert said == " (2 cells with 2 pictures left out)"


@pytest.mark.holds("A confusion matrix is whole, or says what it leaves out")
def test_an_image_of_the_matrix_grows_no_further() -> None:
    shapes = set()
    for num_classes in (MOST_NAMED + 1, MOST_DOTS * 2 + 7):
        matrix = np.eye(num_classes, dtype=int) * 3
        names = [str(number) for number in range(num_classes)]
        right = draw_confusion(matrix, names)
        matrix[0, -1] = 1
        shapes.add(right.shape)
        corner = draw_confusion(matrix, names) != right
        assert corner.any(), "one mistake among so many is seen"
    assert len(shapes) == 1


def test_tensorboard_shows_what_the_run_runs_on(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.open("r", 1)
    tracker.describe({"classes": ["rose"]})
    tracker.finish()
    assert "run/text_summary" in EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]


# Uploading


class Uploads(JsonHandler):
    """As much of W&B's server as an upload needs; keeps the sizes of what comes."""

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.server.got[Path(self.path).name] = len(self.body())  # type: ignore[attr-defined]
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        query = json.loads(body) if self.path == "/graphql" else {"query": ""}
        words, given = query["query"].replace("(", " ").split(), query.get("variables") or {}
        name = words[1] if len(words) > 1 else ""
        place = {"uploadHeaders": [], "uploadUrl": f"http://127.0.0.1:{self.server.server_address[1]}/up/"}  # type: ignore[str-bytes-safe]
        data: dict[str, Any] = {}
        if name == "UpsertBucket":
            bucket = {"id": "b", "name": given.get("name"), "displayName": "d", "description": "", "config": "{}",
                      "sweepName": None, "project": {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}},
                      "historyLineCount": 0}  # fmt: skip
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif name == "CreateRunFiles":
            files = [{"name": file, **place, "uploadUrl": place["uploadUrl"] + file} for file in given["files"]]  # type: ignore[operator]
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        elif name == "CreateArtifact":
            artifact = {"id": "a", "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
            data = {"createArtifact": {"artifact": artifact}}
        elif name == "CreateArtifactManifest":
            file = {"id": "f", "name": "n", "displayName": "d", **place, "uploadUrl": place["uploadUrl"] + "manifest"}  # type: ignore[operator]
            data = {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        elif name == "CreateArtifactFiles":
            wanted = given.get("artifactFiles") or given["input"]["artifactFiles"]
            nodes = [
                {"id": "f", "name": file["name"], "displayName": file["name"], **place, "storagePath": "x",
                 "uploadUrl": place["uploadUrl"] + file["name"], "uploadMultipartUrls": None, "artifact": {"id": "a"}}
                for file in wanted
            ]  # fmt: skip
            data = {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        elif name == "CommitArtifact":
            data = {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        elif "viewer" in query["query"]:
            data = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        self.answer({"data": data, "exitcode": 0, "limits": {}})


class QuietServer(ThreadingHTTPServer):
    """One whose clients may leave as they like."""

    def handle_error(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.holds("An offline W&B run is in the run directory, whole")
def test_a_folder_that_was_moved_is_uploaded_whole(offline_run: Path, tmp_path: Path) -> None:
    """By `wandb sync` itself, as the run's last line tells."""
    copy, away = tmp_path / "copy", offline_run.with_name("away")
    shutil.copytree(offline_run, copy, symlinks=True)
    offline_run.rename(away)  # so that nothing can come from there
    try:
        with QuietServer(("127.0.0.1", 0), Uploads) as server:
            server.got = {}  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            there = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}", "WANDB_API_KEY": "a" * 40}
            command = [
                sys.executable,
                "-m",
                "wandb",
                "sync",
                *(f"wandb/{path.name}" for path in copy.glob("wandb/*run-*-*")),
            ]
            subprocess.run(
                command, cwd=copy, env={**os.environ, **there, "HOME": str(tmp_path)}, check=True, timeout=100
            )
            server.shutdown()
            got: dict[str, int] = server.got  # type: ignore[attr-defined]
    finally:
        away.rename(offline_run)
    assert got["model.safetensors"] == (copy / "model/model.safetensors").stat().st_size
    assert got["config.json"] == (copy / "model/config.json").stat().st_size
    assert {"worst_pictures.table.json", "confusion_matrix_table.table.json", "output.log"} <= set(got)
    assert len([name for name in got if name.endswith(".jpg")]) >= 3


def test_the_model_is_linked_to_a_registry_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    registry = "wandb-registry-model/flowers"
    tracker = WandbTracker(tmp_path, TrackingConfig(wandb="offline", wandb_registry=registry))
    tracker.open("r 1", 1)
    with caplog.at_level(logging.INFO, logger="accel_flowers"):
        tracker.keep_model(tmp_path / "model", None)
        assert f"W&B links no model of an offline run: link it to {registry}" in caplog.text
        tracker.run._settings.mode = "online"  # as far as the program sees, where no server answers
        tracker._link(wandb.Artifact("never-logged", type="model"), registry)
    tracker.run._settings.mode = "offline"
    tracker.finish()
    assert f"W&B does not link the model to {registry} (" in caplog.text
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert '"name": "model-r_1"' in json.dumps(records_of(file)), "what W&B takes as a name"


@pytest.mark.holds("A confusion matrix is whole, or says what it leaves out")
def test_classes_that_do_not_fit_are_told() -> None:
    scores = {f"c{number}": {"precision": 0.5, "recall": 0.25, "f1": 0.3, "count": 4.0} for number in range(12)}
    assert [row[0] for row in class_rows(scores, most=12)] == list(scores)
    cut = class_rows(scores, most=10)
    assert len(cut) == 10
    assert cut[8] == ["c8", 0.5, 0.25, 0.3, 4.0]
    assert cut[9] == ["(3 classes left out)", None, None, None, None]
    table = wandb.Table(["class", "precision", "recall", "F1", "pictures"], cut)
    assert table.data[9][0] == "(3 classes left out)", "W&B takes what is empty in a column of numbers"
