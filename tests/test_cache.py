"""Decoded images: the same pixels as their files, written once, never out of date, bounded, mended where damaged."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from accel_flowers.config.schema import DataConfig
from accel_flowers.core.errors import UserError
from accel_flowers.data import cache as cache_module
from accel_flowers.data.cache import DecodedImages, NoCache, cache_key, open_cache
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError, decode_image
from accel_flowers.data.placement import choose
from accel_flowers.data.sampler import SampleKey
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import content_digest
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.training.train import train
from tests.conftest import CLASSES, draw_image, make_folder
from tests.ranks import finish
from tests.runs import metrics, tiny_config, write_recipe

GIB = 2**30


def write_mixed_folder(root: Path) -> Path:
    """Three classes of images of several kinds and sizes."""
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("jpg", "RGB", {"quality": 90}), ("png", "RGB", {}), ("jpg", "L", {}), ("jpg", "RGB", {"progressive": True}),
        ("jpg", "RGB", {"exif": turned.tobytes()}), ("webp", "RGB", {"lossless": True}), ("jpg", "RGB", {"subsampling": 0}),
    ]  # fmt: skip
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(2 * len(kinds)):
            ending, mode, options = kinds[number % len(kinds)]
            image = draw_image(name, number, (40 + 3 * number, 60 - 2 * number)).convert(mode)
            image.save(root / name / f"{number:02d}.{ending}", **options)
    return root


class Encoded:
    """Encoded images of a folder, which counts how often they are read."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.names = [file.name for file in self.files]
        self.reads = 0

    @property
    def contents(self) -> list[str]:
        return [content_digest(file.read_bytes()) for file in self.files]

    def read(self, number: int) -> bytes:
        self.reads += 1
        return self.files[number].read_bytes()

    def open(self, root: Path, *, max_bytes: int = GIB) -> tuple[DecodedImages, bool]:
        return open_cache(root, self.names, self.contents, self.read, max_bytes=max_bytes)


@pytest.fixture
def encoded(tmp_path: Path) -> Encoded:
    return Encoded(write_mixed_folder(tmp_path / "photos"))


def test_it_holds_what_the_files_hold(encoded: Encoded, tmp_path: Path) -> None:
    decoded, made = encoded.open(tmp_path / "cache")
    assert made
    for number, file in enumerate(encoded.files):
        pixels = decoded.pixels(number)
        assert pixels is not None
        plain = np.asarray(decode_image(file.read_bytes(), "x")).astype(int)
        assert decoded.size(number) == plain.shape[:2]
        assert np.abs(pixels.numpy() - plain).max() <= 1


def test_it_is_made_once(encoded: Encoded, tmp_path: Path) -> None:
    encoded.open(tmp_path / "cache")
    reads = encoded.reads
    again, made = encoded.open(tmp_path / "cache")
    assert not made
    assert encoded.reads == reads > 0
    assert again.pixels(0) is not None


def test_of_many_that_want_it_one_makes_it(encoded: Encoded, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: encoded.open(tmp_path / "cache"), range(4)))
    assert [made for _, made in opened].count(True) == 1
    assert len({decoded.folder for decoded, _ in opened}) == 1


def test_it_can_be_sent_to_a_worker(encoded: Encoded, tmp_path: Path) -> None:
    decoded, _ = encoded.open(tmp_path / "cache")
    first = decoded.pixels(0)
    sent = pickle.loads(pickle.dumps(decoded)).pixels(0)
    assert first is not None
    assert torch.equal(sent, first)


@pytest.mark.holds("A cache of decoded pictures is never out of date or trusted blindly")
@pytest.mark.parametrize("change", ["content", "order", "law", "decoder"])
def test_what_changes_the_pixels_changes_the_cache(
    change: str, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_key(encoded.contents)
    assert cache_key(encoded.contents) == before
    if change == "content":
        encoded.files[0].write_bytes(encoded.files[0].read_bytes() + b"\0")
    elif change == "order":
        encoded.files.reverse()
    elif change == "law":
        monkeypatch.setattr(cache_module, "LAW", "2")
    else:
        monkeypatch.setattr(cache_module.metadata, "version", lambda name: f"another {name}")
    assert cache_key(encoded.contents) != before


def test_a_image_that_changes_meanwhile_is_told(encoded: Encoded, tmp_path: Path) -> None:
    contents = encoded.contents
    shutil.copy(encoded.files[1], encoded.files[0])
    with pytest.raises(UserError, match=rf"{encoded.names[0]} is not what it was"):
        open_cache(tmp_path / "cache", encoded.names, contents, encoded.read, max_bytes=GIB)
    assert not list((tmp_path / "cache").glob("*.part")), "nothing half made is left"


def test_a_image_that_cannot_be_decoded_is_named(encoded: Encoded, tmp_path: Path) -> None:
    encoded.files[2].write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=encoded.names[2]):
        encoded.open(tmp_path / "cache")


def test_images_that_are_left_out_are_not_decoded(encoded: Encoded, tmp_path: Path) -> None:
    contents = ["" if number == 3 else content for number, content in enumerate(encoded.contents)]
    encoded.files[3].unlink()
    decoded, _ = open_cache(tmp_path / "cache", encoded.names, contents, encoded.read, max_bytes=GIB)
    assert decoded.size(3) == (0, 0)
    assert decoded.pixels(3) is None
    assert decoded.pixels(4) is not None


def flip_bytes_of_first_image(folder: Path) -> None:
    with (folder / "pixels").open("r+b") as file:
        file.write(bytes(255 - byte for byte in file.read(1)))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


@pytest.mark.holds("A cache of decoded pictures is never out of date or trusted blindly")
@pytest.mark.parametrize(
    "damage", [cut("pixels"), cut("index"), lambda folder: (folder / "index").unlink()], ids=["pixels", "index", "gone"]
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(damage: Callable[[Path], None], encoded: Encoded, tmp_path: Path) -> None:
    decoded, _ = encoded.open(tmp_path / "cache")
    damage(decoded.folder)
    again, made = encoded.open(tmp_path / "cache")
    assert made
    assert all(again.pixels(number) is not None for number in range(len(encoded.files)))


@pytest.mark.holds("A cache of decoded pictures is never out of date or trusted blindly")
def test_a_damaged_image_is_noticed_and_the_cache_made_anew(encoded: Encoded, tmp_path: Path) -> None:
    decoded, _ = encoded.open(tmp_path / "cache")
    flip_bytes_of_first_image(decoded.folder)
    damaged, made = encoded.open(tmp_path / "cache")
    assert not made
    assert damaged.pixels(0) is None
    assert damaged.pixels(1) is not None
    again, made = encoded.open(tmp_path / "cache")
    assert made
    assert again.pixels(0) is not None


def test_it_takes_no_more_than_it_may(encoded: Encoded, tmp_path: Path) -> None:
    with pytest.raises(NoCache, match=r"decoded they take some .*, more than the"):
        encoded.open(tmp_path / "cache", max_bytes=1000)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_the_longest_unused_gives_way_and_what_is_used_stays(encoded: Encoded, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    caches = []
    for number in range(3):  # three sets of images, of which the last is used longest ago
        encoded.files[0].write_bytes(encoded.files[0].read_bytes() + b"\0")
        decoded, _ = encoded.open(root)
        os.utime(decoded.folder, (100 - number, 100 - number))
        caches.append(decoded)
    in_use, unused, oldest = caches[0], caches[1].folder, caches[2].folder
    size = in_use.num_bytes + 2000
    del decoded, caches
    encoded.files[0].write_bytes(encoded.files[0].read_bytes() + b"\0")
    encoded.open(root, max_bytes=3 * size)
    assert not oldest.exists()
    assert unused.exists()
    encoded.files[0].write_bytes(encoded.files[0].read_bytes() + b"\0")
    with pytest.raises(NoCache, match="other runs use"):
        encoded.open(root, max_bytes=3 * size // 2)
    assert in_use.folder.exists()
    assert not unused.exists()
    assert in_use.pixels(0) is not None


def test_what_others_keep_there_is_left_alone(encoded: Encoded, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    size = encoded.open(tmp_path / "elsewhere")[0].num_bytes
    others = [root / "thesis", root / ("ab" * 16), root / "photos.part", root / ("cd" * 16 + ".part")]
    for folder in others:
        folder.mkdir(parents=True)
        (folder / "chapter").write_bytes(bytes(5000))
    (root / ("ef" * 16)).symlink_to(others[0])
    encoded.open(root, max_bytes=size + 1000)
    assert all((folder / "chapter").exists() for folder in others)


def test_the_limit_holds_beside_what_is_used(encoded: Encoded, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    in_use, _ = encoded.open(root)
    encoded.files[0].write_bytes(encoded.files[0].read_bytes() + b"\0")
    with pytest.raises(NoCache, match="other runs use"):
        encoded.open(root, max_bytes=in_use.num_bytes * 3 // 2)
    assert in_use.pixels(0) is not None


@pytest.mark.holds("A cache of decoded pictures is never out of date or trusted blindly")
@pytest.mark.parametrize("change", ["negative", "huge", "another length", "a pipe", "a link"])
def test_a_cache_that_was_tampered_with_is_made_anew(change: str, encoded: Encoded, tmp_path: Path) -> None:
    decoded, _ = encoded.open(tmp_path / "cache")
    index, pixels = decoded.folder / "index", decoded.folder / "pixels"
    table = np.frombuffer(index.read_bytes()[8:], dtype=np.int64).reshape(-1, 4).copy()
    if change == "negative":
        table[0, 1] *= -1
    elif change == "huge":
        table[0, 1] = 2**40
    elif change == "another length":
        table = table[:-1]
    elif change == "a pipe":
        pixels.unlink()
        os.mkfifo(pixels)
    else:
        index.unlink()
        index.symlink_to("/dev/zero")
    if index.is_file() and not index.is_symlink():
        index.write_bytes(cache_module.xxhash.xxh3_64_digest(table.tobytes()) + table.tobytes())
    again, made = encoded.open(tmp_path / "cache")
    assert made
    assert again.pixels(0) is not None


def test_a_cache_that_vanishes_is_no_cache(encoded: Encoded, tmp_path: Path) -> None:
    decoded, _ = encoded.open(tmp_path / "cache")
    shutil.rmtree(decoded.folder)
    assert decoded.pixels(0) is None


def test_a_full_disk_is_told(encoded: Encoded, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NoCache, match="cannot hold them"):
        encoded.open(tmp_path / "cache")


def test_batches_are_the_same_from_files_and_cache(tmp_path: Path) -> None:
    """JPEG, PNG, grey, turned and progressive ones; with a damaged entry, too, which comes from its file."""
    folder = write_mixed_folder(tmp_path / "photos")
    table = load_images(str(folder))
    encoded = Encoded(folder)
    decoded, _ = encoded.open(tmp_path / "cache")
    flip_bytes_of_first_image(decoded.folder)
    split = Split(table.class_names, dict.fromkeys(table.files, "train"))
    colour = {"ColorJitter": {"hue": 0.1}}
    erase = {"RandomErasing": {"p": 0.7}}
    for specs in ([{"RandomResizedCrop": {"size": 24}}, colour, erase], [colour, {"Resize": {"size": [24, 24]}}]):
        transform, _ = build_transform(specs, field="test")
        from_files = ImageDataset(table, "train", split, transform, seed=1)
        from_cache = ImageDataset(table, "train", split, transform, seed=1, decoded=decoded)
        for epoch in range(3):
            keys = [SampleKey(sample, epoch, 0) for sample in range(len(table.files))]
            one, other = from_files.__getitems__(keys), from_cache.__getitems__(keys)
            assert isinstance(one, dict)
            assert isinstance(other, dict)
            assert torch.equal(one["pixels"], other["pixels"])


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_from_the_cache_is_the_run_from_files(processes: int, tmp_path: Path) -> None:
    photos = write_mixed_folder(tmp_path / "photos")
    recipe = write_recipe(
        tmp_path / "recipe.yaml", data={"num_workers": 0 if processes == 2 else 1}, train={"epochs": 2}
    )
    runs = {}
    for way in ("files", "cache", "cache again"):
        run_dir = tmp_path / f"run {way}"
        words = ["train", recipe, "--data.path", photos, "--run-dir", run_dir, "--data.pixels-from", way.split()[0]]
        words += ["--data.cache-dir", tmp_path / "cache"]
        said = finish(tmp_path, words, processes=processes)
        assert ("decoded anew each time" in said) == (way == "files")
        assert ("(data.cache_dir is for --data.pixels-from cache)" in said) == (way == "files")
        assert ("made in" in said) == (way == "cache")
        assert ("made before" in said) == (way == "cache again")
        runs[way] = [metrics(run_dir, name) for name in ("train/loss", "val/loss", "test/loss")]
    assert runs["files"] == runs["cache"] == runs["cache again"]


@pytest.mark.holds("What a message advises works")
@pytest.mark.parametrize("lacking", ["the limit", "the disk"])
def test_a_recipe_that_insists_is_told_what_is_lacking(lacking: str, tmp_path: Path) -> None:
    photos, cache = make_folder(tmp_path / "photos"), tmp_path / "cache"
    data = {"pixels_from": "cache", "cache_dir": str(cache), "cache_gib": 1e-6 if lacking == "the limit" else 1}
    if lacking == "the disk":
        cache.write_text("a file")
    config = tiny_config(photos, tmp_path / "run", data=data, train={"epochs": 1})
    with pytest.raises(UserError, match=r"cannot be kept decoded: .* --data.cache-dir, or take --data") as refused:
        train(config)
    assert ("Allow more with --data.cache-gib" in str(refused.value)) == (lacking == "the limit")
    advised = {"cache_gib": 1} if lacking == "the limit" else {"cache_dir": str(tmp_path / "other")}
    for way, change in (("as advised", advised), ("files", {"pixels_from": "files"})):
        changed = {"data": config.data.model_copy(update=change), "run_dir": str(tmp_path / way)}
        train(config.model_copy(update=changed))


@pytest.mark.holds("A cache of decoded pictures lies on a disk of the machine")
def test_a_home_over_a_network_holds_no_cache_unless_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    kinds = {home: "local", temporary: "local"}
    monkeypatch.setattr(choose, "kind_of_disk", lambda path: next(kinds[top] for top in kinds if top in path.parents))
    usual, here = home / "accel_flowers/decoded", temporary / f"accel_flowers-{os.getuid()}"
    assert choose.cache_root(DataConfig()) == usual
    assert not here.exists()
    kinds[home] = "network"
    assert choose.cache_root(DataConfig()) == here / "decoded"
    assert stat.S_IMODE(here.stat().st_mode) == 0o700
    assert choose.cache_root(DataConfig(cache_dir=str(home))) == home, "whoever names a place gets it"
    here.chmod(0o777)  # somebody else could exchange what lies in it
    assert choose.cache_root(DataConfig()) == usual
    here.chmod(0o700)
    kinds[temporary] = "memory"
    assert choose.cache_root(DataConfig()) == usual
