"""A folder of bad images meets the decoder, a training and a prediction: each file gets the verdict it must get."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.reading import read_file
from accel_flowers.data.decide_split import decide_split
from accel_flowers.data.decoding.jpeg import decode_pixels
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError, decode_image, verify_image
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split, load_split
from accel_flowers.inference.outputs import RowOutput
from accel_flowers.inference.predict import find_images, predict_files
from accel_flowers.inspection.command import inspect_source
from accel_flowers.inspection.text import in_words
from tests import images
from tests.bad_images import ACCEPTED, REFUSED, Verdict, write_corpus
from tests.runs import PROJECT, write_recipe

PROGRAM = """
import json, sys
from pathlib import Path
from accel_flowers.cli.main import main
codes = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        codes.append(end.code)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(json.dumps([codes, int(peak)]), file=sys.stderr)
"""
"""Several commands in one process, then their exit codes and the most memory that the process had."""
MAX_KIB = 1_500_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad pictures")


@pytest.fixture(scope="module")
def corpus(root: Path) -> dict[str, Verdict]:
    return write_corpus(root)


def of(corpus: dict[str, Verdict], verdict: str, under: str = "") -> set[str]:
    """Files with this verdict."""
    return {name for name, its in corpus.items() if its.verdict == verdict and name.startswith(under)}


@pytest.mark.slow
def test_script_writes_the_same_corpus_each_time(root: Path, corpus: dict[str, Verdict], tmp_path: Path) -> None:
    script = [sys.executable, str(PROJECT / "scripts/bad_pictures.py"), str(tmp_path / "new")]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=60)
    assert f"{len(corpus)} files" in done.stdout
    told = json.loads((tmp_path / "new/verdicts.json").read_text())
    assert {name: Verdict(**verdict) for name, verdict in told.items()} == corpus
    for name in corpus:
        one, other = root / name, tmp_path / "new" / name
        if one.is_symlink():
            assert one.readlink() == other.readlink()
        elif one.is_file() and one.stat().st_size < 10**6:
            assert one.read_bytes() == other.read_bytes(), name
    again = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 2, "it writes into no folder that holds anything"


def test_there_are_enough_of_each(corpus: dict[str, Verdict]) -> None:
    assert len(of(corpus, REFUSED)) >= 60
    assert len(of(corpus, ACCEPTED)) >= 60
    assert all(verdict.because and bool(verdict.words) == (verdict.verdict == REFUSED) for verdict in corpus.values())


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
def test_decoder(root: Path, corpus: dict[str, Verdict], capfd: pytest.CaptureFixture[str]) -> None:
    """Both ways of looking at an image agree with the verdict, and none takes long."""
    wrong = []
    for name, verdict in corpus.items():
        begun = time.monotonic()
        cause = cause_of(root / name)
        if verdict.verdict == ACCEPTED and cause is not None:
            wrong.append((name, cause))
        if verdict.verdict == REFUSED and (cause is None or not re.search(verdict.words, cause) or "\n" in cause):
            wrong.append((name, cause))
        if time.monotonic() - begun > 5:
            wrong.append((name, "takes too long"))
    assert wrong == []
    capfd.readouterr()  # the C library for TIFF writes to the terminal


def cause_of(path: Path) -> str | None:
    """Why a file is refused."""
    try:
        data = read_file(path, max_bytes=MAX_BYTES)
    except OSError as error:
        return error.strerror
    causes = []
    for look in (decode_image, verify_image):
        try:
            look(data, path.name)
        except BadImageError as error:
            causes.append(error.cause)
        else:
            causes.append(None)
    assert causes[0] == causes[1], path
    return causes[0]


def test_stop_names_all_of_them_in_one_message(root: Path, corpus: dict[str, Verdict]) -> None:
    table = load_images(str(root / "photos"))
    with pytest.raises(UserError) as caught:
        decide_split(table, "60/40", seed=0, on_bad_image="stop")
    first, *lines = str(caught.value).splitlines()
    refused = of(corpus, REFUSED, "photos/")
    assert first == f"{len(refused)} pictures of '{root / 'photos'}' cannot be read:"
    for name in refused:
        shown = printable(name.removeprefix("photos/"))
        assert any(line.startswith(f"  {shown}: ") for line in lines), name
    assert "photos/jpeg/.hidden.jpg" not in str(caught.value)


@dataclass(frozen=True)
class Run:
    """What a training on all that can be read, and a prediction of everything, left and said."""

    directory: Path
    codes: list[int]
    peak_kib: int
    rows: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def done(root: Path, corpus: dict[str, Verdict]) -> Run:
    recipe, directory = write_recipe(root / "recipe.yaml", train={"epochs": 1}), root / "run"
    train = [
        "--data.path",
        root / "photos",
        "--data.split",
        "60/40",
        "--data.on-bad-image",
        "skip",
        "--run-dir",
        directory,
    ]
    predict = [directory / "model", root / "photos", root / "unloadable", "--format", "json"]
    commands = [[str(word) for word in words] for words in (["train", recipe, *train], ["predict", *predict])]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True, timeout=120, cwd=PROJECT, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    said, _, last = ended.stderr.decode().rstrip("\n").rpartition("\n")
    rows = {os.path.relpath(row["file"], root): row for row in json.loads(ended.stdout)}
    codes, peak = json.loads(last)
    return Run(directory, codes, peak, rows, said)


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
def test_training_ends_with_0_and_prediction_with_1_in_little_memory(done: Run) -> None:
    assert done.codes == [0, 1], done.said
    assert done.peak_kib < MAX_KIB


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
def test_training_skips_and_lists_them(
    done: Run, root: Path, corpus: dict[str, Verdict], capfd: pytest.CaptureFixture[str]
) -> None:
    split = load_split(done.directory / "split.json")
    assert {f"photos/{name}" for name in split.parts} == of(corpus, ACCEPTED, "photos/")
    assert {f"photos/{name}" for name in split.left_out} == of(corpus, REFUSED, "photos/")
    for name, cause in split.left_out.items():
        assert re.search(corpus[f"photos/{name}"].words, cause), name
    assert f"{len(split.left_out)} pictures left out, listed in split.json" in done.said
    assert "\x1b" not in done.said
    again: Split = decide_split(load_images(str(root / "photos")), "60/40", seed=0, on_bad_image="skip")
    assert again == split
    capfd.readouterr()


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
def test_prediction_gives_each_its_row(done: Run, corpus: dict[str, Verdict]) -> None:
    refused, accepted = of(corpus, REFUSED), of(corpus, ACCEPTED)
    assert done.rows.keys() == refused | accepted
    assert {name for name, row in done.rows.items() if "error" in row} == refused
    for name in refused:
        assert re.search(corpus[name].words, done.rows[name]["error"]), name
    assert f"{len(refused)} of {len(done.rows)} files could not be read" in done.said


def test_inspection_tells_what_the_training_would_leave_out(
    done: Run, root: Path, corpus: dict[str, Verdict], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    findings = inspect_source(str(root / "photos"), html=page)
    assert findings.harmful
    assert findings.unreadable == load_split(done.directory / "split.json").left_out
    assert page.stat().st_size < 5_000_000
    out = in_words(findings)
    assert all(character.isprintable() or character == "\n" for character in out)


def test_table_of_predictions_has_a_line_for_each(
    done: Run, root: Path, corpus: dict[str, Verdict], capsys: pytest.CaptureFixture[str]
) -> None:
    """No name adds a line, colours the terminal or turns what follows around."""
    files = find_images([root / "photos/names"])
    with RowOutput(None, "table", calibrated=False, width=9) as output:
        for row in predict_files(done.directory / "model", files, top_k=1):
            output.write(row)
    out = capsys.readouterr().out
    named = {name for verdict in (ACCEPTED, REFUSED) for name in of(corpus, verdict, "photos/names/")}
    assert len(out.splitlines()) == len(named)
    assert all(character.isprintable() or character == "\n" for character in out)


@pytest.mark.parametrize("name", ["caf\udce9.jpg"])
def test_names_that_no_training_takes_are_told(
    name: str, root: Path, corpus: dict[str, Verdict], tmp_path: Path
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    (tmp_path / "a" / name).write_bytes((root / "unloadable/names" / name).read_bytes())
    (tmp_path / "b/1.jpg").write_bytes((root / "outside.dat").read_bytes())
    with pytest.raises(UserError, match="Rename it"):
        load_images(str(tmp_path))


@pytest.mark.holds("Every picture is read, refused by name or listed as left out; none hangs or eats the memory")
def test_ballast_is_refused_at_once() -> None:
    """Comments, padding and chunks by the million, in which decoders spend minutes."""
    jpeg, png = images.save(images.scene(), "JPEG"), images.save(images.scene(), "PNG")
    scan = jpeg.index(b"\xff\xda")
    plain, numbers = b"P3\n48 32\n255\n", b"1 " * (48 * 32 * 3)
    files = {
        "comment.ppm": b"P6\n#" + b"x" * 1_000_000 + b"\n1 1\n255\nabc",
        "spaces.ppm": b"P6\n" + b" " * 1_000_000 + b"1 1\n255\nabc",
        "comments.ppm": plain + b"#x\n" * 3_000 + numbers,
        "spaces in numbers.ppm": plain + b" " * 1_000_000 + numbers,
        "fill.jpg": jpeg[:scan] + b"\xff" * 1_000_000 + jpeg[scan:],
        "fill at the start.jpg": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "segments.jpg": jpeg[:2] + b"\xff\xfe\0\2" * 17_000_000 + jpeg[2:],
        "chunks.png": png[:33] + images.png_chunk(b"prVt", b"a\0b") * 4_600_000 + png[33:],
    }
    begun = time.monotonic()
    for name, data in files.items():
        for look in (decode_image, verify_image, decode_pixels):
            with pytest.raises(BadImageError, match=r"no picture|no photo|has not ended"):
                look(data, name)
    assert time.monotonic() - begun < 10
    for text in (b"P2 # a comment\n2 1\n# another\n255\n9\n# and one more\n8\n", b"P1\n2 2\n1010"):
        assert decode_image(text, "x").size[0] == 2
