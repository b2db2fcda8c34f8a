"""Inputs for scripts/fuzz.py: copies of sound files, damaged by chance, and who reads them.

Everything follows from the random generator that is given: the same one makes the same input.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from accel_flowers.cli.commands import dispatch
from accel_flowers.config.loading import load_recipe
from accel_flowers.core.yaml_text import dump_yaml, parse_yaml
from accel_flowers.report.read import read_run
from accel_flowers.training.train import train
from tests import images
from tests.conftest import draw_image, make_folder
from tests.runs import tiny_config, write_recipe


@dataclass(frozen=True)
class Stock:
    """Sound things of each kind."""

    photos: Path
    """DIR/CLASS/*.png, three classes."""
    run_dir: Path
    """A run that has come to its end."""
    recipe: Path
    pictures: Mapping[str, bytes]
    """File name → content: of many formats and modes."""


@dataclass(frozen=True)
class Input:
    """One input and how it is read."""

    kind: str
    words: str
    """What is read by whom, for people."""
    read: Callable[[], int]
    """Reads it in the folder where it lies; returns an exit code."""


def build_stock(root: Path) -> Stock:
    """Draw images and train a tiny network; some seconds."""
    photos = make_folder(root / "photos", per_class=6)
    recipe = write_recipe(root / "recipe.yaml")
    train(tiny_config(photos, root / "run", train={"epochs": 1}, ema={"decay": 0.9}))
    return Stock(photos, root / "run", recipe, _pictures())


def _pictures() -> dict[str, bytes]:
    photo = draw_image("rose", 1, (97, 61))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    made = {
        "a.jpg": images.save(photo, "JPEG", quality=90),
        "progressive.jpg": images.save(noisy, "JPEG", progressive=True),
        "small.jpg": images.save(noisy, "JPEG", subsampling=0, quality=30, exif=images.exif(6)),
        "grey.jpg": images.save(images.grey_scene(), "JPEG"),
        "ycck.jpg": images.ycck_jpeg(),
        "a.png": images.save(photo, "PNG"),
        "alpha.png": images.save(images.cut_out(), "PNG"),
        "palette.png": images.save(photo.quantize(7), "PNG"),
        "a.gif": images.save(photo, "GIF"),
        "a.bmp": images.save(photo, "BMP"),
        "rle.bmp": images.bmp_rle8(),
        "a.webp": images.save(photo, "WEBP"),
        "a.tif": images.save(photo, "TIFF"),
        "packed.tif": images.save(photo, "TIFF", compression="tiff_lzw"),
        "a.ppm": images.save(photo, "PPM"),
        "a.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    }
    return made


def make_input(kind: str, stock: Stock, place: Path, chance: random.Random) -> Input:
    """Make one in an empty folder."""
    return KINDS[kind](stock, place, chance)


# Damage


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few changes anywhere: bits, numbers at their limits, pieces that are missing, doubled, moved, cut off or added."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        size = len(changed)
        at = chance.randrange(size) if size else 0
        if chance.random() < 0.5:
            at = min(at, chance.randrange(1, 64))  # headers decide most
        length = chance.choice((1, 2, 4, 8, 64, max(size // 3, 1)))
        match chance.randrange(9):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1 if size:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                limit = chance.choice(
                    (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\xff\xff", b"\0\0", b"\0\1")
                )
                changed[at : at + len(limit)] = limit
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                changed[at:at] = chance.randbytes(length)
            case 6:
                del changed[at:]
            case 7:
                piece = changed[at : at + length]
                del changed[at : at + length]
                to = chance.randrange(len(changed) + 1)
                changed[to:to] = piece
            case _:
                changed += chance.choice((bytes(length), chance.randbytes(length), bytes(data)))
    return bytes(changed)


_DEEP = 3000
STRANGE: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None, lambda _: True, lambda _: 0, lambda _: -1, lambda _: 1e308, lambda _: 2**63, lambda _: -(2**70),
    lambda _: 10**400, lambda _: float("nan"), lambda _: float("inf"), lambda _: "", lambda _: "\0", lambda _: "../../etc/passwd",
    lambda _: "/dev/zero", lambda _: "x" * 100_000, lambda _: "\ud800", lambda _: "<script>{{7*7}}</script>", lambda _: "é\u202e\x1b[2J",
    lambda _: [], lambda _: {}, lambda _: [[]], lambda _: {"": {}}, lambda _: [None] * 1000, lambda _: 0.5, lambda _: "1e400",
    lambda chance: chance.randrange(-5, 300), lambda chance: chance.choice(("none", "imagenet", "auto", "resnet18", "hub:a/b", "~/x")),
)  # fmt: skip
"""Values that nobody expects in a place, made anew each time."""


def damage_values(value: Any, chance: random.Random) -> Any:
    """Plain values with one to three places changed: replaced, removed, doubled or renamed."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return chance.choice(STRANGE)(chance)
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("", "x", "__class__", "step", "train", str(key) + "s"))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder += holder[: chance.randrange(1, 50)]
            case 3:
                other_holder, other_key = chance.choice(places)
                holder[key] = json.loads(json.dumps(other_holder[other_key]))
            case _:
                holder[key] = chance.choice(STRANGE)(chance)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ():
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def damage_json(text: str, chance: random.Random) -> bytes:
    """The same for a JSON file, or its bytes, or something else in its place."""
    match chance.randrange(8):
        case 0 | 1:
            return damage_bytes(text.encode(), chance)
        case 2:
            deep = chance.choice((100, _DEEP, 100_000))
            return chance.choice((b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep))
        case 3:
            return chance.choice(
                (b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"NaN", b"{} {}")
            )
        case _:
            return json.dumps(damage_values(json.loads(text), chance)).encode("utf-8", "surrogatepass")


YAML_TRICKS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e]\n",
    "a: &a {b: *a}\n", "&x : *x\n", "train: !!python/object/apply:os.system ['true']\n", "train: !!binary aGk=\n",
    "train: 2001-01-01\n", "train: {epochs: 0x10}\n", "train: {epochs: 1_000}\n", "train: {epochs: 190:20:30}\n", "? [a, b]\n: c\n",
    "train: !!set {a, b}\n", "train: <<: {epochs: 1}\n", "train:\n  <<: {epochs: 1}\n", "- train\n- data\n", "%YAML 9.9\n---\ntrain: {}\n",
    "train: {}\n---\ntrain: {}\n", "train: {epochs: 1, epochs: 2}\n", "\ttrain: {}\n", "train: |\n  x\n", "train: {epochs: .inf}\n",
    "train: {epochs: .nan}\n", "[" * _DEEP + "]" * _DEEP, "{a: " * _DEEP + "}" * _DEEP, "- " * _DEEP + "x", "a: " + "9" * 20_000, "\x00", "\ufeff",
    "true: 1\n", "null: 1\n", "1: 2\n", "...\n", "---\n", "!", "&a", "*a", "@x", "`x`", "a: 'x", 'a: "\\x"',
)  # fmt: skip


def damage_yaml(text: str, chance: random.Random) -> bytes:
    """The same for a YAML file."""
    match chance.randrange(6):
        case 0 | 1:
            return damage_bytes(text.encode(), chance)
        case 2:
            trick = chance.choice(YAML_TRICKS)
            return chance.choice((trick, text + trick, trick + text)).encode()
        case _:
            values = damage_values(parse_yaml(text, "a sound file"), chance)
            try:
                written = dump_yaml(values) if isinstance(values, dict) else json.dumps(values)
            except Exception:  # noqa: BLE001 - what YAML of ours cannot hold, JSON writes
                written = json.dumps(values)
            return written.encode("utf-8", "surrogatepass")


# Kinds


def _command(kind: str, *words: str | Path) -> Input:
    spelled = [str(word) for word in words]
    return Input(kind, " ".join(spelled), lambda: dispatch(spelled))


def _function(kind: str, words: str, read: Callable[[], object]) -> Input:
    def call() -> int:
        read()
        return 0

    return Input(kind, words, call)


def picture(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A damaged picture among sound ones."""
    name = chance.choice(sorted(stock.pictures))
    folder = place / "photos"
    shutil.copytree(stock.photos, folder)
    other = chance.choice(sorted(stock.pictures))
    data = stock.pictures[name]
    if chance.random() < 0.1:
        data = data[: len(data) // 2] + stock.pictures[other][len(data) // 2 :]
    suffix = Path(chance.choice((name, name, other))).suffix
    (folder / f"rose/damaged{suffix}").write_bytes(damage_bytes(data, chance))
    model = stock.run_dir / "model"
    return chance.choice(
        (
            _command("picture", "inspect", "photos", "--num-workers", "0"),
            _command("picture", "predict", model, f"photos/rose/damaged{suffix}", "photos/tulip", "--num-workers", "1"),
            _command(
                "picture", "predict", model, f"photos/rose/damaged{suffix}", "--html", "page.html", "--num-workers", "1"
            ),
            _command("picture", "evaluate", model, "--data", "photos"),
        )
    )


HOSTILE_NAMES = (
    "../evil/1.png", "/abs/1.png", "rose/../../1.png", "rose//1.png", "rose\\1.png", "C:\\x\\1.png", "rose/\n.png", "rose/" + "x" * 300,
    "rose/1.png/2.png", ".", "", "rose/", "rose/.png", "__MACOSX/rose/1.png", "a" * 260 + "/1.png", "rose/é.png", "rose/e\u0301.png",
    "train/rose/1.png", "val/rose/1.png", "\u202e/1.png", "rose/1.zip", "/".join("d" * 40) + "/1.png",
)  # fmt: skip


def archive(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A zip of photos, damaged in its bytes or with members that no sound one has."""
    path = place / "photos.zip"
    compression = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as made:
        warnings.simplefilter("ignore")  # of names that come twice: they are meant to
        for file in sorted(stock.photos.rglob("*.png")):
            made.write(file, file.relative_to(stock.photos))
        if chance.random() < 0.5:
            for _ in range(chance.choice((1, 2, 5))):
                entry = zipfile.ZipInfo(chance.choice(HOSTILE_NAMES), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = compression
                entry.external_attr = chance.choice(
                    (0, 0o100644 << 16, 0o120777 << 16, 0o010644 << 16, 0o040755 << 16, 0o100000 << 16)
                )
                content = chance.choice((stock.pictures["a.png"], b"", b"/etc/passwd", bytes(5_000_000)))
                made.writestr(entry, content)
    if chance.random() < 0.7:
        data = path.read_bytes()
        tail = chance.random() < 0.6  # the directory of a zip is at its end
        cut = max(len(data) - 2000, 0) if tail else 0
        path.write_bytes(data[:cut] + damage_bytes(data[cut:], chance))
    return _command("zip", "inspect", "photos.zip", "--num-workers", "0")


def _copy_of_run(stock: Stock, place: Path) -> Path:
    shutil.copytree(stock.run_dir, place / "run", symlinks=True)
    (place / "run/.lock").unlink(missing_ok=True)
    return place / "run"


def _readers(kind: str, stock: Stock, chance: random.Random) -> Input:
    """Who reads a run directory `run`; drawing a whole report takes seconds, so it comes seldom."""
    go_on = [stock.recipe, "--data.path", stock.photos, "--train.epochs", "1", "--ema.decay", "0.9"]
    picture = next(stock.photos.rglob("*.png"))
    commands: list[tuple[float, Input]] = [
        (6, _function(kind, "read_run run", lambda: read_run(Path("run")))),
        (2, _command(kind, "predict", "run/model", picture, "--num-workers", "1")),
        (1, _command(kind, "evaluate", "run/model", "--data", stock.photos)),
        (3, _command(kind, "inspect", stock.photos, "--split", "run/split.json", "--num-workers", "0")),
        (3, _command(kind, "train", *go_on, "--run-dir", "run", "--resume", "auto")),
        (0.5, _command(kind, "compare", "run", stock.run_dir)),
        (0.2, _command(kind, "report", "run")),
    ]
    return chance.choices([each for _, each in commands], [weight for weight, _ in commands])[0]


def json_file(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A JSON file of a run: split, model card, states, scores."""
    run_dir = _copy_of_run(stock, place)
    files = sorted(path for path in run_dir.rglob("*.json*") if path.is_file() and not path.is_symlink())
    path = chance.choice(files)
    text = path.read_text()
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        damaged = [line.encode() for line in lines]
        damaged[number] = damage_json(lines[number], chance)
        path.write_bytes(b"\n".join(damaged) + chance.choice((b"\n", b"")))
    else:
        path.write_bytes(damage_json(text, chance))
    read = _readers("json", stock, chance)
    return Input("json", f"{path.relative_to(place)} damaged: {read.words}", read.read)


def yaml_file(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A recipe, or a run's config.yaml."""
    if chance.random() < 0.3:
        path = _copy_of_run(stock, place) / "config.yaml"
        path.write_bytes(damage_yaml(path.read_text(), chance))
        read = _readers("yaml", stock, chance)
        return Input("yaml", f"config.yaml damaged: {read.words}", read.read)
    (place / "recipe.yaml").write_bytes(damage_yaml(stock.recipe.read_text(), chance))
    if chance.random() < 0.2:
        return _command("yaml", "inspect", stock.photos, "--num-workers", "0", "--show-transforms", "recipe.yaml")
    return _function("yaml", "load_recipe recipe.yaml", lambda: load_recipe("recipe.yaml"))


def parquet_file(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A run's predictions, damaged in their bytes or in their columns."""
    path = _copy_of_run(stock, place) / "predictions.parquet"
    if chance.random() < 0.5:
        path.write_bytes(damage_bytes(path.read_bytes(), chance))
    else:
        _damage_table(path, chance)
    read = _readers("parquet", stock, chance)
    return Input("parquet", f"predictions.parquet damaged: {read.words}", read.read)


def _damage_table(path: Path, chance: random.Random) -> None:
    table = pa.parquet.read_table(path)
    rows = table.num_rows
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(table.num_columns)
        name = table.column_names[place]
        match chance.randrange(6):
            case 0:
                table = table.remove_column(place)
            case 1:
                table = table.append_column(chance.choice((name, "x")), table.column(place))
            case 2:
                table = table.slice(chance.randrange(rows + 1), chance.randrange(rows + 1))
                rows = table.num_rows
            case 3:
                table = pa.concat_tables([table, table])
                rows = table.num_rows
            case 4:
                table = table.replace_schema_metadata(
                    chance.choice((None, {}, {"classes": "[]"}, {"classes": "{"}, {"x": "y"}))
                )
            case _:
                values: list[Any] = chance.choice(
                    (
                        [None] * rows,
                        ["x"] * rows,
                        [float("nan")] * rows,
                        [-1] * rows,
                        [10**12] * rows,
                        [[0.5]] * rows,
                        [[]] * rows,
                    )
                )
                table = table.set_column(place, name, pa.array(values))
        if not table.num_columns:
            break
    pa.parquet.write_table(table, path)


def run_directory(stock: Stock, place: Path, chance: random.Random) -> Input:
    """A run directory in which things are missing or something else."""
    run_dir = _copy_of_run(stock, place)
    decoy = place / "decoy"  # what is written through a link must not reach anything else
    shutil.copytree(stock.photos, decoy)
    told = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        inside = sorted(path for path in run_dir.rglob("*"))
        if not inside:
            break
        path = chance.choice(inside)
        what = chance.choice(
            ("gone", "empty", "folder", "pipe", "loop", "dangling", "zeros", "device", "damaged", "closed", "link")
        )
        told.append(f"{path.relative_to(place)} {what}")
        if what == "damaged":
            if path.is_file() and not path.is_symlink():
                path.write_bytes(damage_bytes(path.read_bytes(), chance))
            continue
        if what == "closed":
            if not path.is_symlink():
                path.chmod(0)
            continue
        _remove(path)
        match what:
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path.name)
            case "dangling":
                path.symlink_to("nowhere")
            case "zeros":
                path.write_bytes(bytes(chance.choice((1, 100, 10_000))))
            case "device":
                path.symlink_to(chance.choice(("/dev/zero", "/dev/full", "/dev/null", "/dev/tty")))
            case "link":
                path.symlink_to(chance.choice(("..", ".", str(decoy))))
    read = _readers("run", stock, chance)
    return Input("run", f"{', '.join(told)}: {read.words}", read.read)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


KINDS: dict[str, Callable[[Stock, Path, random.Random], Input]] = {
    "picture": picture, "zip": archive, "json": json_file, "yaml": yaml_file, "parquet": parquet_file, "run": run_directory,
}  # fmt: skip
