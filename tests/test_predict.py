"""Prediction with a saved model: files in, rows out, in order; one bad file spoils neither the others nor the output."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torchvision.transforms.v2.functional import pil_to_tensor

from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding.pillow import decode_image
from accel_flowers.html import pages
from accel_flowers.inference import image_classifier
from accel_flowers.inference.gallery import Gallery
from accel_flowers.inference.image_classifier import Prediction
from accel_flowers.inference.outputs import SUFFIXES, Format, RowOutput, choose_format
from accel_flowers.inference.predict import find_images, predict_files
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_model, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict
from tests.conftest import CLASSES, draw_image, make_folder
from tests.specs import change_spec

NAMES = ("Gänseblümchen", 'rose, "red"', "薔薇", "tulip")
BATCH = 4
PLAIN = "probabilities are not calibrated (the model has no temperature)\n"
"""What standard error says of the model of these tests."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, but for a head that takes the images of these tests for different classes."""
    directory = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(1)
    network = build_network("shufflenet_v2_x0_5", len(NAMES))[0].eval()
    seen = [draw_image(name, number, (32, 32)) for name in CLASSES for number in range(4)]
    pixels = torch.stack([pil_to_tensor(image) for image in seen])
    with torch.no_grad():
        logits = network((pixels / 255 - 0.5) / 0.25)
        head = network.get_submodule("fc")
        head.weight.div_(logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5",
        class_names=NAMES,
        transforms=({"Resize": {"size": [32, 32]}},),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        eval_batch_size=BATCH,
    )
    save_model(directory, clean_state_dict(network), spec)
    return directory


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eleven images, more than two batches, in an order that is not that of their names."""
    make_folder(tmp_path / "photos", per_class=4)
    found = sorted((tmp_path / "photos").rglob("*.png"), key=lambda file: (file.name, file.parent))
    return found[::-1][:11]


def predict(model: Path, files: list[Path], top_k: int = 4) -> list[Prediction]:
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
    found = find_images([tmp_path / "photos/tulip", tmp_path / "alone.dat", tmp_path / "photos"])
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
    assert find_images([tmp_path / ".cache"]) == [tmp_path / ".cache/1.png"]


def test_a_path_that_does_not_exist_gets_its_row(model: Path, tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    draw_image("rose", 1).save(image)
    rows = list(predict_files(model, find_images([tmp_path / "nowhere.png", image]), top_k=1))
    assert rows[0].error == "No such file or directory"
    assert rows[1].error is None


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=f"No pictures in '{tmp_path}'"):
        find_images([tmp_path])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["1.png", "2.png", "[3].png"]),
        ("[0-9].png", ["1.png", "2.png"]),
        ("[3].png", ["[3].png"]),  # a file of this name is no pattern
        ("?.*", ["1.png", "2.png"]),
        ("**", ["1.png", "2.png", "[3].png", "in/4.JPG", "in/deep/5.webp"]),
        ("**/*.webp", ["in/deep/5.webp"]),
        ("i*", ["in/4.JPG", "in/deep/5.webp"]),
        ("*/*", ["in/4.JPG", "in/deep/5.webp"]),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, found: list[str]) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("1.png", "2.png", "[3].png", ".hidden.png", "n.txt", "in/4.JPG", "in/deep/5.webp", "in/.h.png"):
        (tmp_path / name).touch()
    assert [file.relative_to(tmp_path).as_posix() for file in find_images([tmp_path / pattern])] == found


# What the rows say


def test_rows_say_what_the_model_says(model: Path, files: list[Path]) -> None:
    """Each image alone through the model, against all in batches."""
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


@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_top_k_tells_the_first(model: Path, files: list[Path], top_k: int) -> None:
    whole = predict(model, files[:2])
    assert predict(model, files[:2], top_k) == [Prediction(row.file, row.top[:top_k]) for row in whole]


@pytest.mark.parametrize("top_k", [-3, 0, 5, 10**6])
def test_top_k_beyond_the_classes_is_refused(model: Path, files: list[Path], top_k: int) -> None:
    with pytest.raises(
        UserError, match=f"--top-k {top_k} is not allowed: it is 1 or more, and at most 4, .* 4 classes"
    ):
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


# How the probabilities are made


def with_temperature(model: Path, to: Path, temperature: float) -> Path:
    shutil.copytree(model, to)
    change_spec(to, temperature=temperature)
    return to


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_is_applied(model: Path, files: list[Path], tmp_path: Path, temperature: float) -> None:
    """softmax(log p / T), from the probabilities without it."""
    plain = predict(model, files)
    warmed = predict(with_temperature(model, tmp_path / "model", temperature), files)
    for before, after in zip(plain, warmed, strict=True):
        names, probabilities = zip(*before.top, strict=True)
        expected = (torch.tensor(probabilities).log() / temperature).softmax(dim=0)
        assert dict(after.top) == pytest.approx(dict(zip(names, expected.tolist(), strict=True)), abs=1e-5)


def test_mirror_images_are_averaged(model: Path, files: list[Path], tmp_path: Path) -> None:
    mirrored = []
    for place, file in enumerate(files):
        mirrored.append(tmp_path / f"mirrored-{place:02d}.png")
        Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored[-1])
    averaged = list(predict_files(model, files, top_k=4, tta=True))
    differ = False
    for one, other, both in zip(predict(model, files), predict(model, mirrored), averaged, strict=True):
        mean = {
            name: math.sqrt(p * dict(other.top)[name]) for name, p in one.top
        }  # of scores: softmax divides by the sum
        mean = {name: value / sum(mean.values()) for name, value in mean.items()}
        assert dict(both.top) == pytest.approx(mean, abs=1e-4)
        differ |= dict(one.top) != pytest.approx(dict(other.top), abs=1e-3)
    assert differ, "or the average could not be seen"


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 1), (3, 2), (11, 4), (64, 1)])
def test_batches_and_threads_change_nothing(model: Path, files: list[Path], batch_size: int, num_workers: int) -> None:
    expected = predict(model, files)
    rows = list(predict_files(model, files, top_k=4, batch_size=batch_size, num_workers=num_workers))
    assert [row.file for row in rows] == [row.file for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert dict(row.top) == pytest.approx(dict(other.top), abs=1e-5)


def test_rows_come_before_all_files_are_read(model: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded by a few batches, whatever the number of files."""
    reads = 0
    original = image_classifier._read

    def counting(*words: Any) -> Any:
        nonlocal reads
        reads += 1
        return original(*words)

    monkeypatch.setattr(image_classifier, "_read", counting)
    rows = predict_files(model, [files[0]] * 100_000, top_k=1)
    for _ in range(2 * BATCH):
        next(rows)
    assert 2 * BATCH <= reads <= 2 * BATCH + (image_classifier._AHEAD + 1) * BATCH
    rows.close()  # type: ignore[attr-defined]


# How rows are written

ROWS = [
    Prediction('a, "b".png', ((NAMES[1], 0.75), (NAMES[2], 0.2499996))),
    Prediction("zwei\nZeilen.png", error='broken, "badly"'),
    Prediction("花.png", ((NAMES[0], 1.0), (NAMES[3], 0.0))),
]


def write(rows: list[Prediction], out: Path, *, calibrated: bool = False, width: int = 0) -> Path:
    with RowOutput(out, choose_format(None, out), calibrated=calibrated, width=width) as output:
        for row in rows:
            output.write(row)
    return out


def test_csv_is_read_back(tmp_path: Path) -> None:
    with write(ROWS, tmp_path / "rows.csv", calibrated=True).open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in table] == [
        ('a, "b".png', "1", 'rose, "red"', "0.750000", "true", ""),
        ('a, "b".png', "2", "薔薇", "0.250000", "true", ""),
        ("zwei\nZeilen.png", "", "", "", "", 'broken, "badly"'),
        ("花.png", "1", "Gänseblümchen", "1.000000", "true", ""),
        ("花.png", "2", "tulip", "0.000000", "true", ""),
    ]
    assert list(table[0]) == ["file", "rank", "class", "probability", "calibrated", "error"]


def test_json_is_read_back(tmp_path: Path) -> None:
    text = write(ROWS, tmp_path / "rows.json").read_text()
    assert json.loads(text) == [
        {
            "file": 'a, "b".png',
            "top": [{"class": NAMES[1], "probability": 0.75}, {"class": "薔薇", "probability": 0.25}],
            "calibrated": False,
        },
        {"file": "zwei\nZeilen.png", "error": 'broken, "badly"'},
        {
            "file": "花.png",
            "top": [{"class": NAMES[0], "probability": 1.0}, {"class": "tulip", "probability": 0.0}],
            "calibrated": False,
        },
    ]
    assert "薔薇" in text, "readable for people, too"
    assert json.loads(write([], tmp_path / "none.json").read_text()) == []


@pytest.mark.parametrize("times", [1, 3000])
def test_parquet_is_read_back(tmp_path: Path, times: int) -> None:
    odd = Prediction(os.fsdecode(b"caf\xe9.png"), (("tulip", 0.5),))
    out = write([*ROWS, odd] * times, tmp_path / "rows.parquet", calibrated=True)
    assert parquet.read_table(out).to_pylist() == times * [
        dict(zip(("file", "rank", "class", "probability", "calibrated", "error"), line, strict=True))
        for line in (
            ('a, "b".png', 1, NAMES[1], 0.75, True, None),
            ('a, "b".png', 2, NAMES[2], 0.2499996, True, None),
            ("zwei\nZeilen.png", None, None, None, None, 'broken, "badly"'),
            ("花.png", 1, NAMES[0], 1.0, True, None),
            ("花.png", 2, NAMES[3], 0.0, True, None),
            ("caf\\udce9.png", 1, "tulip", 0.5, True, None),
        )
    ]
    assert parquet.read_table(write([], tmp_path / "none.parquet")).num_rows == 0


def test_a_table_has_a_line_for_each_file(tmp_path: Path) -> None:
    rows = [Prediction("a.png", (("rose", 0.75), ("tulip", 0.05))), Prediction("two\nlines.png", error="broken")]
    assert write(rows, tmp_path / "rows.txt", width=14).read_text().splitlines() == [
        "a.png           rose  75.0%  tulip   5.0%",
        "two\\nlines.png  error: broken",
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_whole_or_not_there(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    out.write_text("before")

    def stopped_by_the_keyboard() -> None:
        with RowOutput(out, choose_format(None, out), calibrated=False, width=9) as output:
            output.write(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_by_the_keyboard()
    assert out.read_text() == "before"
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize(
    ("asked", "name", "chosen"),
    [
        (None, None, "table"), ("csv", None, "csv"), (None, "a.JSON", "json"), ("json", "a.dat", "json"), ("csv", "a.csv", "csv"),
    ],
)  # fmt: skip
def test_format_is_chosen(asked: Format | None, name: str | None, chosen: Format) -> None:
    assert choose_format(asked, Path(name) if name else None) == chosen


# The command


@pytest.mark.parametrize("how", ["table", "csv", "json"])
def test_the_command_ends_with_0_or_with_1_after_bad_files(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    code, out, err = run(capsys, model, *files, "--format", how)
    assert (code, err) == (0, PLAIN)
    rows = rows_of(out, how)
    assert [row["file"] for row in rows] == [str(file) for file in files]

    (tmp_path / "bad.png").write_bytes(b"hello")
    code, out, err = run(capsys, model, files[0], tmp_path / "bad.png", files[1], "--format", how)
    assert (code, err) == (1, PLAIN + "1 of 3 files could not be read\n")
    assert [bool(row.get("error")) for row in rows_of(out, how)] == [False, True, False]


def test_the_command_writes_files_and_says_what_the_probabilities_are(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = with_temperature(model, tmp_path / "warm", 1.5)
    out, page = tmp_path / "rows.parquet", tmp_path / "page.html"
    code, printed, err = run(capsys, warm, *files, "--out", out, "--html", page, "--tta", "--top-k", "2")
    assert (code, printed) == (0, "")
    about = "probabilities are calibrated with the temperature 1.5 that was fitted on validation; mean over each picture and its mirror image"
    assert err == f"{about}\n{len(files)} files in {out}\ngallery in {page}\n"
    lines = parquet.read_table(out).to_pylist()
    assert [line["file"] for line in lines] == [str(file) for file in files for _ in range(2)]
    assert all(line["calibrated"] for line in lines)
    text = page.read_text()
    assert text.count("<img") == len(files)
    assert about[1:] in text


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
        (["MODEL", "PICTURE", "--top-k", "5"], "at most 4"),
        (["MODEL", "PICTURE", "--batch-size", "0"], "--batch-size 0 is not allowed"),
        (["MODEL", "PICTURE", "--num-workers", "0"], "--num-workers 0 is not allowed"),
        (["MODEL", "FOLDER/*.jpg"], "FOLDER/*.jpg' matches nothing"),
        (["MODEL", "FOLDER/*.txt"], "matches 1 file, but none with the name of a picture"),
        (
            ["MODEL", "PICTURE", "--out", "FOLDER/rows.xlsx"],
            "the suffix '.xlsx', which tells no format: take one of .txt, .csv",
        ),
        (["MODEL", "PICTURE", "--out", "FOLDER/rows"], "no suffix, which tells no format"),
        (["MODEL", "PICTURE", "--out", "FOLDER/none/rows.csv"], "there is no folder"),
        (["MODEL", "PICTURE", "--out", "FOLDER/a.csv"], "FOLDER/a.csv' is a folder. Give another file with --out FILE"),
        (["MODEL", "PICTURE", "--html", "FOLDER/none/a.html"], "there is no folder"),
        (["MODEL", "PICTURE", "--out", "FOLDER/a.json", "--format", "csv"], "contradict each other"),
        (["MODEL", "PICTURE", "--format", "parquet"], "add --out FILE.parquet"),
        (["nowhere", "PICTURE"], "'nowhere' is no model folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    image = tmp_path / "1.png"
    draw_image("rose", 1).save(image)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "a.csv").mkdir()
    for name, path in {"MODEL": model, "PICTURE": image, "FOLDER": tmp_path}.items():
        words, told = [word.replace(name, str(path)) for word in words], told.replace(name, str(path))
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("accel-flowers: ")
    assert told in err


@pytest.mark.parametrize("how", ["table", "csv", "json"])
def test_a_name_that_is_not_utf8_can_be_printed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    draw_image("rose", 1).save(tmp_path / "1.png")
    (tmp_path / "1.png").rename(tmp_path / name)
    code, out, _ = run(capsys, model, tmp_path, "--format", how)
    assert code == 0
    assert "caf\\udce9.png" in out
    if how == "json":
        assert json.loads(out)[0]["file"] == str(tmp_path / name), "a program gets the name back"


# The gallery


def test_a_gallery_is_bounded_and_says_what_is_left_out(tmp_path: Path) -> None:
    draw_image("rose", 1).save(tmp_path / "rose.png")
    gallery = Gallery(tmp_path / "page.html", max_errors=5)
    for number in range(1000):
        link = tmp_path / f"{number:04d}.png"
        link.symlink_to("rose.png")
        gallery.add(Prediction(str(link), (("rose", 0.3 if number in (998, 999) else 0.5 + number / 10_000),)))
    for number in range(7):
        gallery.add(Prediction(f"bad-{number}.png", error="broken"))
    gallery.write(model="model", about="probabilities are guesses")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<img") == pages.MAX_THUMBNAILS
    assert text.index("0998.png") < text.index("0999.png") < text.index("0009.png"), "the least sure come first"
    assert "7 files could not be read" in text
    assert "bad-4.png" in text
    assert "bad-5.png" not in text
    assert "and 2 more" in text
    assert "772 more are left out" in text
    assert "0227.png" in text
    assert "0228.png" not in text


# From Python


def test_every_kind_of_image_gets_the_same_answer(model: Path, files: list[Path]) -> None:
    classifier = image_classifier.load_model(model, device="cpu")
    expected = [answer.top for answer in classifier.predict(files, top_k=4)]
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    tensors = [pil_to_tensor(image) for image in images]
    kinds: list[Any] = [
        [str(file) for file in files], [file.read_bytes() for file in files], images, arrays, tensors,
        np.stack(arrays), torch.stack(tensors), (image for image in images),
    ]  # fmt: skip
    for several in kinds:
        found = classifier.predict(several, top_k=4)
        assert [answer.top for answer in found] == expected
        assert not any(answer.error for answer in found)
    for one in (files[0], str(files[0]), files[0].read_bytes(), images[0], arrays[0], tensors[0]):
        (answer,) = classifier.predict(one)  # type: ignore[arg-type]
        assert answer.top[0] == pytest.approx(expected[0][0])
        assert (answer.label, answer.probability) == answer.top[0]
    assert [answer.file for answer in classifier.predict(arrays[:2])] == ["image 0", "image 1"]
    assert [answer.file for answer in classifier.predict(files[:2])] == [str(file) for file in files[:2]]


def test_the_command_and_python_say_the_same(model: Path, files: list[Path]) -> None:
    classifier = image_classifier.load_model(model)
    assert classifier.predict(files, top_k=2, tta=True) == list(predict_files(model, files, top_k=2, tta=True))


def test_images_of_pillow_are_brought_upright(model: Path, tmp_path: Path) -> None:
    """Turned by EXIF, with a palette, transparency or deep grey: as the file would be."""
    classifier = image_classifier.load_model(model)
    plain = draw_image("rose", 1, (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "turned.png", exif=exif)
    plain.quantize(8).save(tmp_path / "palette.png")
    clear = plain.copy()
    clear.putalpha(Image.linear_gradient("L").resize(plain.size))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)).save(tmp_path / "deep.png")
    for file in tmp_path.glob("*.png"):
        image = Image.open(file)
        mode = image.mode
        assert classifier.predict(image, 4)[0].top == classifier.predict(file, 4)[0].top, file
        assert image.mode == mode, "it stays as it is"


def test_what_cannot_be_read_is_said_in_its_answer(model: Path, files: list[Path], tmp_path: Path) -> None:
    classifier = image_classifier.load_model(model)
    (tmp_path / "folder").mkdir()
    cut = Image.open(io.BytesIO(files[0].read_bytes()[:-400]))
    line = np.zeros((1, 500, 3), dtype=np.uint8)
    found = classifier.predict(
        [files[0], b"hello", tmp_path / "gone.png", tmp_path / "folder", cut, Image.fromarray(line)]
    )
    assert [bool(answer.error) for answer in found] == [False, True, True, True, True, True]
    assert found[1].label is found[1].probability is None
    assert found[1].file == "image 1"
    assert found[2].error == "No such file or directory"
    assert found[3].error == "Is a directory"


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((8, 8, 3), dtype=np.float32), r"a NumPy array of float32 \[8, 8, 3\] is no RGB image.*uint8 \[height, width, 3\]"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"a NumPy array of uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8), dtype=np.uint8), r"a NumPy array of uint8 \[8, 8\]"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"a NumPy array of uint8 \[0, 8, 3\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor of torch.uint8 \[8, 8, 3\].*uint8 \[3, height, width\]"),
        (torch.zeros(3, 8, 8), r"a tensor of torch.float32 \[3, 8, 8\]"),
        ([17], "image 0: a int is no image"),
    ],
)  # fmt: skip
def test_arrays_of_another_kind_are_refused(model: Path, image: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        image_classifier.load_model(model).predict(image)


def test_numbers_out_of_range_are_told_in_pythons_words(model: Path, files: list[Path]) -> None:
    classifier = image_classifier.load_model(model)
    with pytest.raises(UserError, match=r"^top_k 5 is not allowed: it is 1 or more, and at most 4"):
        classifier.predict(files, top_k=5)
    with pytest.raises(UserError, match=r"^batch_size 0 is not allowed"):
        classifier.predict(files, batch_size=0)
    assert classifier.predict([]) == []


def test_a_classifier_says_what_it_is(model: Path, tmp_path: Path) -> None:
    classifier = image_classifier.load_model(str(model), device="cpu")
    assert repr(classifier) == "ImageClassifier(shufflenet_v2_x0_5, 4 classes, on cpu)"
    assert classifier.class_names == NAMES
    assert classifier.scores == {}
    assert classifier.device == torch.device("cpu")
    assert not classifier.calibrated
    assert image_classifier.load_model(with_temperature(model, tmp_path / "model", 2.0)).calibrated
