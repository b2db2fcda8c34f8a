"""Nothing knows five classes, or flowers: a hundred and two, of unlike sizes, whose names look like numbers, words of YAML and formulas."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from accel_flowers.cli.main import main
from accel_flowers.config.loading import read_config
from accel_flowers.core.yaml_text import flow_yaml, parse_yaml
from accel_flowers.models.saved import load_spec
from accel_flowers.tracking.run_dir import read_metrics
from tests.drawn import ODD_NAMES, draw_folder, long_tail, many_names
from tests.runs import write_recipe
from tests.specs import read_spec

NAMES, SIZES = many_names(), long_tail(102)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path | int, code: int = 0) -> str:
    """A command to its end, in this process; what it said as its result."""
    capsys.readouterr()
    ended = main_to_its_end(words)
    said = capsys.readouterr()
    assert ended == code, said.err
    return said.out


def main_to_its_end(words: Sequence[str | Path | int]) -> object:
    """The exit code of a command in this process."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code or 0
    return 0


def text_of(page: Path) -> str:
    """What a reader sees of a page."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("odd") / "photos", NAMES, SIZES)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml",
        data={"split": "80/20"},
        train={"epochs": 1, "global_batch_size": 64, "micro_batch_size": 32, "eval_batch_size": 64},
        checkpoint={"every_steps": 4, "keep_last": 9},
    )


@pytest.fixture(scope="module")
def runs(odd: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two, of two seeds and one split."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        split = ["--data.split", root / "0/split.json"] if seed else []
        words = ["train", recipe, "--data.path", odd, "--run-dir", root / str(seed), "--train.seed", seed, *split]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            assert main_to_its_end(words) == 0
    return root / "0", root / "1"


def test_the_folder_is_what_it_is_meant_to_be() -> None:
    assert len(NAMES) == len(set(NAMES)) == len(SIZES) == 102
    assert (min(SIZES), max(SIZES)) == (2, 60)
    assert {"1", "2", "10", "007", "none", "true", "two words", "été"} < set(ODD_NAMES) < set(NAMES)


@pytest.mark.holds("A class is called what its folder is called")
def test_a_run_keeps_the_names_and_counts_every_picture(runs: tuple[Path, Path], odd: Path) -> None:
    """In the model, the split, the predictions and the metrics; the configuration of a run is read back as it was."""
    run_dir = runs[0]
    spec = load_spec(run_dir / "model")
    assert sorted(spec.class_names) == sorted(NAMES)
    assert read_spec(run_dir / "model")["class_names"] == list(spec.class_names)
    split = json.loads((run_dir / "split.json").read_text())
    assert sorted(map(str, split["class_names"])) == sorted(NAMES)
    assert len(json.dumps(split["parts"]).split(".png")) - 1 == sum(SIZES) == len(list(odd.glob("*/*.png")))
    assert read_config(run_dir / "config.yaml", what="it").data.path == str(odd)
    table = pq.read_table(run_dir / "predictions.parquet").to_pydict()
    assert {*table["label"], *table["predicted"]} <= set(NAMES)
    for file, label in zip(table["file"], table["label"], strict=True):
        assert file.rpartition("/")[0] == label
    known = spec.scores["val"]
    assert len(known["per_class"]) == 102
    assert set(known["per_class"]) == set(NAMES)
    assert sum(each["count"] for each in known["per_class"].values()) == len(table["file"])
    matrix = np.array(known["confusion_matrix"])
    assert matrix.shape == (102, 102)
    assert matrix.sum() == len(table["file"])
    assert matrix.trace() / matrix.sum() == pytest.approx(known["accuracy"])
    assert any("val/accuracy" in line for line in read_metrics(run_dir / "metrics.jsonl"))


@pytest.mark.holds("A class is called what its folder is called")
def test_a_run_goes_on_to_the_same_end(
    runs: tuple[Path, Path], odd: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(runs[0], tmp_path / "again", symlinks=True)
    shutil.rmtree(again / "model")
    steps = sorted((again / "checkpoints").glob("step-*"))
    for folder in steps[2:]:
        shutil.rmtree(folder)
    run(capsys, "train", recipe, "--data.path", odd, "--run-dir", again, "--resume", "auto")
    assert load_spec(again / "model").class_names == load_spec(runs[0] / "model").class_names
    assert load_spec(again / "model").scores == load_spec(runs[0] / "model").scores
    before, after = (load_file(each / "model/model.safetensors") for each in (runs[0], again))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.holds("A class is called what its folder is called")
def test_scores_of_a_folder_add_up(runs: tuple[Path, Path], odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "evaluate", runs[0] / "model", "--data", odd, "--json"))
    assert set(told["per_class"]) == set(NAMES)
    for name, size in zip(NAMES, SIZES, strict=True):
        assert told["per_class"][name]["count"] == size, name
    right = sum(told["per_class"][name]["recall"] * size for name, size in zip(NAMES, SIZES, strict=True))
    assert right / sum(SIZES) == pytest.approx(told["accuracy"])
    assert np.mean([each["f1"] for each in told["per_class"].values()]) == pytest.approx(told["macro_f1"])
    words = run(capsys, "evaluate", runs[0] / "model", "--data", odd)
    assert "always '1' would get" in words
    assert {line.split("  ")[0].strip() for line in words.splitlines()} >= set(NAMES), "one row for each"


@pytest.mark.holds("A class is called what its folder is called")
@pytest.mark.parametrize("name", ["007", "none", "true", "été", "=SUM(A1)", "- dash", 'the "quoted"', "🚲"])
def test_answers_say_the_names_as_they_are(
    runs: tuple[Path, Path], odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """In CSV, JSON, Parquet and on the page: strings, all of them, once each."""
    words = ["predict", runs[0] / "model", odd / name, "--top-k", 102, "--format"]
    from_csv = list(csv.DictReader(io.StringIO(run(capsys, *words, "csv"))))
    answers = json.loads(run(capsys, *words, "json"))
    run(capsys, *words, "parquet", "--out", tmp_path / "out.parquet", "--html", tmp_path / "page.html")
    from_parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    count = SIZES[NAMES.index(name)]
    assert len(from_csv) == len(from_parquet) == 102 * count
    by_csv = {row["class"] for row in from_csv}
    assert by_csv == {row["class"] for row in from_parquet} == set(NAMES)
    assert len(answers) == count
    for row in answers:
        labels = [each["class"] for each in row["top"]]
        assert sorted(labels) == sorted(NAMES)
        assert sum(each["probability"] for each in row["top"]) == pytest.approx(1, abs=1e-3)
    assert answers[0]["top"][0]["class"] in text_of(tmp_path / "page.html")


@pytest.mark.holds("A class is called what its folder is called")
def test_the_pages_name_all_and_lead_with_few(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "report", runs[0])
    text = text_of(runs[0] / "report.html")
    assert "102 classes" in text
    assert "Always saying '1' would get" in text
    assert "'1' has 30.0 times as many pictures as '17'" in text
    assert f"{sum(SIZES)} pictures" in text
    for name in NAMES:
        assert name in text, name
    assert "The other 82 classes" in text, "twenty stand in the open"
    groups = re.findall(r"the (\d+) (rarest|middle|most frequent)", text)
    assert [name for _, name in groups] == ["rarest", "middle", "most frequent"]
    assert sum(int(number) for number, _ in groups) == 102
    assert "Only the 24 classes with the most mistakes" in text
    assert (runs[0] / "report.html").stat().st_size < 3 * 2**20
    run(capsys, "compare", *runs, "--out", tmp_path / "compare.html")
    assert "2 runs on the same 214 pictures of validation" in text_of(tmp_path / "compare.html")


@pytest.mark.holds("A class is called what its folder is called")
def test_inspect_names_them(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", odd, "--num-workers", 0]
    told = json.loads(run(capsys, *words, "--json", "--html", tmp_path / "page.html", code=1))
    assert {name: each["pictures"] for name, each in told["classes"].items()} == dict(zip(NAMES, SIZES, strict=True))
    said = run(capsys, *words, code=1)
    assert f"{sum(SIZES)} pictures, 102 classes" in said
    topic = said[said.index("classes too small to be split") :].split("\n\n")[0]
    assert "'1' has 60 pictures, '17' has 2." in said
    tail = re.search(
        r"half of all pictures are in the (\d+) largest classes; of the 102, the (\d+) others have from 2 to ",
        " ".join(said.split()),
    )
    assert tail is not None
    head = sorted(SIZES, reverse=True)[: int(tail[1])]
    assert sum(head) >= sum(SIZES) / 2 > sum(head[:-1])
    assert int(tail[2]) == 102 - len(head)
    assert "more: --json" not in topic, "what is named in full is not said to go on"
    text = text_of(tmp_path / "page.html")
    assert all(name in text for name in NAMES)


def test_names_come_back_from_yaml_as_strings() -> None:
    """Through the project's own reader, as flags and recipes do."""
    assert parse_yaml(flow_yaml(list(NAMES)), "names") == list(NAMES)


def test_things_that_are_no_flowers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two classes with a test part: bars and rings."""
    photos = draw_folder(tmp_path / "photos", ("bars (striped)", "no"), (14, 11))
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})
    run(capsys, "train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run")
    told = json.loads(run(capsys, "evaluate", tmp_path / "run/model", "--data", photos, "--json"))
    assert set(told["per_class"]) == {"bars (striped)", "no"}
    run(capsys, "report", tmp_path / "run")
    text = re.sub(r"accel.flowers", "", text_of(tmp_path / "run/report.html").replace(str(tmp_path), ""))
    assert "bars (striped)" in text
    assert not re.search(r"flower|rose|tulip|daisy|sunflower|dandelion", text.lower())
