"""Wrong labels: found by whoever never saw them, listed, left out or mended; and a run with fixes is that run and no other."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accel_flowers.cli.commands import dispatch
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.data.label_fixes import LEFT_OUT, LabelFixes, fix_labels, read_label_fixes
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import load_split
from accel_flowers.labels import nearness
from accel_flowers.labels.judged import judge_labels
from accel_flowers.labels.nearness import compare
from accel_flowers.labels.neighbours import Group, in_order
from accel_flowers.metrics.classification import Predictions
from accel_flowers.metrics.predictions import load_predictions, save_predictions
from accel_flowers.report.draw import draw_report
from accel_flowers.study.members import Member, Study, save_study
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import metrics, tiny_config, write_recipe

OUT, WRONG, KEPT = "rose/03.png", "rose/04.png", "rose/05.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=9)


def write_fixes(
    path: Path, labels: Mapping[str, str], *, columns: tuple[str, ...] = ("file", "given", "label")
) -> Path:
    """A file of label fixes as people leave it."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for name, label in labels.items():
            said = {"file": name, "given": name.split("/")[0], "label": label}
            writer.writerow({column: said[column] for column in columns})
    return path


@pytest.fixture(scope="module")
def fixes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixes(tmp_path_factory.mktemp("fixes") / "fixes.csv", {OUT: "", WRONG: "tulip", KEPT: "rose"})


def test_an_empty_label_leaves_out_a_class_relabels_and_the_given_one_keeps(photos: Path, fixes: Path) -> None:
    before, after = load_images(str(photos)), load_images(str(photos), label_fixes=fixes)
    assert set(before.files) - set(after.files) == {OUT}
    assert dict(after.taken_out) == {OUT: LEFT_OUT}
    assert dict(after.relabelled) == {WRONG: "tulip"}
    assert after.class_names == before.class_names
    for name in after.files:
        expected = "tulip" if name == WRONG else name.split("/")[0]
        assert after.class_names[after.labels[after.row_of(name)]] == expected
        assert after.read(after.row_of(name)) == (photos / name).read_bytes()
    assert after.images.labels.tolist() == after.labels.tolist()
    assert "1 picture left out, 1 given another class, 1 kept as they are" in after.notes[-1]


def test_a_source_that_is_no_folder_keeps_its_rows_together(photos: Path) -> None:
    table = load_images(str(photos))

    class Packed:
        """What a data set of the hub is: an `ImageSource` that is no folder."""

        names, labels, class_names = table.files, table.labels, table.class_names
        given_parts = tuple("train" for _ in table.files)
        digests = tuple(f"digest of {name}" for name in table.files)

        def __len__(self) -> int:
            return len(self.names)

        def read(self, row: int) -> bytes:
            return self.names[row].encode()

    from dataclasses import replace

    found = fix_labels(replace(table, images=Packed()), LabelFixes("x.csv", {OUT: None, WRONG: "tulip"}))
    assert OUT not in found.files
    assert len(found.images) == len(found.files) == len(found.labels) == len(found.given_parts or ())
    for row, name in enumerate(found.files):
        assert found.read(row) == name.encode()
        assert (found.images.digests or ())[row] == f"digest of {name}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks the columns file and label; it is empty"),
        (b"file,class\nrose/03.png,\n", "lacks the column label; it has 'class', 'file'"),
        (b"file,label,label\nrose/03.png,,\n", "two columns 'label'"),
        (b"file,label\nrose/03.png,\nrose/03.png,tulip\n", "line 3 names 'rose/03.png' a second time"),
        (b"file,given,label\nrose/03.png,rose\n", "line 2 has 2 columns, its first line 3"),
        (b"file,label\n,tulip\n", "line 2 names no file"),
        ("file,label\nrose/03.png,Löwe\n".encode("latin-1"), "no UTF-8 text.*Save it as CSV in UTF-8"),
        (b'file,label\n"rose/03.png,\n', "is no CSV"),
        (b"file,label\nrose/99.png,\n", "'rose/99.png'"),
        (b"file,label\nrose/03.png,roze\n", "names classes that are none: 'roze'; there are 'daisy', 'rose', 'tulip'"),
        ("".join(["file,label\n", *(f"rose/{n:02d}.png,\n" for n in range(9))]).encode(), "leaves no picture of 'rose'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_end_in_a_message(content: bytes, words: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "fixes.csv").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_images(str(photos), label_fixes=tmp_path / "fixes.csv")
    assert "fixes.csv" in str(caught.value)


def test_a_file_that_is_not_there_is_told_before_anything_is_read(photos: Path, tmp_path: Path) -> None:
    for words in (
        ["train", "quickstart", "--data.path", photos, "--data.label-fixes"],
        ["probe", photos, "--label-fixes"],
    ):
        with pytest.raises(UserError, match="There is no file of label fixes"):
            dispatch([*map(str, words), str(tmp_path / "none.csv")])


def test_all_mistakes_of_a_file_are_told_at_once(photos: Path, tmp_path: Path) -> None:
    path = write_fixes(tmp_path / "fixes.csv", {"rose/98.png": "", "rose/99.png": "", OUT: "x"})
    with pytest.raises(UserError, match=r"2 pictures[^\n]*'rose/98.png', 'rose/99.png'\n[^\n]*'x'"):
        load_images(str(photos), label_fixes=path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_spreadsheet_may_have_written_it(delimiter: str, photos: Path, tmp_path: Path) -> None:
    rows = [["label", "note", "file"], ["tulip", "a, b; c", WRONG], ["", "", OUT]]
    with (tmp_path / "fixes.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    found = read_label_fixes(tmp_path / "fixes.csv")
    assert dict(found.labels) == {WRONG: "tulip", OUT: None}
    plain = write_fixes(tmp_path / "plain.csv", {OUT: "", WRONG: "tulip"})
    assert found.digest == read_label_fixes(plain).digest, "what it says counts, not how it is written"


@pytest.fixture(scope="module")
def fixed_run(photos: Path, fixes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "fixed"
    train(tiny_config(photos, run_dir, data={"label_fixes": str(fixes)}, train={"epochs": 1}))
    return run_dir


@pytest.mark.holds("Label fixes act before the split is drawn")
def test_a_run_learns_and_scores_what_the_fixes_say(fixed_run: Path, photos: Path, fixes: Path) -> None:
    split = load_split(fixed_run / "split.json")
    assert OUT not in split.parts
    assert split.left_out == {OUT: LEFT_OUT}
    assert split.relabelled == {WRONG: "tulip"}
    assert {WRONG, KEPT} <= set(split.parts)
    # Stratified by the new classes: 8 tulips would put other numbers into val and test than 10 do.
    parts = {part: [name for name in split.files_of(part) if _fixed_class(name) == "tulip"] for part in ("val", "test")}
    assert all(len(files) == 1 for files in parts.values())
    saved = load_predictions(fixed_run / "predictions.parquet")
    for rows in saved.parts.values():
        for name, label in zip(rows.files, rows.labels, strict=True):
            assert saved.class_names[label] == _fixed_class(name)
    assert (fixed_run / "label_fixes.csv").read_text() == fixes.read_text()
    page = draw_report(fixed_run).read_text()
    assert LEFT_OUT in page
    assert "1 picture has another class than the data set says" in page


def _fixed_class(name: str) -> str:
    return "tulip" if name == WRONG else name.split("/")[0]


def test_evaluate_on_its_split_obeys_them(fixed_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = load_split(fixed_run / "split.json")
    part = split.parts[WRONG]
    words = ["evaluate", fixed_run / "model", "--data", photos, "--split", fixed_run / "split.json", "--json", "--part"]
    dispatch([*map(str, words), part, "--num-workers", "0"])
    found = json.loads(capsys.readouterr().out)
    counts = {name: found["per_class"][name]["count"] for name in split.class_names}
    expected = [_fixed_class(name) for name in split.files_of(part)]
    assert counts == {name: expected.count(name) for name in split.class_names}


def test_inspect_obeys_them(photos: Path, fixes: Path, fixed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["inspect", str(photos), "--label-fixes", str(fixes), "--json", "--num-workers", "0"])
    found = json.loads(capsys.readouterr().out)
    assert {name: sum(counts.values()) for name, counts in found["classes"].items()} == {
        "daisy": 9,
        "rose": 7,
        "tulip": 10,
    }


@pytest.mark.holds("A run goes on with the label fixes that it began with")
def test_a_run_goes_on_with_the_same_fixes_alone(fixed_run: Path, photos: Path, fixes: Path, tmp_path: Path) -> None:
    def again(path: Path | None) -> None:
        data = {"label_fixes": str(path) if path else None}
        train(tiny_config(photos, fixed_run, data=data, train={"epochs": 1}).model_copy(update={"resume": "auto"}))

    moved = tmp_path / "elsewhere.csv"
    moved.write_text(fixes.read_text())
    again(moved)  # the same, in another place
    edited = write_fixes(tmp_path / "edited.csv", {OUT: "", WRONG: "daisy", "tulip/01.png": ""})
    with pytest.raises(UserError) as caught:
        again(edited)
    for line in (f"{WRONG}: 'tulip' then, 'daisy' now", "tulip/01.png: 'not named' then, 'left out' now"):
        assert line in str(caught.value)
    with pytest.raises(UserError, match=r"data\.label_fixes: 'fixes [0-9a-f]+' then, None now"):
        again(None)


def test_the_same_split_compares_a_run_with_and_without(
    photos: Path, fixes: Path, fixed_run: Path, tmp_path: Path
) -> None:
    train(tiny_config(photos, tmp_path / "plain", train={"epochs": 1}))
    path = tmp_path / "plain" / "split.json"
    document = json.loads(path.read_text())
    document["parts"][WRONG] = "val"  # where its class is seen in what is said of it
    path.write_text(json.dumps(document))
    plain = load_split(path)
    data = {"label_fixes": str(fixes), "split": str(tmp_path / "plain" / "split.json")}
    train(tiny_config(photos, tmp_path / "fixed", data=data, train={"epochs": 1}))
    fixed = load_split(tmp_path / "fixed" / "split.json")
    assert dict(fixed.parts) == {name: part for name, part in plain.parts.items() if name != OUT}
    saved = load_predictions(tmp_path / "fixed" / "predictions.parquet")
    assert saved.class_names[saved.parts["val"].labels[saved.parts["val"].files.index(WRONG)]] == "tulip"
    with pytest.raises(UserError, match=f"'{WRONG}' is 'tulip' there and 'rose' here"):
        train(tiny_config(photos, tmp_path / "other", data={"split": str(fixed_run / "split.json")}))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.holds("Label fixes act before the split is drawn")
def test_two_processes_do_the_same(fixed_run: Path, photos: Path, fixes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})
    words = ["train", recipe, "--data.path", photos, "--data.label-fixes", fixes, "--run-dir"]
    said = finish(tmp_path, [*words, tmp_path / "two"], processes=2)
    assert "label fixes of" in said
    assert load_split(tmp_path / "two" / "split.json") == load_split(fixed_run / "split.json")
    assert metrics(tmp_path / "two", "train/loss") == pytest.approx(metrics(fixed_run, "train/loss"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.holds("A run goes on with the label fixes that it began with")
def test_one_that_is_killed_goes_on_to_the_same_end(photos: Path, fixes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 3})
    words = ["train", recipe, "--data.path", photos, "--data.label-fixes", fixes, "--run-dir"]
    finish(tmp_path, [*words, tmp_path / "whole"])
    with Ranks(tmp_path, [*words, tmp_path / "killed"]) as ranks:
        while not list((tmp_path / "killed" / "checkpoints").glob("step-*")):
            assert ranks.code(0) is None, ranks.output()
            time.sleep(0.01)
        ranks.signal(0, signal.SIGKILL)
    # By the run's own configuration, which names the run's own copy: the file may have been edited or be gone.
    own = tmp_path / "killed" / "config.yaml"
    assert re.search(rf"label_fixes: .*{re.escape(str(tmp_path))}/killed/label_fixes.csv", own.read_text())
    finish(tmp_path, ["train", own, "--run-dir", tmp_path / "killed", "--resume", "auto"])
    for name in ("model/model.safetensors", "predictions.parquet", "split.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# Which labels look wrong

NETWORK = "garden/colours"
"""So few features that a head cannot learn a wrong label by heart; a network that is trained has that from its training."""


def colours(num_classes: int) -> nn.Module:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(12, num_classes))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip_labels(photos: Path, names: Sequence[str]) -> dict[str, str]:
    """Move pictures into the folder of the next class.

    Returns:
        Where each is now → its right class.
    """
    classes = sorted(path.name for path in photos.iterdir())
    flipped = {}
    for name in names:
        right, file = name.split("/")
        wrong = classes[(classes.index(right) + 1) % len(classes)]
        (photos / right / file).rename(photos / wrong / f"flipped-{right}-{file}")
        flipped[f"{wrong}/flipped-{right}-{file}"] = right
    return flipped


def drawn_with_wrong_labels(folder: Path, *, each: int = 20, wrong: int = 6) -> tuple[Path, dict[str, str]]:
    """Drawn pictures, and where those lie whose labels are wrong → their right class."""
    photos = make_folder(folder / "photos", per_class=each)
    files = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    order = np.random.default_rng(3).permutation(len(files))[:wrong]
    return photos, flip_labels(photos, [files[place] for place in order])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


PROBE = [
    "--backbones",
    NETWORK,
    "--weights",
    "none",
    "--size",
    "48",
    "--mirror",
    "no",
    "--folds",
    "3",
    "--num-workers",
    "0",
]


@pytest.mark.holds("Wrong labels stand first in the list, and training obeys what becomes of it")
def test_flipped_labels_of_drawn_flowers_stand_first_and_are_mended(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register("model", NETWORK)(colours)
    photos, flipped = drawn_with_wrong_labels(tmp_path)
    dispatch(["probe", str(photos), *PROBE, "--out", str(tmp_path / "probe")])
    capsys.readouterr()
    fixes, page = tmp_path / "fixes.csv", tmp_path / "labels.html"
    dispatch(["labels", str(tmp_path / "probe"), "--csv", str(fixes), "--html", str(page)])
    said = capsys.readouterr().out
    rows = rows_of(fixes)
    assert f"{len(rows)} of 60 labels look wrong" in said
    first = [row["file"] for row in rows[: 2 * len(flipped)]]
    found = set(first) & set(flipped)
    assert len(found) >= 0.75 * len(flipped), f"{len(found)} of {len(flipped)}; {first}"
    assert [float(row["p_given"]) for row in rows] == sorted(float(row["p_given"]) for row in rows)
    assert {row["label"] for row in rows} == {""}
    shown = page.read_text()
    assert rows[0]["file"].split("/")[1] in shown
    assert "Compared by the features of this probe" in shown
    assert shown.count("times as far") > 0

    # Without them: the file as it was written.
    train(tiny_config(photos, tmp_path / "without", data={"label_fixes": str(fixes)}, train={"epochs": 1}))
    split = load_split(tmp_path / "without" / "split.json")
    assert {name for name, cause in split.left_out.items() if cause == LEFT_OUT} == {row["file"] for row in rows}

    # With corrections: a person has looked, corrects what is wrong and keeps the rest.
    for row in rows:
        row["label"] = flipped.get(row["file"], row["given"])
    with fixes.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    train(tiny_config(photos, tmp_path / "mended", data={"label_fixes": str(fixes)}, train={"epochs": 1}))
    split = load_split(tmp_path / "mended" / "split.json")
    corrected = {row["file"]: row["label"] for row in rows if row["file"] in flipped}
    assert split.relabelled == corrected
    assert not split.left_out
    saved = load_predictions(tmp_path / "mended" / "predictions.parquet")
    for part in saved.parts.values():
        for name, label in zip(part.files, part.labels, strict=True):
            assert saved.class_names[label] == corrected.get(name, name.split("/")[0])

    # A probe obeys the file, too, and a second list holds what the first one said.
    dispatch(["probe", str(photos), *PROBE, "--label-fixes", str(fixes), "--out", str(tmp_path / "again")])
    dispatch(["labels", str(tmp_path / "again"), "--csv", str(tmp_path / "second.csv")])
    second = {row["file"]: row for row in rows_of(tmp_path / "second.csv")}
    assert corrected.keys() <= second.keys()
    for name, right in corrected.items():
        assert right in (second[name]["label"], second[name]["given"])
    rows = load_predictions(tmp_path / "again" / "predictions.parquet").parts["out_of_fold"]
    given = dict(zip(rows.files, rows.labels.tolist(), strict=True))
    assert all(saved.class_names[given[name]] == right for name, right in corrected.items())


@pytest.mark.holds("Wrong labels stand first in the list, and training obeys what becomes of it")
def test_folds_judge_all_pictures_and_obey_the_file(tmp_path: Path, fixes: Path, photos: Path) -> None:
    words = ["train", str(write_recipe(tmp_path / "recipe.yaml", train={"epochs": 1})), "--data.path", str(photos)]
    run_dir = tmp_path / "folds"
    dispatch([*words, "--folds", "3", "--data.label-fixes", str(fixes), "--run-dir", str(run_dir)])
    saved = load_predictions(run_dir / "predictions.parquet")
    rows = saved.parts["out_of_fold"]
    assert OUT not in rows.files
    labels = {name: saved.class_names[label] for name, label in zip(rows.files, rows.labels, strict=True)}
    assert labels[WRONG] == "tulip"
    for fold in (1, 2, 3):
        split = load_split(run_dir / f"fold-{fold}" / "split.json")
        assert (split.left_out, split.relabelled) == ({OUT: LEFT_OUT}, {WRONG: "tulip"})
    # What a good model would have said: it is sure of all, and of one picture otherwise than its label.
    sure = np.where(np.eye(3, dtype=bool)[rows.labels], 0.98, 0.01).astype(np.float32)
    doubted = rows.files.index("daisy/02.png")
    sure[doubted] = [0.01, 0.98, 0.01]
    losses = -np.log(sure[np.arange(len(rows.labels)), rows.labels])
    said = {"out_of_fold": Predictions(labels=rows.labels, probabilities=sure, losses=losses)}
    save_predictions(run_dir / "predictions.parquet", said, {"out_of_fold": rows.files}, saved.class_names)
    dispatch(["labels", str(run_dir), "--csv", str(tmp_path / "second.csv")])
    second = [(row["file"], row["given"], row["suggested"], row["label"]) for row in rows_of(tmp_path / "second.csv")]
    assert second == [("daisy/02.png", "daisy", "rose", ""), (OUT, "", "", ""), (WRONG, "", "", "tulip")]
    edited = write_fixes(tmp_path / "edited.csv", {OUT: ""})
    with pytest.raises(UserError, match=r"data\.label_fixes: 'fixes [0-9a-f]+' then, 'fixes [0-9a-f]+' now"):
        dispatch(
            [*words, "--folds", "3", "--data.label-fixes", str(edited), "--run-dir", str(run_dir), "--resume", "auto"]
        )


def test_a_run_judges_what_it_held_out_and_says_so(
    fixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(
        [
            "labels",
            str(fixed_run),
            "--json",
            "--csv",
            str(tmp_path / "fixes.csv"),
            "--html",
            str(tmp_path / "page.html"),
        ]
    )
    said = json.loads(capsys.readouterr().out)
    split = load_split(fixed_run / "split.json")
    assert said["num_judged"] == len(split.files_of("val")) + len(split.files_of("test"))
    assert said["num_learned"] == len(split.files_of("train"))
    assert not {each["file"] for each in said["candidates"]} & set(split.files_of("train"))
    # What it was trained with goes into the new file, which replaces the old one.
    assert {row["file"]: row["label"] for row in rows_of(tmp_path / "fixes.csv")}.items() >= {
        OUT: "",
        WRONG: "tulip",
    }.items()
    dispatch(["labels", str(fixed_run)])
    words = capsys.readouterr().out
    assert "--folds" in words
    assert "probe" in words
    assert "Compared by perceptual hashes" in (tmp_path / "page.html").read_text()


def test_what_cannot_judge_labels_says_what_can(photos: Path, fixed_run: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "is not there"), (photos, "holds none of them")):
        with pytest.raises(UserError, match=f"{words}.*accel-flowers probe"):
            judge_labels(folder)
    unfinished = shutil.copytree(fixed_run, tmp_path / "unfinished")
    (unfinished / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"has not ended.*--resume auto"):
        judge_labels(unfinished)
    seeds = tmp_path / "seeds"
    members = tuple(Member(f"seed-{seed}", {"train.seed": seed}, {}) for seed in (1, 2))
    save_study(seeds, Study("seeds", {}, members))
    with pytest.raises(UserError, match=r"accel-flowers labels .*seed-1.*--folds 5"):
        judge_labels(seeds)
    for damaged in ("{}", "[]", '{"source": 3, "temperature": 1, "left_out": {}}', "{"):
        probed = tmp_path / "probe"
        probed.mkdir(exist_ok=True)
        (probed / "probe.json").write_text(damaged)
        with pytest.raises(UserError, match=r"probe\.json"):
            judge_labels(probed)


def test_a_store_named_by_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    said = {
        "source": "x",
        "temperature": None,
        "left_out": {},
        "features": [{"store": "../../somewhere", "numbers": 3}],
    }
    (tmp_path / "probe.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="what it says of features"):
        judge_labels(tmp_path)


# Near-duplicates and pictures like no other


@pytest.mark.parametrize("seed", range(3))
def test_near_pictures_are_linked_and_far_ones_named(seed: int) -> None:
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(4, 32))
    features = (middles[np.arange(80) % 4] + 0.5 * generator.normal(size=(80, 32))).astype(np.float32)
    features[71] = features[3] + 0.02 * generator.normal(size=32)
    features[72] = features[71] + 0.02 * generator.normal(size=32)  # a chain
    features[20] = 5 * generator.normal(size=32)
    contents = [f"bytes {place}" for place in range(80)]
    contents[50], features[50] = contents[49], features[49]
    found = compare([features, features[:, :8] + 1], contents)
    assert set(found.groups) == {(3, 71, 72), (49, 50)}
    assert found.groups[0] == (49, 50), "the same bytes are nearest"
    assert found.far[0][0] == 20
    assert [distance for _, distance in found.far] == sorted((distance for _, distance in found.far), reverse=True)
    order = generator.permutation(80)
    again = compare([features[order], features[order, :8] + 1], [contents[place] for place in order])
    assert {tuple(sorted(order[list(group)].tolist())) for group in again.groups} == set(found.groups)


def test_of_few_pictures_only_the_same_bytes_are_told() -> None:
    found = compare([np.eye(5, dtype=np.float32)], ["a", "b", "a", "c", "d"])
    assert found.groups == ((0, 2),)
    assert not found.far


def test_of_many_pictures_the_doubted_ones_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "MOST", 10)
    chosen = nearness.chosen_of(100, [97, 3])
    assert len(chosen) == 10
    assert {3, 97} <= set(chosen.tolist())
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert nearness.chosen_of(10, [1]).tolist() == list(range(10))


def test_groups_under_two_classes_come_first() -> None:
    same, torn = Group(("a/1", "a/2"), ("a", "a")), Group(("a/3", "b/1"), ("a", "b"))
    assert in_order([same, torn]) == (torn, same)
