"""Training in one process: what a run leaves behind, and that it is the same run however it is cut up."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from accel_flowers.config.loading import load_recipe
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.data.split import PARTS, load_split
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.metrics.classification import Predictions
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_model, load_spec
from accel_flowers.models.weights import read_weights
from accel_flowers.report.draw import draw_report
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.tracking.tracker import Tracker
from accel_flowers.training.train import train
from tests.conftest import draw_image, make_folder
from tests.runs import metrics, tiny_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.chdir(photos.parent):  # a relative path, as people type it
        train(tiny_config(Path(photos.name), run_dir))
    return run_dir


def test_run_directory_is_complete(finished: Path, photos: Path) -> None:
    split = load_split(finished / "split.json")
    assert set(split.parts) == {file.relative_to(photos).as_posix() for file in photos.rglob("*.png")}
    assert {part: len(split.files_of(part)) for part in PARTS} == {"train": 30, "val": 3, "test": 3}

    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 9))  # 60 images, 8 a step
    assert [line["step"] for line in lines if "val/accuracy" in line] == [4, 8]
    assert [line["step"] for line in lines if "test/accuracy" in line] == [8]
    assert all(line["speed/images_per_second"] > 0 and line["lr/all"] > 0 for line in lines if "train/loss" in line)

    state = json.loads((finished / "checkpoints/last/state.json").read_text())
    best = json.loads((finished / "checkpoints/best/state.json").read_text())
    values = {line["step"]: line["val/accuracy"] for line in lines if "val/accuracy" in line}
    assert state["step"] == 8
    assert best["best_value"] == state["best_value"] == max(values.values())
    assert values[state["best_step"]] == state["best_value"]

    spec = load_spec(finished / "model")
    assert spec.class_names == ("daisy", "rose", "tulip")
    assert spec.scores["val"]["accuracy"] == state["best_value"]
    assert spec.scores["test"]["num_images"] == 3


@pytest.mark.holds("A run repeats")
def test_config_of_a_run_repeats_it(finished: Path, tmp_path: Path) -> None:
    config = load_recipe(str(finished / "config.yaml"))
    text = (finished / "config.yaml").read_text()
    assert Path(str(config.data.path)).is_absolute(), "it holds in any folder"
    assert all(f"{package}:" in text for package in ("torch", "torchvision", "accelerate", "datasets", "cpu", "python"))
    train(config.model_copy(update={"run_dir": str(tmp_path / "again")}))
    assert metrics(tmp_path / "again", "train/loss") == metrics(finished, "train/loss")
    again = load_file(tmp_path / "again/checkpoints/last/model.safetensors")
    before = load_file(finished / "checkpoints/last/model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


@pytest.mark.holds("Scores of one set of weights on 1 and 2 processes, in training and by `evaluate`")
def test_saved_model_scores_as_in_training(finished: Path, photos: Path) -> None:
    for part in ("val", "test"):
        scores = evaluate(finished / "model", str(photos), split_file=finished / "split.json", part=part).as_json()
        recorded = load_spec(finished / "model").scores[part]
        assert scores.pop("part") == part
        assert scores.pop("seen") == {"train": 0, "val": 3 if part == "val" else 0, "others": None}
        assert {name: recorded[name] for name in scores} == scores


def test_accumulation_changes_nothing(photos: Path, tmp_path: Path) -> None:
    """Without batch norm and dropout a step of 8 images is the same in 1, 2 and 8 forward passes."""
    losses = {}
    for micro_batch in (8, 4, 1):
        sections = {
            "train": {"global_batch_size": 8, "micro_batch_size": micro_batch},
            "model": {"dropout": 0},
            "loss": {"class_weights": "balanced"},
        }
        train(tiny_config(photos, tmp_path / str(micro_batch), **sections))
        losses[micro_batch] = metrics(tmp_path / str(micro_batch), "train/loss")
    assert len(losses[8]) == 8
    assert losses[4] == pytest.approx(losses[8], abs=1e-5)
    assert losses[1] == pytest.approx(losses[8], abs=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    """Three colours are told apart after a few epochs: the labels and the images belong together."""
    photos = make_folder(tmp_path / "photos", per_class=20)
    config = tiny_config(
        photos,
        tmp_path / "run",
        model={"name": "shufflenet_v2_x0_5"},
        optim={"name": "adamw", "lr": 5e-3},
        train={"epochs": 12},
    )
    assert train(config).scores["val"].accuracy >= 5 / 6


@pytest.mark.holds("Training accuracy is that of the batches that were trained on")
def test_training_accuracy_is_counted(photos: Path, tmp_path: Path) -> None:
    """Of each step's 8 images, in two forward passes; of mixed images no class is the right one, so nothing is counted."""
    config = tiny_config(photos, tmp_path / "run", train={"epochs": 1})
    train(config)
    shares = metrics(tmp_path / "run", "train/accuracy")
    assert len(shares) == 4
    assert all(8 * share == round(8 * share) for share in shares)
    # Every image once: an untrained network gives nearly all of them one class, so about a third is right.
    assert 0.1 < sum(shares) / 4 < 0.6

    @register("batch_transform", "test/mixup")
    def mixup(context: BatchContext) -> Callable[..., tuple[Tensor, Tensor]]:
        def mix(inputs: Tensor, targets: Tensor, key: int) -> tuple[Tensor, Tensor]:
            del key
            return inputs, functional.one_hot(targets, context.num_classes).float()

        return mix

    mixed = tiny_config(photos, tmp_path / "mixed", train={"epochs": 1}, data={"batch_transform": "test/mixup"})
    train(mixed)
    assert metrics(tmp_path / "mixed", "train/accuracy") == []
    assert len(metrics(tmp_path / "mixed", "train/loss")) == 4


def test_early_stopping_and_best_by_loss(photos: Path, tmp_path: Path) -> None:
    """A rate of (almost) nothing brings no gain, so the run ends after the patience and the first epoch stays best."""
    config = tiny_config(
        photos,
        tmp_path / "run",
        optim={"lr": 1e-30},
        train={"epochs": 10, "early_stopping_epochs": 2, "best_metric": "accuracy"},
    )
    train(config)
    assert len(metrics(tmp_path / "run", "val/accuracy")) == 3
    assert json.loads((tmp_path / "run/checkpoints/best/state.json").read_text())["best_epoch"] == 1


def test_evaluations_are_counted_and_not_epochs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 training images in steps of 48, as where no smaller batch can be shared: an evaluation after every second epoch."""
    monkeypatch.setattr("accel_flowers.training.build.shrunk_to", lambda plan, _: plan)
    train(tiny_config(folder, tmp_path / "run", train={"epochs": 4, "global_batch_size": 48}))
    assert len(metrics(tmp_path / "run", "val/loss")) == 2
    assert "best of 2 validation evaluations" in capsys.readouterr().err


def test_a_run_ends_with_its_best_epoch(photos: Path, tmp_path: Path) -> None:
    """Also where that is not the last one: a metric of one's own calls the first epoch the best."""
    values = itertools.count(0, -1)

    @register("metric", "test/ever_worse")
    def ever_worse(predictions: Predictions) -> float:
        return float(next(values))

    run_dir = tmp_path / "run"
    result = train(tiny_config(photos, run_dir, train={"epochs": 3, "best_metric": "test/ever_worse"}))
    assert result.best_epoch == 1
    ended, best, last = (
        load_file(run_dir / name / "model.safetensors") for name in ("model", "checkpoints/best", "checkpoints/last")
    )
    assert all(torch.equal(ended[name], tensor) for name, tensor in best.items())
    assert any(not torch.equal(ended[name], tensor) for name, tensor in last.items())
    first, *later = metrics(run_dir, "val/loss")
    assert result.scores["val"].loss == first
    assert first not in later
    again = evaluate(run_dir / "model", photos, split_file=run_dir / "split.json", part="test")
    assert again.loss == result.scores["test"].loss, "the test part was scored with these weights"


@pytest.mark.usefixtures("every_checkpoint")
def test_gradients_are_clipped_once_a_step(photos: Path, tmp_path: Path) -> None:
    """Two micro-batches a step: it is the norm of the whole step's gradient that is held down."""
    lr, norm = 0.5, 1e-3
    config = tiny_config(
        photos,
        tmp_path / "run",
        optim={"lr": lr, "momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": norm},
        schedule={"name": "constant"},
        train={"epochs": 1},
        checkpoint={"every_steps": 1, "keep_last": 100},
    )
    train(config)
    steps = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    weights = [load_file(step / "model.safetensors") for step in steps]
    assert len(weights) == 4
    for before, after in itertools.pairwise(weights):
        moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
        assert moved == pytest.approx(lr * norm, rel=1e-2)
    assert all(found > norm for found in metrics(tmp_path / "run", "train/grad_norm")), "else nothing was clipped"


def test_frozen_backbone_keeps_every_value(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, _ = build_network("shufflenet_v2_x0_5", 3)
    torch.save(network.state_dict(), tmp_path / "start.pth")
    model = {"name": "shufflenet_v2_x0_5", "weights": str(tmp_path / "start.pth"), "freeze": "backbone"}
    train(tiny_config(photos, tmp_path / "run", model=model, train={"epochs": 1}))
    trained = load_file(tmp_path / "run/checkpoints/last/model.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(trained[name], tensor) == (not name.startswith("fc.")), name


@pytest.mark.holds("Nothing is overwritten unasked")
def test_nothing_is_overwritten(finished: Path, photos: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"holds a run already.*--resume auto.*--run-dir"):
        train(tiny_config(photos, finished))
    with pytest.raises(UserError, match=r"(?s)another configuration.*optim\.lr: 0\.01 then, 0\.5 now"):
        train(tiny_config(photos, finished, optim={"lr": 0.5}).model_copy(update={"resume": "auto"}))
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*") if file.is_file()} == before


def test_a_finished_run_stays_what_it_is(finished: Path, photos: Path) -> None:
    lines, model = read_metrics(finished / "metrics.jsonl"), (finished / "model/config.json").read_text()
    results = train(tiny_config(photos, finished).model_copy(update={"resume": "auto"})).scores
    assert read_metrics(finished / "metrics.jsonl") == lines
    assert (finished / "model/config.json").read_text() == model
    assert results["test"].num_images == 3


def test_a_mistake_leaves_no_run_behind(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet8"):
        train(tiny_config(photos, tmp_path / "run", model={"name": "resnet8"}))
    train(tiny_config(photos, tmp_path / "run", train={"epochs": 1}))


class NobodyLoggedIn(Tracker):
    """Refuses to open."""

    name = "my/live"

    def __init__(self, run_dir: Path, refuses: bool = True) -> None:
        super().__init__()
        self.refuses = refuses

    def open(self, run_id: str, next_step: int) -> None:
        if self.refuses:
            raise UserError("Nobody is logged in.")


@pytest.mark.holds("Nothing is overwritten unasked")
@pytest.mark.parametrize("resume", ["never", "auto"])
@pytest.mark.parametrize("on_nan", ["stop", "rollback"])
def test_a_run_that_failed_in_its_start_gives_way(resume: str, on_nan: str, photos: Path, tmp_path: Path) -> None:
    """The same command works once the mistake is mended, and so does another one."""
    register("tracker", "my/live")(NobodyLoggedIn)
    run_dir, optim = tmp_path / "run", {"optim": {"lr": 0.02}}
    with pytest.raises(UserError, match="Nobody is logged in"):
        train(tiny_config(photos, run_dir, tracking={"also": ["my/live"]}, train={"epochs": 1, "on_nan": on_nan}))
    assert (run_dir / "config.yaml").exists()
    again = tiny_config(photos, run_dir, train={"epochs": 1, "on_nan": on_nan}, **optim)
    train(again.model_copy(update={"resume": resume}))
    assert load_recipe(run_dir / "config.yaml").optim.lr == 0.02


def test_a_trial_gives_way_to_the_next(photos: Path, tmp_path: Path) -> None:
    trial = tiny_config(photos, tmp_path / "run", debug={"fast_dev_run": True})
    train(trial)
    (tmp_path / "run/notes.txt").write_text("mine")
    train(trial.model_copy(update={"optim": trial.optim.model_copy(update={"lr": 0.5})}))
    assert load_recipe(tmp_path / "run/config.yaml").optim.lr == 0.5
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "train/loss" in line] == [1, 2]
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="holds a run already"):
        train(tiny_config(photos, tmp_path / "run"))


@pytest.mark.holds("What a message advises works")
def test_a_finished_run_is_trained_longer_as_its_message_says(finished: Path, photos: Path, tmp_path: Path) -> None:
    longer = tiny_config(photos, finished, train={"epochs": 3})
    with pytest.raises(UserError, match="epochs: 2 then, 3 now") as refused:
        train(longer.model_copy(update={"resume": "auto"}))
    advised = re.search(
        r"--run-dir DIR, which learns on from here with\s+--model\.weights (\S+)\.$", str(refused.value)
    )
    assert advised
    model = longer.model.model_copy(update={"weights": shlex.split(advised[1])[0]})
    train(longer.model_copy(update={"run_dir": str(tmp_path / "longer"), "model": model}))
    first = min(metrics(finished, "val/loss"))
    assert min(metrics(tmp_path / "longer", "val/loss")) <= first


@pytest.mark.holds("What a message advises works")
def test_photos_that_come_and_go(tmp_path: Path) -> None:
    """What is added while a run is interrupted is left out; what is gone is asked back."""
    photos = make_folder(tmp_path / "photos", per_class=12)
    config = tiny_config(photos, tmp_path / "run", train={"epochs": 1}).model_copy(update={"resume": "auto"})
    train(config)
    draw_image("rose", 99).save(photos / "rose/new.png")
    (photos / "rose/broken.png").write_bytes(b"no image")
    train(config)
    gone = photos / "rose/03.png"
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(
        UserError, match=r"'rose/03\.png'\. Put them back .* --run-dir DIR, .*\s--model\.weights "
    ) as refused:
        train(config)
    assert "80/10/10" not in str(refused.value)
    gone.write_bytes(kept)
    train(config)


@pytest.mark.parametrize("place", ["", "model", "checkpoints/last"])
def test_a_run_is_a_model_and_weights(place: str, finished: Path, photos: Path) -> None:
    assert read_weights(finished / place).keys() == read_weights(finished / "model/model.safetensors").keys()
    if not place.startswith("checkpoints"):
        assert load_model(finished / place).spec == load_spec(finished / "model")


def test_few_images_and_few_epochs_are_trained_on(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """30 training images and a batch of 64: an epoch has steps all the same. The warm-up ends before the run does."""
    logging.getLogger("accel_flowers").addHandler(caplog.handler)
    sections = {
        "schedule": {"name": "cosine", "warmup_epochs": 3},
        "train": {"epochs": 1, "global_batch_size": 64, "micro_batch_size": None},
    }
    config = tiny_config(photos, tmp_path / "run", **sections).model_copy(update={"resume": "auto"})
    train(config)
    logging.getLogger("accel_flowers").removeHandler(caplog.handler)
    assert "train.global_batch_size 64 is more than the 30 pictures to train on: 16 is taken" in caplog.text
    assert "schedule.warmup_epochs 3 is no shorter than the run (train.epochs 1): 0.2 is taken" in caplog.text
    assert len(metrics(tmp_path / "run", "train/loss")) == 2
    train(config)
    page = draw_report(tmp_path / "run").read_text()
    assert "16, for train.global_batch_size 64 is more than there are" in page


def test_transforms_and_network_must_fit(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="32 x 32"):
        train(tiny_config(photos, tmp_path / "run", model={"name": "vit_b_16"}))


@pytest.mark.slow
def test_compiled_weights_have_plain_names(photos: Path, tmp_path: Path) -> None:
    train(tiny_config(photos, tmp_path / "run", train={"epochs": 1, "compile": True}))
    names = set(load_file(tmp_path / "run/model/model.safetensors"))
    assert names == set(build_network("squeezenet1_1", 3)[0].state_dict())
    assert metrics(tmp_path / "run", "train/loss")[0] == pytest.approx(1.1, abs=0.5)
