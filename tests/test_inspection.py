"""`accel-flowers inspect`: planted faults are found by their names, clean images give no finding, and CI gets its code."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from accel_flowers.cli.main import main
from accel_flowers.config.schema import DataConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decide_split import decide_split
from accel_flowers.data.decoding.pillow import BadImageError, decode_image, decode_thumbnail, verify_image
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.sampler import BatchPlan, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split, save_split
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.data.validate import validate_image
from accel_flowers.inspection.analysis import NUM_FEATURES, Seen, analyze_image, look_at_rows
from accel_flowers.inspection.command import inspect_source
from accel_flowers.inspection.findings import ImageFacts, find
from accel_flowers.inspection.near_duplicates import agree, group_alike, near_pairs
from accel_flowers.inspection.outliers import MAX_FAR, far_from_all
from accel_flowers.inspection.scan import look_at_table
from accel_flowers.inspection.sheet import augmented, choose_samples
from accel_flowers.inspection.text import headline, in_words
from accel_flowers.samples.draw import draw_sample
from tests.conftest import make_folder
from tests.images import KINDS, exif, save, tiff
from tests.runs import tiny_config

PER_CLASS = 12


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean images of five classes."""
    return draw_sample(tmp_path_factory.mktemp("drawn") / "photos", images_per_class=PER_CLASS)


@pytest.fixture(scope="session")
def spare(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """More images of the same kind, to spoil."""
    folder = draw_sample(tmp_path_factory.mktemp("spare") / "photos", images_per_class=4, seed=1)
    return [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.jpg"))]


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the clean images that a test may spoil."""
    return shutil.copytree(drawn, tmp_path / "photos")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code and output of `accel-flowers inspect WORDS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *map(str, words)])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


def inspect(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and findings."""
    code, out, err = run(capsys, *words, "--json")
    assert "accel-flowers:" not in err, "how far it is, and no more"
    return code, json.loads(out)


LISTS = ("unreadable", "identical", "alike", "far", "small", "long", "turned", "converted", "ignored")


def found_kinds(findings: dict[str, Any]) -> set[str]:
    """Kinds of finding that are there."""
    return {kind for kind in LISTS if findings[kind]} | ({"unbalanced"} if findings["unbalanced"] else set())


# Clean images


def test_a_sheet_among_the_photos_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a photo of no class from then on."""
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"'transforms.png' lies among the pictures of '.'.* --transforms-out \.\./"):
        inspect_source(".", recipe="quickstart")
    assert not (folder / "transforms.png").exists()


def test_clean_images_give_no_finding(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = inspect(capsys, drawn)
    assert code == 0
    assert found_kinds(findings) == set()
    assert findings["pictures"] == 5 * PER_CLASS
    assert findings["classes"]["rose"] == {"pictures": PER_CLASS}
    assert findings["modes"] == {"RGB": 5 * PER_CLASS}
    assert findings["sizes"] == [{"width": 96, "height": 96, "pictures": 5 * PER_CLASS}]
    code, out, _ = run(capsys, drawn)
    assert (code, out.splitlines()[0]) == (0, "60 pictures, 5 classes; no errors")


@pytest.mark.slow
def test_a_thousand_clean_images_give_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = inspect(capsys, draw_sample(tmp_path / "photos"))
    assert (code, found_kinds(findings)) == (0, set())


# Planted faults: each is found by its name, and nothing else is

Spare = list[Image.Image]
Plant = Callable[[Path, Spare], Any]


def plant_unreadable(photos: Path, spare: Spare) -> Any:
    rose = photos / "rose"
    whole = (rose / "rose_0001.jpg").read_bytes()
    (rose / "rose_0001.jpg").write_bytes(whole[: len(whole) // 2])
    (rose / "empty.jpg").touch()
    (rose / "page.jpg").write_text("<html>404</html>")
    (rose / "link.jpg").symlink_to("nowhere.jpg")
    return ["rose/empty.jpg", "rose/link.jpg", "rose/page.jpg", "rose/rose_0001.jpg"]


def plant_identical(photos: Path, spare: Spare) -> Any:
    shutil.copy(photos / "rose/rose_0001.jpg", photos / "rose/again.jpg")
    return [["rose/again.jpg", "rose/rose_0001.jpg"]]


def plant_identical_across_classes(photos: Path, spare: Spare) -> Any:
    shutil.copy(photos / "rose/rose_0001.jpg", photos / "tulip/mine.jpg")
    return [["rose/rose_0001.jpg", "tulip/mine.jpg"]]


def plant_alike(photos: Path, spare: Spare) -> Any:
    def original(number: int) -> Image.Image:
        return Image.open(photos / f"daisy/daisy_{number:04d}.jpg")

    original(1).resize((71, 71)).save(photos / "daisy/resized.png")
    original(2).save(photos / "daisy/compressed.jpg", quality=30)
    ImageEnhance.Brightness(original(3)).enhance(1.15).save(photos / "daisy/brighter.jpg", quality=90)
    ImageEnhance.Color(original(4)).enhance(1.3).save(photos / "daisy/stronger.jpg", quality=90)
    original(5).save(photos / "daisy/whole.png")
    return [
        ["daisy/brighter.jpg", "daisy/daisy_0003.jpg"],
        ["daisy/compressed.jpg", "daisy/daisy_0002.jpg"],
        ["daisy/daisy_0001.jpg", "daisy/resized.png"],
        ["daisy/daisy_0004.jpg", "daisy/stronger.jpg"],
        ["daisy/daisy_0005.jpg", "daisy/whole.png"],
    ]


def plant_alike_across_classes(photos: Path, spare: Spare) -> Any:
    Image.open(photos / "daisy/daisy_0001.jpg").resize((80, 80)).save(photos / "rose/other.jpg")
    return [["daisy/daisy_0001.jpg", "rose/other.jpg"]]


def plant_far(photos: Path, spare: Spare) -> Any:
    Image.new("RGB", (96, 96), "white").save(photos / "rose/blank.png")
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "rose/noise.png")
    page = Image.new("RGB", (400, 400), "white")
    for line in range(20, 390, 16):
        ImageDraw.Draw(page).text((20, line), "terms and conditions of the garden centre apply", fill="black")
    page.save(photos / "tulip/text.png")
    return ["rose/blank.png", "rose/noise.png", "tulip/text.png"]


def plant_unbalanced(photos: Path, spare: Spare) -> Any:
    for number in range(4, PER_CLASS + 1):
        (photos / f"tulip/tulip_{number:04d}.jpg").unlink()
    return True


def plant_small(photos: Path, spare: Spare) -> Any:
    spare[0].resize((63, 63), Image.Resampling.LANCZOS).save(photos / "rose/small.png")
    return ["rose/small.png"]


def plant_long(photos: Path, spare: Spare) -> Any:
    ImageOps.expand(spare[1], (0, 105), (90, 140, 60)).save(photos / "rose/long.png")
    return ["rose/long.png"]


def plant_turned(photos: Path, spare: Spare) -> Any:
    for turn in (3, 6):
        spare[turn].save(photos / f"rose/turned-{turn}.jpg", exif=exif(turn))
    (photos / "tulip/turned.tif").write_bytes(save(spare[8], "TIFF", tiffinfo={0x0112: 8}))
    return ["rose/turned-3.jpg", "rose/turned-6.jpg", "tulip/turned.tif"]


def plant_converted(photos: Path, spare: Spare) -> Any:
    spare[9].convert("CMYK").save(photos / "rose/cmyk.jpg", quality=92)
    spare[10].convert("RGBA").save(photos / "rose/rgba.png")
    spare[11].quantize(64).save(photos / "tulip/palette.gif")
    return ["rose/cmyk.jpg", "rose/rgba.png", "tulip/palette.gif"]


def plant_ignored(photos: Path, spare: Spare) -> Any:
    (photos / "rose/notes.txt").write_text("to do")
    return ["rose/notes.txt"]


FAULTS: dict[str, tuple[str, Plant, int]] = {
    # name: (kind of finding, what plants it, exit code)
    "unreadable": ("unreadable", plant_unreadable, 1),
    "identical": ("identical", plant_identical, 0),
    "identical across classes": ("identical", plant_identical_across_classes, 1),
    "alike": ("alike", plant_alike, 0),
    "alike across classes": ("alike", plant_alike_across_classes, 1),
    "far": ("far", plant_far, 0),
    "unbalanced": ("unbalanced", plant_unbalanced, 0),
    "small": ("small", plant_small, 0),
    "long": ("long", plant_long, 0),
    "turned": ("turned", plant_turned, 0),
    "converted": ("converted", plant_converted, 0),
    "ignored": ("ignored", plant_ignored, 0),
}


def names_in(found: Any) -> Any:
    """Just the names, of whatever kind of finding; far ones are sorted by distance, so by name here."""
    if isinstance(found, bool):
        return found
    names = [one if isinstance(one, str) else one.get("files") or one["file"] for one in found]
    return sorted(names)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(
    fault: str, photos: Path, spare: Spare, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, plant, expected_code = FAULTS[fault]
    planted = plant(photos, spare)
    code, findings = inspect(capsys, photos)
    assert found_kinds(findings) == {kind}
    assert names_in(findings[kind]) == planted
    assert (code, findings["harmful"]) == (expected_code, bool(expected_code))
    code, out, _ = run(capsys, photos)
    assert code == expected_code
    for name in np.ravel(planted) if kind not in ("unbalanced",) else ["tulip has 3"]:
        assert name in out, "the terminal names them, too"


def test_all_faults_at_once(photos: Path, spare: Spare, capsys: pytest.CaptureFixture[str]) -> None:
    """One does not hide another, and exit code and first line tell what harms."""
    faults = [fault for fault in FAULTS if fault not in ("unbalanced",)]
    planted: dict[str, list[Any]] = {}
    for fault in faults:
        kind, plant, _ = FAULTS[fault]
        planted[kind] = planted.get(kind, []) + plant(photos, spare)
    # The file that is cut short is the one that has copies: these are still equal to each other.
    planted["identical"] = [["rose/again.jpg", "tulip/mine.jpg"]]
    shutil.copy(photos / "rose/rose_0002.jpg", photos / "rose/again.jpg")
    shutil.copy(photos / "rose/rose_0002.jpg", photos / "tulip/mine.jpg")
    (photos / "rose/rose_0002.jpg").unlink()
    planted["alike"] = [group for group in planted["alike"] if "daisy/daisy_0001.jpg" not in group]
    planted["alike"].append(["daisy/daisy_0001.jpg", "daisy/resized.png", "rose/other.jpg"])
    code, findings = inspect(capsys, photos)
    assert code == 1
    assert found_kinds(findings) == set(planted)
    for kind, names in planted.items():
        assert names_in(findings[kind]) == sorted(names), kind
    _, out, _ = run(capsys, photos)
    assert out.splitlines()[0].endswith(
        "5 classes; errors: 4 files that cannot be read, 1 group of identical files across classes, "
        "1 group of near duplicates across classes; 4 warnings"
    )


def test_a_deep_grey_image_is_converted_and_stands_apart_from_coloured_ones(
    photos: Path, spare: Spare, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "tulip/deep.tif").write_bytes(tiff(np.asarray(spare[12].convert("L"), np.uint16) * 257, 1))
    code, findings = inspect(capsys, photos)
    assert (code, found_kinds(findings)) == (0, {"converted", "far"})
    assert findings["converted"] == [{"file": "tulip/deep.tif", "mode": "I;16", "kind": "TIFF"}]
    assert names_in(findings["far"]) == ["tulip/deep.tif"]


@pytest.mark.parametrize("copied", ["identical", "alike"])
def test_a_leak_between_given_parts_harms(
    copied: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parted = tmp_path / "parted"
    for part, numbers in (("train", range(1, 9)), ("val", range(9, 11)), ("test", range(11, 13))):
        for name in ("daisy", "rose"):
            (parted / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(photos / f"{name}/{name}_{number:04d}.jpg", parted / part / name)
    code, findings = inspect(capsys, parted)
    assert (code, found_kinds(findings)) == (0, set())
    assert findings["classes"]["rose"] == {"pictures": 12, "train": 8, "val": 2, "test": 2}

    leak = parted / "test/rose/leak.jpg"
    if copied == "identical":
        shutil.copy(photos / "rose/rose_0001.jpg", leak)
    else:
        Image.open(photos / "rose/rose_0001.jpg").resize((80, 80)).save(leak)
    code, findings = inspect(capsys, parted)
    assert (code, found_kinds(findings)) == (1, {copied})
    assert findings[copied] == [
        {
            "files": ["test/rose/leak.jpg", "train/rose/rose_0001.jpg"],
            "classes": ["rose"],
            "parts": ["test", "train"],
            "harmful": True,
        }
    ]
    _, out, _ = run(capsys, parted)
    assert "across parts" in out.splitlines()[0]


def test_a_leak_across_a_runs_split_harms(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_alike(photos, [])
    table = load_images(str(photos))
    parts = {name: "val" if name == "daisy/resized.png" else "train" for name in table.files}
    save_split(Split(table.class_names, parts), tmp_path / "split.json")
    assert inspect(capsys, photos)[0] == 0
    code, findings = inspect(capsys, photos, "--split", tmp_path / "split.json")
    assert code == 1
    assert [group["files"] for group in findings["alike"] if group["harmful"]] == [
        ["daisy/daisy_0001.jpg", "daisy/resized.png"]
    ]


def test_near_duplicates_can_be_left_alone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a folder where images that look alike are different ones."""
    ImageEnhance.Contrast(Image.open(photos / "daisy/daisy_0001.jpg")).enhance(1.4).rotate(2).save(
        photos / "rose/1.png"
    )
    far = len(inspect(capsys, photos, "--near", "16")[1]["alike"])
    assert inspect(capsys, photos, "--near", "0")[0] == 0
    assert far >= 1


# Mistakes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "There is no folder 'nowhere'"),
        (["DIR", "--near", "17"], "--near 17 is not allowed: it is 0 to 16"),
        (["DIR", "--num-workers", "-1"], "--num-workers -1 is not allowed"),
        (["DIR", "--html", "DIR/none/page.html"], "there is no folder"),
        (["DIR", "--html", "DIR"], "is a folder. Give another file with --html FILE"),
        (["DIR", "--split", "DIR/none.json"], "cannot be read"),
        (["DIR", "--show-transforms", "resnet"], "There is no recipe 'resnet'"),
        (["DIR", "--show-transforms", "quickstart", "--transforms-out", "DIR/none/t.png"], "there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_2(drawn: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    code, out, err = run(capsys, *(word.replace("DIR", str(drawn)) for word in words))
    assert (code, out) == (2, "")
    assert told in err


def test_a_split_of_another_folder_is_refused(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_split(Split(("a", "b"), {"a/1.png": "train"}), tmp_path / "split.json")
    code, _, err = run(capsys, drawn, "--split", tmp_path / "split.json")
    assert code == 2
    assert "names none of the pictures" in err


def test_help_says_what_the_exit_code_tells(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    text = " ".join(out.replace("│", " ").split())
    assert "Exit code 1: problems that harm training were found: files that cannot be read, and copies" in text


# One look at an image


@pytest.mark.parametrize("kind", KINDS)
def test_a_glance_agrees_with_decoding(kind: str) -> None:
    data = KINDS[kind][0]()
    glance = decode_thumbnail(data, kind, side=64)
    assert glance.info == verify_image(data, kind)
    assert np.array_equal(np.asarray(glance.small), np.asarray(decode_image(data, kind))), "it is smaller already"
    assert glance.orientation == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_glance_is_upright_and_tells_the_turn(kind: str, turn: int, spare: Spare) -> None:
    image = spare[0].resize((150, 300))
    options = {"tiffinfo": {0x0112: turn}} if kind == "TIFF" else {"exif": exif(turn)}
    data = save(image, kind, **options)
    glance = decode_thumbnail(data, "1", side=64)
    whole = decode_image(data, "1")
    assert (glance.orientation, glance.info.width, glance.info.height) == (turn, *whole.size)
    assert min(glance.small.size) in (64, 75)
    difference = np.asarray(glance.small, float) - np.asarray(
        whole.resize(glance.small.size, Image.Resampling.BOX), float
    )
    assert np.abs(difference).mean() < 6


def test_a_glance_refuses_what_decoding_refuses() -> None:
    data = KINDS["jpeg"][0]()
    for cut in range(0, len(data), 37):
        refused = []
        for function in (lambda d: decode_image(d, "1"), lambda d: decode_thumbnail(d, "1", side=16)):
            try:
                function(data[:cut])
                refused.append("")
            except BadImageError as error:
                refused.append(error.cause)
        assert refused[0] == refused[1]


def test_a_look_has_the_digest_of_the_split(drawn: Path) -> None:
    """The one pass serves the split, too."""
    file = next(drawn.rglob("*.jpg"))
    images = load_images(str(drawn)).images
    row = images.names.index(file.relative_to(drawn).as_posix())
    seen = analyze_image(file.read_bytes(), "1")
    assert look_at_rows(images, [row])[0].digest == seen.digest
    assert validate_image(images, row) == (seen.digest, None)
    assert seen.num_bytes == file.stat().st_size


def test_processes_see_what_one_process_sees(folder: Path) -> None:
    (folder / "rose/bad.png").write_text("no picture")
    table = load_images(str(folder))
    alone, together = (look_at_table(table, num_workers=number) for number in (0, 2))
    assert len(alone) == len(table.files) == 31
    for one, other in zip(alone, together, strict=True):
        assert one.cause == other.cause
        assert (one.digest, one.phash) == (other.digest, other.phash)
        assert np.array_equal(one.features, other.features) if one.features is not None else other.features is None


# Neighbours among hashes


def hashes() -> st.SearchStrategy[list[int]]:
    """Numbers of 64 bits, among them such that differ in few bits from others."""
    base = st.integers(0, 2**64 - 1)
    flips = st.lists(st.integers(0, 63), max_size=12)
    near = st.builds(lambda one, many: [one, one ^ sum(1 << bit for bit in set(many))], base, flips)
    return st.lists(st.one_of(near, base.map(lambda one: [one])), max_size=25).map(
        lambda groups: list(itertools.chain.from_iterable(groups))
    )


@given(hashes(), st.integers(0, 16))
def test_near_pairs_are_those_of_brute_force(numbers: list[int], max_bits: int) -> None:
    unique = sorted(set(numbers))
    found = set()
    for first, second in near_pairs(np.array(unique, np.uint64), max_bits):
        found |= set(zip(first.tolist(), second.tolist(), strict=True))
    assert found == {
        (i, j) for j in range(len(unique)) for i in range(j) if (unique[i] ^ unique[j]).bit_count() <= max_bits
    }


SKETCHES = np.random.Generator(np.random.Philox(4)).integers(0, 256, (4, 256)).astype(np.uint8)
"""Four that have nothing in common; in groups below the third is a paler version of the second."""
SKETCHES[2] = SKETCHES[1] // 2 + 60


@given(hashes(), st.randoms(use_true_random=False), st.integers(0, 12))
def test_groups_are_those_of_brute_force(numbers: list[int], random: Random, max_bits: int) -> None:
    kinds = [random.randrange(4) for _ in numbers]
    same = {(0, 0), (1, 1), (2, 2), (3, 3), (1, 2), (2, 1)}
    groups: list[set[int]] = [{i} for i in range(len(numbers))]
    for j in range(len(numbers)):
        for i in range(j):
            if (numbers[i] ^ numbers[j]).bit_count() <= max_bits and (kinds[i], kinds[j]) in same:
                one, two = (next(group for group in groups if k in group) for k in (i, j))
                if one is not two:
                    groups.remove(two)
                    one |= two
    found = group_alike(np.array(numbers, np.uint64), SKETCHES[np.array(kinds, int)], max_bits=max_bits)
    assert found == sorted(sorted(group) for group in groups if len(group) > 1)


def test_sketches_agree_whatever_their_brightness_and_contrast() -> None:
    one, other, paler = SKETCHES[0], SKETCHES[1], SKETCHES[2]
    flat, noisy = np.full(256, 200, np.uint8), np.full(256, 30, np.uint8) + np.arange(256, dtype=np.uint8) % 3
    pairs = [(one, one), (other, paler), (flat, noisy), (one, other), (one, flat)]
    assert agree(*map(np.stack, zip(*pairs, strict=True))).tolist() == [True, True, True, False, False]


def test_many_equal_images_are_one_group() -> None:
    """And no square of pairs."""
    hashes, sketches = np.full(20_000, 2**63 + 5, np.uint64), np.full((20_000, 256), 9, np.uint8)
    assert group_alike(hashes, sketches) == [list(range(20_000))]


def test_thousands_that_are_all_near_each_other_are_one_group() -> None:
    """Frames of a film, for example: millions of pairs."""
    numbers = np.arange(3000, dtype=np.uint64)
    assert group_alike(numbers, np.tile(SKETCHES[0], (3000, 1))) == [list(range(3000))]


def test_little_memory_is_enough_for_many_candidates() -> None:
    numbers = np.unique(np.random.Generator(np.random.Philox(1)).integers(0, 2**12, 600).astype(np.uint64))
    expected = sorted(map(tuple, np.concatenate([np.stack(p, 1) for p in near_pairs(numbers, 2)]).tolist()))
    again = sorted(map(tuple, np.concatenate([np.stack(p, 1) for p in near_pairs(numbers, 2, at_once=10)]).tolist()))
    assert set(again) == set(expected)


# Images far from every other


def cloud(number: int) -> np.ndarray:
    return (10 + np.random.Generator(np.random.Philox(2)).standard_normal((number, NUM_FEATURES))).astype(np.float16)


@pytest.mark.parametrize("number", [40, 900, 3000])
def test_far_ones_are_found_and_no_others(number: int) -> None:
    features = cloud(number)
    assert far_from_all(features) == []
    features[[7, 30], 3:] += np.float16(40)
    features[30] *= np.float16(1.5)
    assert {place for place, _ in far_from_all(features)} == {7, 30}


def test_number_of_far_ones_is_bounded() -> None:
    features = cloud(2000)
    features[:100] += np.random.Generator(np.random.Philox(3)).uniform(-11, 11, (100, NUM_FEATURES))
    found = far_from_all(features)
    assert len(found) == MAX_FAR
    assert [distance for _, distance in found] == sorted((distance for _, distance in found), reverse=True)


def test_few_or_equal_images_have_no_far_one() -> None:
    assert far_from_all(cloud(29)) == []
    assert far_from_all(np.ones((50, NUM_FEATURES), np.float16)) == []


# Words


def test_nothing_readable_is_told() -> None:
    images = [ImageFacts(f"{name}/1.png", name, None, Seen(cause="broken\x1b[2J")) for name in ("a", "b")]
    findings = find("DIR", ("a", "b"), images)
    assert findings.harmful
    assert headline(findings) == "2 pictures, 2 classes; errors: 2 files that cannot be read"
    assert "\x1b" not in in_words(findings), "a file cannot write over the terminal"


# The sheet of augmentations


def test_the_sheet_shows_what_the_training_gets(folder: Path) -> None:
    """Bit for bit, from the loader of a run over two epochs."""
    config = tiny_config(folder, folder / "run")
    table = load_images(str(folder))
    split = decide_split(table, config.data.split, seed=5, on_bad_image="stop")
    samples = choose_samples(table, split)
    assert [split.files_of("train")[sample].split("/")[0] for sample in samples] == ["daisy", "rose", "tulip"] * 2
    originals, versions = augmented(table, split, config.data, seed=5, samples=samples, num_epochs=2)

    transform, _ = build_transform(config.data.train_transforms, field="train")
    images = ImageDataset(table, "train", split, transform, seed=5)
    stream = StreamBatchSampler(BatchPlan(len(images), 2, global_batch_size=8, micro_batch_size=4), seed=5)
    trained: dict[int, list[torch.Tensor]] = {}
    for batch in each_batch(build_loader(images, stream, num_workers=0, pin_memory=False)):
        for sample, pixels in zip(batch["samples"].tolist(), batch["pixels"], strict=True):
            trained.setdefault(sample, []).append(pixels)
    for sample, original, changed in zip(samples, originals, versions, strict=True):
        assert torch.equal(changed, torch.stack(trained[sample][:2]))
        assert changed.dtype == original.dtype == torch.uint8
        assert not torch.equal(changed[0], changed[1])


def test_the_sheet_is_written_and_a_broken_image_is_no_matter(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "daisy/00.png").write_text("no picture")
    sheet = tmp_path / "sheet.png"
    code, out, err = run(capsys, folder, "--show-transforms", "quickstart", "--transforms-out", sheet)
    assert code == 1
    assert "daisy/00.png" in out
    assert str(sheet) in err
    with Image.open(sheet) as image:
        assert image.width > image.height > 1000
        assert len(image.getcolors(1 << 24) or []) > 1000


def test_looking_at_transforms_leaves_the_generator_alone(folder: Path) -> None:
    table = load_images(str(folder))
    split = decide_split(table, "80/20", seed=0, on_bad_image="stop")
    data = DataConfig.model_validate(tiny_config(folder, folder / "run").data.model_dump())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    augmented(table, split, data, seed=0, samples=[0], num_epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_sources_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_folder(tmp_path / "photos", per_class=3)
    (photos / "rose/00.png").write_bytes((photos / "rose/01.png").read_bytes())
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos")
    code, findings = inspect(capsys, archive)
    assert code == 0
    assert findings["identical"][0]["files"] == ["rose/00.png", "rose/01.png"]
