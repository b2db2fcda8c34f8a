"""Several labels a picture, from the CSV to the scores: trained, killed, resumed, on one process and on two."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pyarrow import parquet
from pydantic import ValidationError
from torch.nn import functional

from accel_flowers.config.schema import Config, LossConfig
from accel_flowers.config.several import settle_labels
from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import Batch, pack, unpack
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.data.transforms.mixing import PairMixing
from accel_flowers.inference.evaluate import _with_labels_of_model, evaluate
from accel_flowers.inference.image_classifier import Prediction
from accel_flowers.inference.image_classifier import load_model as af_load
from accel_flowers.inference.outputs import RowOutput, choose_format
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.multilabel import MultilabelScores
from accel_flowers.metrics.predictions import load_predictions
from accel_flowers.models.saved import load_model as load_saved
from accel_flowers.models.saved import load_spec, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.probe.pictures import find_pictures
from accel_flowers.training.build_data import fit_labels
from accel_flowers.training.distillation import Teacher
from accel_flowers.training.losses import bce_of_sets, build_criterion, positive_weights
from accel_flowers.training.tasks import TaskContext
from tests.faults import Forked, differences, far_apart
from tests.ranks import Ranks, finish
from tests.runs import metrics
from tests.several import make_pictures, recipe_of, train_several, write_columns, write_separated
from tests.specs import change_spec, read_spec

NAMES = ("leaf", "rare", "rose", "sky")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "pictures"
    write_separated(folder, make_pictures(folder, 120))
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on one process, beside its recipe.yaml, and what it said."""
    return train_several(tmp_path_factory.mktemp("trained"), pictures)


@pytest.mark.multiprocess
@pytest.mark.holds("Several labels a picture: the same on any number of processes, and after a kill")
def test_a_run_is_the_same_on_two_processes_and_after_a_kill(trained: tuple[Path, str], tmp_path: Path) -> None:
    (one, said), recipe = trained, trained[0].parent / "recipe.yaml"
    two, killed = (tmp_path / name for name in ("two", "killed"))
    assert "loss.task multilabel, loss.name bce, train.best_metric map are taken" in said
    assert "labels a picture: " in said
    finish(tmp_path, ["train", recipe, "--run-dir", two], processes=2)
    assert far_apart(one, two) == []
    with Forked(1, killed, recipe) as run:
        run.wait_for_step(8)
        run.signal(0, 9)
        run.codes(30)
    assert "going on after step" in finish(tmp_path, ["train", recipe, "--run-dir", killed, "--resume", "auto"])
    assert differences(one, killed) == []
    spec, saved = load_spec(one / "model"), load_predictions(one / "predictions.parquet")
    assert spec.several_labels
    assert spec.class_names == NAMES
    assert saved.parts["test"].thresholds == spec.thresholds  # type: ignore[attr-defined]
    for part, rows in saved.parts.items():
        found = summarize(rows, NAMES)
        assert {name: spec.scores[part][name] for name in found} == found
    assert metrics(one, "test/map") == [spec.scores["test"]["map"]]


def test_it_learns(pictures: Path, tmp_path: Path) -> None:
    """Colours are told by a small network in seconds, and a picture without any has no label."""
    parts = tmp_path / "small.py"
    parts.write_text(
        "from torch import nn\nfrom accel_flowers import register\n\n"
        "@register('model', 'my/small')\n"
        "def small(num_classes, dropout=None):\n"
        "    return nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(24, num_classes))\n"
    )
    plain = {"tta": "none", "dropout": None, "name": "my/small"}
    recipe = recipe_of(
        tmp_path / "recipe.yaml",
        pictures,
        data={"batch_transform": None, "train_transforms": [{"Resize": {"size": [32, 32]}}]},
        model=plain,
        optim={"lr": 2e-2},
        loss={"label_smoothing": 0.0, "class_weights": "none"},
        train={"epochs": 30, "micro_batch_size": 8},
        ema={"decay": None},
        soup={"epochs": None},
        checkpoint={"every_steps": None},
    )
    said = finish(tmp_path, ["train", recipe, "--run-dir", tmp_path / "run", "--import", parts])
    test = load_spec(tmp_path / "run/model").scores["test"]
    assert test["map"] > 0.9, said
    assert test["exact_match"] > 0.7, said
    assert "thresholds" in said


# ---- the finished model ----


def evaluated(tmp_path: Path, words: list[str | Path], processes: int = 1) -> dict[str, Any]:
    said = finish(tmp_path, ["evaluate", *words, "--json"], processes=processes)
    found: dict[str, Any] = json.JSONDecoder().raw_decode(said[said.index("{\n") :])[0]
    return found


@pytest.mark.multiprocess
@pytest.mark.holds("Several labels a picture: the same on any number of processes, and after a kill")
def test_evaluate_says_what_the_run_said(trained: tuple[Path, str], pictures: Path, tmp_path: Path) -> None:
    model, split = trained[0] / "model", trained[0] / "split.json"
    words: list[str | Path] = [model, "--data", pictures, "--label-separator", ";", "--split", split, "--part", "test"]
    wanted = load_spec(model).scores["test"]
    for processes in (1, 2):
        found = evaluated(tmp_path, words, processes)
        assert found.pop("part") == "test"
        assert found.pop("seen") == {"train": 0, "val": 0, "others": None}
        assert {name: wanted[name] for name in found} == found
    told = finish(tmp_path, ["evaluate", *words])
    assert f"mAP {wanted['map']:.4f}, loss {wanted['loss']:.4f}, micro F1 {wanted['micro_f1']:.4f}" in told
    leaf = wanted["per_class"]["leaf"]
    assert re.search(rf"leaf +{leaf['ap']:.4f} +{leaf['precision']:.4f} .* {leaf['threshold']:.4f}\n", told)


def test_evaluate_matches_classes_by_their_names(trained: tuple[Path, str], pictures: Path, tmp_path: Path) -> None:
    for name in ("001.png", "004.png"):  # leaf alone, sky alone
        shutil.copy(pictures / name, tmp_path)
    (tmp_path / "labels.csv").write_text("file,sky,leaf\n001.png,0,1\n004.png,1,0\n")
    scores = evaluate(trained[0], tmp_path, label_columns=["sky", "leaf"])
    assert {name: row.count for name, row in scores.per_class.items()} == {"leaf": 1, "rare": 0, "rose": 0, "sky": 1}
    assert isinstance(scores, MultilabelScores)
    (tmp_path / "labels.csv").write_text("file,label\n001.png,leaf\n004.png,sky\n")
    assert evaluate(trained[0], tmp_path).as_json() == scores.as_json()
    (tmp_path / "labels.csv").write_text("file,label\n001.png,leaf\n004.png,moss\n")
    with pytest.raises(UserError, match="classes that the model does not know: moss"):
        evaluate(trained[0], tmp_path)


@pytest.mark.multiprocess
def test_a_process_without_a_picture_makes_no_difference(
    trained: tuple[Path, str], pictures: Path, tmp_path: Path
) -> None:
    """Two pictures are one batch, and the second process has none: not even the labels' shape."""
    for name in ("001.png", "004.png"):
        shutil.copy(pictures / name, tmp_path)
    (tmp_path / "labels.csv").write_text("file,labels\n001.png,leaf\n004.png,\n")
    words: list[str | Path] = [trained[0] / "model", "--data", tmp_path, "--label-separator", ";"]
    # One class alone is known here; the model's others have no picture.
    found = [evaluated(tmp_path, words, processes) for processes in (1, 2)]
    assert found[0] == found[1]
    assert found[0]["num_images"] == 2


def test_a_model_of_one_label_is_not_asked_for_several(pictures: Path, tmp_path: Path) -> None:
    spec = ModelSpec(architecture="x", class_names=NAMES, transforms=(), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(UserError, match="trained to name one class"):
        _with_labels_of_model(load_images(str(pictures), label_separator=";"), spec)


def test_predict_says_what_reaches_its_threshold(trained: tuple[Path, str], pictures: Path, tmp_path: Path) -> None:
    model, spec = af_load(trained[0]), load_spec(trained[0] / "model")
    rows = load_predictions(trained[0] / "predictions.parquet").parts["test"]
    answers = model.predict([pictures / file for file in rows.files])
    for answer, said, probabilities in zip(answers, rows.predicted, rows.probabilities, strict=True):
        wanted = {NAMES[label]: float(probabilities[label]) for label in np.flatnonzero(said)}
        assert dict(answer.top) == pytest.approx(wanted, abs=1e-5)
        assert set(answer.labels or ()) == wanted.keys()
        assert [value for _, value in answer.top] == sorted(dict(answer.top).values(), reverse=True)
    whole = model.predict(pictures / rows.files[0], top_k=4)[0]
    assert {name for name, _ in whole.top} == set(NAMES)
    assert whole.labels == answers[0].labels
    assert spec.cuts == tuple(rows.cuts.tolist())  # type: ignore[attr-defined]


ROWS = [
    Prediction("a.png", (("rose", 0.9), ("sky", 0.75)), labels=("rose", "sky")),
    Prediction("b.png", (), labels=()),
    Prediction("c.png", (("rose", 0.25),), labels=()),
    Prediction("d.png", error="broken"),
]


def test_rows_are_written_with_several_labels_or_none(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.json", "rows.parquet", "rows.txt"):
        out = tmp_path / name
        with RowOutput(out, choose_format(None, out), calibrated=False, several=True, width=5) as output:
            for row in ROWS:
                output.write(row)
    cells = [
        ("a.png", 1, "rose", 0.9, True, False, None),
        ("a.png", 2, "sky", 0.75, True, False, None),
        ("b.png", None, None, None, None, None, None),
        ("c.png", 1, "rose", 0.25, False, False, None),
        ("d.png", None, None, None, None, None, "broken"),
    ]
    assert [tuple(row.values()) for row in parquet.read_table(tmp_path / "rows.parquet").to_pylist()] == cells
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines == [
        "file,rank,class,probability,above_threshold,calibrated,error",
        "a.png,1,rose,0.900000,true,false,",
        "a.png,2,sky,0.750000,true,false,",
        "b.png,,,,,,",
        "c.png,1,rose,0.250000,false,false,",
        "d.png,,,,,,broken",
    ]
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row.get("labels") for row in found] == [["rose", "sky"], [], [], None]
    assert found[2]["top"] == [{"class": "rose", "probability": 0.25}]
    assert (tmp_path / "rows.txt").read_text().splitlines() == [
        "a.png  rose  90.0%  sky  75.0%",
        "b.png  no label",
        "c.png  no label  (rose 25.0%)",
        "d.png  error: broken",
    ]


def test_predict_on_the_command_line(trained: tuple[Path, str], pictures: Path, tmp_path: Path) -> None:
    words = [
        "predict",
        trained[0] / "model",
        pictures,
        "--html",
        tmp_path / "page.html",
        "--out",
        tmp_path / "rows.json",
    ]
    said = finish(tmp_path, words)
    assert "those of each class by itself, not calibrated; a class is said from" in said
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 120
    assert all([each["class"] for each in row["top"]] == row["labels"] for row in rows)
    page = (tmp_path / "page.html").read_text()
    said_often = Counter(label for row in rows for label in row["labels"] or ["(no label)"])
    for name, number in said_often.items():
        assert re.search(rf"<td>{re.escape(name)}</td><td[^>]*>{number}</td>", page), name


def test_thresholds_of_a_models_file_are_checked(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copy(trained[0] / "model/config.json", tmp_path)
    whole = read_spec(tmp_path)
    for change in (
        {"thresholds": [0.5]},
        {"thresholds": [0.5, 0.5, 0.5, 1.5]},
        {"several_labels": False, "thresholds": [0.5] * 4},
    ):
        change_spec(tmp_path, **(whole | change))
        with pytest.raises(UserError, match=r"config\.json is damaged.*"):
            load_spec(tmp_path)


def test_of_a_model_of_one_label_nothing_of_several_is_written(tmp_path: Path) -> None:
    spec = ModelSpec(architecture="x", class_names=NAMES, transforms=(), mean=(0, 0, 0), std=(1, 1, 1))
    save_model(tmp_path / "model", {"w": torch.zeros(1)}, spec)
    written = read_spec(tmp_path / "model")
    assert not {"several_labels", "thresholds"} & written.keys()
    assert load_spec(tmp_path / "model") == spec


def test_such_a_model_teaches_nobody(trained: tuple[Path, str]) -> None:
    context = TaskContext(
        config=LossConfig(task="distillation"), labels=torch.tensor([0, 1, 2, 3]), class_names=NAMES,
        device=torch.device("cpu"), mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    with pytest.raises(UserError, match="teacher was trained for several labels"):
        Teacher(load_saved(trained[0] / "model"), context)


# ---- what a recipe says ----


@pytest.mark.parametrize("columns", [{"label_separator": ";"}, {"label_columns": ["a", "b"]}])
def test_columns_of_several_labels_say_the_task(columns: dict[str, Any]) -> None:
    config, told = settle_labels(Config.model_validate({"data": columns}))
    assert (config.loss.task, config.loss.name, config.train.best_metric) == ("multilabel", "bce", "map")
    assert "the labels' columns say so" in told[0]
    assert settle_labels(config) == (config, []), "as config.yaml of a run says it"


def test_a_recipe_of_one_label_stays_what_it_is() -> None:
    assert settle_labels(Config()) == (Config(), [])
    chosen = Config.model_validate(
        {"loss": {"task": "multilabel", "name": "bce"}, "train": {"best_metric": "micro_f1"}}
    )
    assert settle_labels(chosen) == (chosen, [])


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"loss": {"task": "multilabel", "name": "focal"}}, "focal is for one class a picture"),
        ({"loss": {"task": "multilabel", "name": "logit_adjusted"}}, "loss.class_weights: balanced"),
        ({"loss": {"task": "multilabel"}, "data": {"sampling": "balanced"}}, "lets classes take turns"),
        ({"loss": {"task": "distillation"}, "data": {"label_separator": ";"}}, "distillation compares one class"),
        ({"train": {"best_metric": "map"}}, "map is for several labels a picture"),
        ({"data": {"label_separator": ";", "label_columns": "all"}}, "give the one or the other"),
    ],
)
def test_what_does_not_go_together_is_told(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(sections)


def test_one_refusal_comes_when_columns_have_said_the_task() -> None:
    with pytest.raises(ValidationError, match="lets classes take turns"):
        settle_labels(Config.model_validate({"data": {"label_separator": ";", "sampling": "balanced"}}))


def test_a_table_has_the_form_that_the_task_takes(pictures: Path, tmp_path: Path) -> None:
    several = load_images(str(pictures), label_separator=";")
    with pytest.raises(UserError, match=r"type --loss\.task multilabel"):
        fit_labels(several, Config())
    with pytest.raises(UserError, match="best_metric accuracy is not told"):
        fit_labels(several, Config.model_validate({"loss": {"task": "multilabel"}}))
    config, _ = settle_labels(Config.model_validate({"loss": {"task": "multilabel"}}))
    assert fit_labels(several, config).labels.tolist() == several.labels.tolist()
    (tmp_path / "labels.csv").write_text("file,label\n000.png,a\n001.png,b\n")
    for name in ("000.png", "001.png"):
        shutil.copy(pictures / name, tmp_path)
    one = fit_labels(load_images(str(tmp_path)), config)
    assert one.labels.tolist() == [[True, False], [False, True]]


def test_both_kinds_of_columns_make_the_same_run(pictures: Path, tmp_path: Path) -> None:
    labels = make_pictures(tmp_path / "columns", 120)
    write_columns(tmp_path / "columns", labels)
    flags = ["--debug.fast-dev-run"]
    ways = {"one": [], "two": ["--data.path", tmp_path / "columns", "--data.label-columns", "all"]}
    for name, words in ways.items():
        separator = {"label_separator": None if words else ";"}
        recipe = recipe_of(tmp_path / f"{name}.yaml", pictures, data=separator)
        finish(tmp_path, ["train", recipe, "--run-dir", tmp_path / name, *words, *flags])
    assert (tmp_path / "one/metrics.jsonl").read_text().count("val/map") == 1
    assert metrics(tmp_path / "one", "val/loss") == metrics(tmp_path / "two", "val/loss")


def test_a_dataset_with_lists_wants_the_task_to_be_said(pictures: Path, tmp_path: Path) -> None:
    labels = make_pictures(tmp_path / "drawn", 120)
    rows = [{"image": str(pictures / file), "labels": list(names)} for file, names in labels.items()]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("string"))})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "data"))
    recipe = recipe_of(tmp_path / "recipe.yaml", pictures, data={"label_separator": None})
    words = ["train", recipe, "--data.path", tmp_path / "data", "--debug.fast-dev-run", "--run-dir", tmp_path / "run"]
    with Ranks(tmp_path, words) as ranks:
        assert ranks.codes(120) == [2]
        assert "type --loss.task multilabel" in ranks.output()
        assert "Traceback" not in ranks.output()
    said = finish(tmp_path, [*words, "--loss.task", "multilabel"])
    assert "a picture may have several labels (loss.task is multilabel)" in said
    spec = load_spec(tmp_path / "run/model")
    assert spec.several_labels
    assert spec.class_names == NAMES
    scores = evaluate(tmp_path / "run", tmp_path / "data")
    assert scores.num_images == 120


def test_pictures_are_mixed_inside_the_network_too(pictures: Path, tmp_path: Path) -> None:
    own = {"loss": {"class_weights": "none"}, "data": {"batch_transform": None}, "model": {"tta": "none"}}
    recipe = recipe_of(tmp_path / "recipe.yaml", pictures, **own)
    words = ["train", recipe, "--loss.task", "manifold_mixup", "--debug.fast-dev-run", "--run-dir", tmp_path / "run"]
    assert "train.best_metric map is taken" in finish(tmp_path, words)
    assert load_spec(tmp_path / "run/model").several_labels


def test_a_probe_takes_one_label(pictures: Path, tmp_path: Path) -> None:
    rows = [{"image": str(pictures / f"{number:03d}.png"), "labels": ["a", "b"][: number % 3]} for number in range(9)]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("string"))})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(UserError, match="A probe takes one label a picture"):
        find_pictures(load_images(str(tmp_path / "data")), num_folds=2, seed=0, on_bad_image="stop")


def test_a_metric_a_loss_and_a_task_of_ones_own_see_the_sets(pictures: Path, tmp_path: Path) -> None:
    parts = tmp_path / "own.py"
    parts.write_text(
        "import torch\nfrom torch.nn import functional\nfrom accel_flowers import register\n"
        "from accel_flowers.training.tasks import Output\n\n"
        "@register('metric', 'my/hamming', lower_is_better=True)\n"
        "def hamming(predictions):\n"
        "    return (predictions.predicted != predictions.labels).mean()\n\n"
        "@register('task', 'my/plain')\n"
        "def plain(context):\n"
        "    assert context.labels.dtype == torch.bool and context.labels.shape[1] == len(context.class_names)\n"
        "    def run(model, inputs, targets):\n"
        "        logits = model(inputs)\n"
        "        return Output(functional.multilabel_soft_margin_loss(logits, targets), logits)\n"
        "    return run\n"
    )
    recipe = recipe_of(tmp_path / "recipe.yaml", pictures)
    words = ["train", recipe, "--import", parts, "--loss.task", "my/plain", "--loss.class-weights", "none",
             "--train.best-metric", "my/hamming", "--debug.fast-dev-run", "--run-dir", tmp_path / "run"]  # fmt: skip
    finish(tmp_path, words)
    rows = load_predictions(tmp_path / "run/predictions.parquet").parts["test"]
    found = load_spec(tmp_path / "run/model").scores["test"]["my/hamming"]
    assert found == pytest.approx((rows.predicted != rows.labels).mean())


# ---- losses, batches ----


def test_the_loss_is_binary_cross_entropy_of_each_class() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.rand(6, 4) < 0.4
    plain = bce_of_sets()(logits, labels.float())
    wanted = functional.binary_cross_entropy(logits.sigmoid(), labels.float(), reduction="none").sum(dim=1).mean()
    torch.testing.assert_close(plain, wanted)
    smoothed = bce_of_sets(0.2)(logits, labels.float())
    torch.testing.assert_close(smoothed, bce_of_sets()(logits, labels.float() * 0.8 + 0.1))


def test_with_weights_the_yes_and_the_no_of_a_class_weigh_the_same() -> None:
    """The best constant score of each class is then 0: a half, whatever the class's size."""
    labels = torch.zeros(100, 3)
    labels[:4, 0], labels[:50, 1], labels[:90, 2] = 1, 1, 1
    weights = positive_weights(labels)
    assert weights.tolist() == pytest.approx([96 / 4, 1, 10 / 90])
    scores = torch.zeros(3, requires_grad=True)
    bce_of_sets(weights=weights)(scores.expand(100, 3), labels).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(3), atol=1e-5, rtol=0)
    plain = torch.zeros(3, requires_grad=True)
    bce_of_sets()(plain.expand(100, 3), labels).backward()
    assert plain.grad is not None
    assert plain.grad[0] > 0.4


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(pieces: int) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(8, 5) < 0.3).float()
    config = LossConfig(task="multilabel", name="bce", class_weights="balanced", label_smoothing=0.1)
    loss = build_criterion(config, labels.bool(), 5, torch.device("cpu"))
    logits = torch.randn(8, 5, requires_grad=True)
    (whole,) = torch.autograd.grad(loss(logits, labels), logits)
    parts = zip(logits.chunk(pieces), labels.chunk(pieces), strict=True)
    (cut,) = torch.autograd.grad(sum(loss(*part) for part in parts) / pieces, logits)
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize("chance", [False, True])
def test_labels_come_out_of_a_worker_as_they_went_in(chance: bool) -> None:
    labels = torch.tensor([[True, False, True], [False, False, False]])
    batch = Batch(labels=labels, samples=torch.tensor([5, 2**40]), micro_batch=3)
    if chance:
        batch["random_params"], batch["output_extent"] = torch.rand(2, 4, dtype=torch.float64), (1, 2)  # type: ignore[typeddict-item]
    packed = pack(batch)
    assert isinstance(packed, dict)
    found = unpack(packed)
    assert found["labels"].dtype == torch.float32
    assert found["labels"].tolist() == labels.float().tolist()
    assert found["samples"].tolist() == [5, 2**40]
    assert found.keys() == batch.keys()
    if chance:
        torch.testing.assert_close(found["random_params"], batch["random_params"])


def test_mixed_pictures_have_shares_of_both_ones_labels() -> None:
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 0]])
    mixing = PairMixing(BatchContext(3, seed=1, micro_batch=2), mixup=0.5)
    share = mixing.draw(0, 8, 8).share
    _, mixed = mixing(torch.zeros(2, 3, 8, 8), targets, 0)
    np.testing.assert_allclose(mixed, [[share, 1, 0], [1 - share, 1, 0]], rtol=1e-6)
