"""Prediction with a saved model: files in, rows out, in order; one bad file spoils neither the others nor the output."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from accel_flowers.cli import main
from accel_flowers.data.decode import decode_image
from accel_flowers.errors import UserError
from accel_flowers.models import build_network
from accel_flowers.predict import Row, find_pictures, format_rows, predict_files
from accel_flowers.saved_model import ModelCard, load_model, save_model
from tests.conftest import CLASSES, draw_picture, make_folder

NAMES = ("Gänseblümchen", 'rose, "red"', "薔薇", "tulip")
BATCH = 4


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, but for a head that takes the pictures of these tests for different classes."""
    directory = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(1)
    network = build_network("shufflenet_v2_x0_5", len(NAMES))[0].eval()
    seen = [draw_picture(name, number, (32, 32)) for name in CLASSES for number in range(4)]
    pixels = torch.stack([pil_to_tensor(picture) for picture in seen])
    with torch.no_grad():
        logits = network((pixels / 255 - 0.5) / 0.25)
        head = network.get_submodule("fc")
        head.weight.div_(logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
    card = ModelCard(
        architecture="shufflenet_v2_x0_5",
        class_names=NAMES,
        transforms=({"Resize": {"size": [32, 32]}},),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        eval_batch_size=BATCH,
    )
    save_model(directory, network, card)
    return directory


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eleven pictures, more than two batches, in an order that is not that of their names."""
    make_folder(tmp_path / "photos", per_class=4)
    found = sorted((tmp_path / "photos").rglob("*.png"), key=lambda file: (file.name, file.parent))
    return found[::-1][:11]


def predict(model: Path, files: list[Path], top_k: int = 4) -> list[Row]:
    return list(predict_files(model, files, top_k=top_k))


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code and output of `accel-flowers predict WORDS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, words)])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


# Which files


def test_files_and_folders_in_the_order_given(tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", per_class=2)
    for name in ("photos/upper.JPG", "photos/notes.txt", "photos/.hidden.png", "alone.dat"):
        (tmp_path / name).touch()
    for name in ("photos/.thumbnails", "photos/__MACOSX", "photos/folder.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    found = find_pictures([tmp_path / "photos/tulip", tmp_path / "alone.dat", tmp_path / "photos"])
    assert [file.relative_to(tmp_path).as_posix() for file in found] == [
        "photos/tulip/00.png", "photos/tulip/01.png",
        "alone.dat",
        "photos/daisy/00.png", "photos/daisy/01.png",
        "photos/folder.png/1.png",
        "photos/rose/00.png", "photos/rose/01.png",
        "photos/tulip/00.png", "photos/tulip/01.png",
        "photos/upper.JPG",
    ]  # fmt: skip


def test_a_hidden_folder_that_is_given_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/1.png").touch()
    assert find_pictures([tmp_path / ".cache"]) == [tmp_path / ".cache/1.png"]


def test_a_path_that_does_not_exist_gets_its_row(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "1.png"
    draw_picture("rose", 1).save(picture)
    rows = list(predict_files(model, find_pictures([tmp_path / "nowhere.png", picture]), top_k=1))
    assert rows[0].error == "No such file or directory"
    assert rows[1].error is None


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=f"No pictures in '{tmp_path}'"):
        find_pictures([tmp_path])


# What the rows say


def test_rows_say_what_the_model_says(model: Path, files: list[Path]) -> None:
    """Each picture alone through the model, against all in batches."""
    saved = load_model(model)
    rows = predict(model, files)
    assert [row.file for row in rows] == [str(file) for file in files]
    for file, row in zip(files, rows, strict=True):
        pixels = saved.transform(decode_image(file.read_bytes(), str(file)))
        with torch.inference_mode():
            probabilities = saved.network(saved.normalizer(pixels[None])).softmax(dim=1)[0]
        assert dict(row.top) == pytest.approx(dict(zip(NAMES, probabilities.tolist(), strict=True)), abs=5e-3)
    assert len({row.top[0][0] for row in rows}) > 1, "the pictures differ, or the order could not be seen"


def test_probabilities_fall_and_sum_to_one(model: Path, files: list[Path]) -> None:
    for row in predict(model, files):
        probabilities = [probability for _, probability in row.top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert {name for name, _ in row.top} == set(NAMES)


@pytest.mark.parametrize(("top_k", "told"), [(1, 1), (3, 3), (4, 4), (5, 4), (10**6, 4)])
def test_top_k_is_at_most_the_number_of_classes(model: Path, files: list[Path], top_k: int, told: int) -> None:
    whole = predict(model, files[:2])
    assert predict(model, files[:2], top_k) == [Row(row.file, row.top[:told]) for row in whole]


@pytest.mark.parametrize("top_k", [0, -3])
def test_top_k_below_one_is_refused(model: Path, files: list[Path], top_k: int) -> None:
    with pytest.raises(UserError, match=f"--top-k {top_k} is not allowed: it is 1 or more"):
        predict(model, files, top_k)


def test_a_bad_file_gets_a_row_and_its_batch_is_predicted(model: Path, files: list[Path], tmp_path: Path) -> None:
    spoiled = {1: "text.png", 3: "cut.png", 5: "empty.png", 10: "gone.png"}
    contents = {"text.png": b"hello", "cut.png": files[0].read_bytes()[:200], "empty.png": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = predict(model, files)
    mixed = [tmp_path / spoiled[place] if place in spoiled else file for place, file in enumerate(files)]
    rows = predict(model, mixed)
    assert [row.file for row in rows] == [str(file) for file in mixed]
    for place, row in enumerate(rows):
        if place in spoiled:
            assert row.top == ()
            assert row.error
            assert "\n" not in row.error
        else:
            assert row.error is None
            assert dict(row.top) == pytest.approx(dict(expected[place].top), abs=5e-3)
    assert rows[10].error == "No such file or directory"


def test_bad_files_alone(model: Path, tmp_path: Path) -> None:
    bad = [tmp_path / f"{number}.png" for number in range(BATCH + 1)]
    for file in bad:
        file.write_bytes(b"hello")
    assert [bool(row.error) for row in predict(model, bad)] == [True] * len(bad)


# How rows are written

ROWS = [
    Row('a, "b".png', ((NAMES[1], 0.75), (NAMES[2], 0.2499996))),
    Row("zwei\nZeilen.png", error='broken, "badly"'),
    Row("花.png", ((NAMES[0], 1.0), (NAMES[3], 0.0))),
]


def test_csv_is_read_back() -> None:
    table = list(csv.DictReader(io.StringIO(format_rows(ROWS, "csv"), newline="")))
    assert [tuple(row.values()) for row in table] == [
        ('a, "b".png', "1", 'rose, "red"', "0.750000", ""),
        ('a, "b".png', "2", "薔薇", "0.250000", ""),
        ("zwei\nZeilen.png", "", "", "", 'broken, "badly"'),
        ("花.png", "1", "Gänseblümchen", "1.000000", ""),
        ("花.png", "2", "tulip", "0.000000", ""),
    ]
    assert list(table[0]) == ["file", "rank", "class", "probability", "error"]


def test_json_is_read_back() -> None:
    text = format_rows(ROWS, "json")
    assert json.loads(text) == [
        {
            "file": 'a, "b".png',
            "top": [{"class": NAMES[1], "probability": 0.75}, {"class": "薔薇", "probability": 0.25}],
        },
        {"file": "zwei\nZeilen.png", "error": 'broken, "badly"'},
        {"file": "花.png", "top": [{"class": NAMES[0], "probability": 1.0}, {"class": "tulip", "probability": 0.0}]},
    ]
    assert "薔薇" in text, "readable for people, too"


def test_a_table_has_a_line_for_each_file() -> None:
    rows = [Row("a.png", (("rose", 0.75), ("tulip", 0.05))), Row("longer.png", error="broken")]
    assert format_rows(rows, "table").splitlines() == [
        "a.png       rose  75.0%  tulip   5.0%",
        "longer.png  error: broken",
    ]


# The command


@pytest.mark.parametrize("how", ["table", "csv", "json"])
def test_the_command_ends_with_0_or_with_1_after_bad_files(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    code, out, err = run(capsys, model, *files, "--format", how)
    assert (code, err) == (0, "")
    rows = rows_of(out, how)
    assert [row["file"] for row in rows] == [str(file) for file in files]

    (tmp_path / "bad.png").write_bytes(b"hello")
    code, out, err = run(capsys, model, files[0], tmp_path / "bad.png", files[1], "--format", how)
    assert (code, err) == (1, "1 of 3 files could not be read\n")
    assert [bool(row.get("error")) for row in rows_of(out, how)] == [False, True, False]


def rows_of(out: str, how: str) -> list[dict[str, Any]]:
    if how == "json":
        return list(json.loads(out))
    if how == "csv":
        return list(csv.DictReader(io.StringIO(out, newline="")))
    return [{"file": line.split("  ")[0], "error": "  error: " in line} for line in out.splitlines()]


def test_the_command_looks_into_folders_and_tells_the_first_k(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "photos", per_class=1)
    code, out, _ = run(capsys, model, tmp_path / "photos", "--top-k", "2", "--format", "json")
    assert code == 0
    assert [(Path(row["file"]).parent.name, len(row["top"])) for row in json.loads(out)] == [
        ("daisy", 2), ("rose", 2), ("tulip", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["MODEL"], "Which pictures?"),
        (["MODEL", "PICTURE", "--top-k", "0"], "--top-k 0 is not allowed"),
        (["nowhere", "PICTURE"], "'nowhere' is no model folder"),
        (["MODEL/..", "PICTURE"], "Did you mean"),
    ],
    ids=["no pictures", "top-k", "no model", "one level too high"],
)
def test_a_mistake_ends_with_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    picture = tmp_path / "1.png"
    draw_picture("rose", 1).save(picture)
    words = [word.replace("MODEL", str(model)).replace("PICTURE", str(picture)) for word in words]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("accel-flowers: ")
    assert told in err


@pytest.mark.parametrize("how", ["table", "csv", "json"])
def test_a_name_that_is_not_utf8_can_be_printed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    draw_picture("rose", 1).save(tmp_path / "1.png")
    (tmp_path / "1.png").rename(tmp_path / name)
    code, out, _ = run(capsys, model, tmp_path, "--format", how)
    assert code == 0
    assert "caf\\udce9.png" in out
    if how == "json":
        assert json.loads(out)[0]["file"] == str(tmp_path / name), "a program gets the name back"
