"""Images on the device (here the CPU plays it): the same boxes, flips and order as from files, the same evaluation to the bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.loader import build_loader, each_batch
from accel_flowers.data.placement import choose as pixel_source
from accel_flowers.data.placement.resident import FinishedImages, WholeImages
from accel_flowers.data.placement.together import shares
from accel_flowers.data.sampler import BatchPlan, SampleKey, StreamBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.tracking.run_dir import fixed_fields
from accel_flowers.training.build import build_run
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import metrics, tiny_config, write_recipe
from tests.test_cache import write_mixed_folder

CPU = torch.device("cpu")
AUGMENT = [
    {"RandomResizedCrop": {"size": 24}},
    "RandomHorizontalFlip",
    {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}},
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return load_images(str(write_mixed_folder(tmp_path_factory.mktemp("data") / "photos")))


def images_of(table: ImageTable, specs: list[object]) -> ImageDataset:
    split = Split(table.class_names, dict.fromkeys(table.files, "train"))
    return ImageDataset(table, "train", split, build_transform(specs, field="test")[0], seed=3)  # type: ignore[arg-type]


@pytest.mark.holds("Pixels do not depend on where they come from")
def test_training_images_are_those_of_the_files(table: ImageTable) -> None:
    images = images_of(table, AUGMENT)
    transform = build_transform(AUGMENT, field="test")[0].on_device()  # type: ignore[arg-type]
    assert transform is not None
    sizes = [images.size(sample) for sample in range(len(images))]
    whole = WholeImages(images, sizes, transform, CPU)
    whole.fill(threads=2)
    without_pixels = images.without_pixels((transform, sizes))
    for epoch in range(4):
        keys = [SampleKey(sample, epoch, 7) for sample in (5, 0, 41, 13, 2, 20)]
        expected, batch = images.__getitems__(keys), without_pixels.__getitems__(keys)
        assert isinstance(expected, dict)
        assert isinstance(batch, dict)
        assert "pixels" not in batch
        difference = (whole(batch).int() - expected["pixels"].int()).abs()
        assert difference.float().mean() < 0.3, "the same boxes, flips and colours"
        assert difference.float().quantile(0.999) <= 3
        for name in ("labels", "samples"):
            assert torch.equal(batch[name], expected[name])  # type: ignore[literal-required]
        assert batch["micro_batch"] == 7


def test_what_is_drawn_comes_through_the_loader(table: ImageTable) -> None:
    images = images_of(table, AUGMENT)
    transform = build_transform(AUGMENT, field="test")[0].on_device()  # type: ignore[arg-type]
    assert transform is not None
    without_pixels = images.without_pixels((transform, [images.size(sample) for sample in range(len(images))]))
    stream = StreamBatchSampler(BatchPlan(len(images), epochs=2, global_batch_size=5), seed=3)
    for batch, keys in zip(
        each_batch(build_loader(without_pixels, stream, num_workers=0, pin_memory=False)), stream, strict=True
    ):
        expected = without_pixels.__getitems__(keys)
        assert isinstance(expected, dict)
        assert batch.keys() == expected.keys()
        assert (batch["micro_batch"], batch["output_extent"]) == (expected["micro_batch"], expected["output_extent"])
        for name in ("random_params", "labels", "samples"):
            assert torch.equal(batch[name], expected[name])  # type: ignore[literal-required]
            assert batch[name].dtype == expected[name].dtype  # type: ignore[literal-required]


@pytest.mark.holds("Pixels do not depend on where they come from")
@pytest.mark.parametrize("kind", ["drawn", pytest.param("photos", marks=pytest.mark.slow)])
def test_a_network_meets_the_same_on_all_ways(kind: str, table: ImageTable, tmp_path: Path) -> None:
    """In the runs themselves, in all their epochs: what a training on one way learns, it could learn on the others."""
    photos = os.environ.get("ACCEL_FLOWERS_TEST_PHOTOS")
    if kind == "photos" and not photos:
        pytest.skip("ACCEL_FLOWERS_TEST_PHOTOS names no folder of photos")
    source, size = (Path(photos), 128) if kind == "photos" and photos else (Path(table.source), 24)
    accelerator = Accelerator(cpu=True)
    runs = {}
    for way in ("reference", "files", "device"):
        steps = [{"RandomResizedCrop": {"size": size}}, "RandomHorizontalFlip"]
        more: dict[str, Any] = {"debug": {"subset": 0.1}} if kind == "photos" else {}
        config = tiny_config(source, tmp_path / way, data={"pixels_from": way, "train_transforms": steps}, **more)
        runs[way] = build_run(config, accelerator)
    plain = runs.pop("reference")
    level = 1 / (255 * min(plain.config.data.preprocessing().std))
    for way, run in runs.items():
        for name, value in plain.network.state_dict().items():
            assert torch.equal(value, run.network.state_dict()[name])
        lean = []
        for expected, batch in zip(each_batch(plain.loaders["train"]), each_batch(run.loaders["train"]), strict=True):
            assert torch.equal(batch["labels"], expected["labels"])
            assert torch.equal(batch["samples"], expected["samples"])
            made, wanted = run.input_of("train")(batch), plain.input_of("train")(expected)
            assert made.stride() == wanted.stride()
            assert (made - wanted).abs().max() < 2.01 * level, way
            lean.append(float((made - wanted).mean()) / level)
        assert len(lean) == len(plain.stream)
        assert abs(sum(lean) / len(lean)) < (0.005 if kind == "photos" else 0.1)
        for expected, batch in zip(each_batch(plain.loaders["val"]), each_batch(run.loaders["val"]), strict=True):
            assert torch.equal(run.input_of("val")(batch), plain.input_of("val")(expected))


def test_sizes_are_those_of_the_decoded_images(table: ImageTable) -> None:
    images = images_of(table, AUGMENT)
    for sample in range(len(images)):
        assert images.size(sample) == tuple(images.decode(sample).shape[:2])


@pytest.mark.holds("Pixels do not depend on where they come from")
def test_evaluation_images_are_those_of_the_files_to_the_bit(table: ImageTable) -> None:
    images = images_of(table, [{"Resize": {"size": 28}}, {"CenterCrop": {"size": 24}}])
    finished = FinishedImages(images, CPU, threads=2)
    keys = [SampleKey(sample, 0, 0) for sample in (3, 1, 40, 7)]
    expected, batch = images.__getitems__(keys), images.without_pixels(None).__getitems__(keys)
    assert isinstance(expected, dict)
    assert isinstance(batch, dict)
    assert set(batch) == {"labels", "samples", "micro_batch"}
    assert torch.equal(finished(batch), expected["pixels"])


@pytest.mark.multiprocess
@pytest.mark.holds("Each photo is decoded once on a machine")
@pytest.mark.parametrize("broken", [-1, 20])
def test_processes_of_a_machine_fill_their_devices_together(broken: int, table: ImageTable, tmp_path: Path) -> None:
    """Each decodes its share of the training's images and has all; of an evaluation's it has those that it scores.
    A photo that cannot be read ends both, and keeps neither waiting."""
    words = [tmp_path, table.source, str(broken)]
    with Ranks(tmp_path, *[words] * 2, entry="tests.shared_fill:main") as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    num_images = len(table.files)
    decoded = [sample for each in told for sample in each["decoded"]]
    assert sorted(each["size"] for each in told) == [2, 2]
    if broken == -1:
        assert sorted(decoded) == list(range(num_images)), "each once"
        assert all(each["same"] for each in told)
        assert min(len(each["decoded"]) for each in told) > num_images // 4, "both have work"
    else:
        assert [each["ended"] for each in told] == [f"photo {broken} cannot be read"] * 2
    assert sorted(told[0]["asked"] + told[1]["asked"]) == list(range(num_images))
    for each in told:
        assert each["asked"] == each["own"]
        assert each["bytes"] == len(each["own"]) * 24 * 24 * 3


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=60), st.integers(1, 16))
def test_shares_are_whole_and_about_equal(num_bytes: list[int], size: int) -> None:
    runs = shares(num_bytes, size)
    assert [sample for run in runs for sample in run] == list(range(len(num_bytes)))
    assert len(runs) == size
    most = max(sum(num_bytes[sample] for sample in run) for run in runs)
    assert most <= sum(num_bytes) / size + max(num_bytes)


def test_an_image_that_this_process_does_not_have_is_not_mistaken_for_another(table: ImageTable) -> None:
    images = images_of(table, [{"Resize": {"size": [24, 24]}}])
    finished = FinishedImages(images, CPU, [3, 5], threads=1)
    batch = images.without_pixels(None).__getitems__([SampleKey(sample, 0, 0) for sample in (3, 4)])
    assert isinstance(batch, dict)
    with pytest.raises((IndexError, RuntimeError)):
        finished(batch)


def test_the_earlier_name_of_the_reference_goes_on_with_a_run(table: ImageTable, tmp_path: Path) -> None:
    """Also in a run directory of before, whose config.yaml says it."""
    train(tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": "plain"}, train={"epochs": 1}))
    file = tmp_path / "run/config.yaml"
    text = file.read_text()
    assert "pixels_from: reference" in text
    file.write_text(text.replace("pixels_from: reference", "pixels_from: plain"))
    for name in ("reference", "plain"):
        config = tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": name}, train={"epochs": 1})
        train(config.model_copy(update={"resume": "auto"}))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.slow
def test_a_run_on_the_device(processes: int, table: ImageTable, tmp_path: Path) -> None:
    """Nearly the losses of the run from files; workers and an interruption change nothing, to the last digit."""
    recipe = write_recipe(tmp_path / "recipe.yaml", train={"epochs": 2})
    runs = {}
    for name, way, workers in (("files", "files", 0), ("device", "device", 0), ("workers", "device", 1)):
        words = ["train", recipe, "--data.path", table.source, "--run-dir", tmp_path / name, "--data.pixels-from", way]
        words += ["--data.num-workers", str(workers)]
        said = finish(tmp_path, words, processes=processes)
        assert ("pixels: on cpu" in said) == (way == "device")
        runs[name] = [metrics(tmp_path / name, value) for value in ("train/loss", "val/loss", "test/loss")]
    assert runs["device"] == runs["workers"]
    for one, other in zip(runs["files"], runs["device"], strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_resumed_on_the_device_it_is_the_same_run(table: ImageTable, tmp_path: Path) -> None:
    whole = tiny_config(Path(table.source), tmp_path / "whole", data={"pixels_from": "device"}, train={"epochs": 3})
    train(whole)
    recipe = write_recipe(tmp_path / "recipe.yaml", data={"pixels_from": "device"}, train={"epochs": 3})
    words = ["train", recipe, "--data.path", table.source, "--run-dir", tmp_path / "parts", "--resume", "auto"]
    with Ranks(tmp_path, words) as ranks:
        ranks.wait_for(tmp_path / "parts/checkpoints/last")
        ranks.signal(0, signal.SIGTERM)
        code = ranks.codes(60)[0]
    assert code in (0, 75)
    finish(tmp_path, words)
    assert metrics(tmp_path / "parts", "train/loss") == metrics(tmp_path / "whole", "train/loss")


def test_transforms_that_cannot_be_done_there(table: ImageTable, tmp_path: Path) -> None:
    config = tiny_config(
        make_folder(tmp_path / "photos"),
        tmp_path / "run",
        data={
            "pixels_from": "device",
            "train_transforms": [{"Resize": {"size": [32, 32]}}, {"RandomPosterize": {"bits": 4}}],
        },
    )
    with pytest.raises(UserError, match=r"data\.train_transforms: .* hold what cannot be done on the device"):
        train(config)


def test_half_of_what_training_leaves_is_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert pixel_source._room(torch.device("cuda")) == 300
    assert pixel_source._room(CPU) == 0


def test_a_device_without_room_is_told(table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(pixel_source, "WholeImages", no_room)
    config = tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": "device"})
    with pytest.raises(UserError, match=r"cannot be kept on the device: .* GiB do not fit"):
        train(config)


def test_a_run_on_the_plain_way_scores_as_its_model(table: ImageTable, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(tiny_config(Path(table.source), run_dir, data={"pixels_from": "plain"}, train={"epochs": 1}))
    scores = evaluate(run_dir / "model", table.source, split_file=run_dir / "split.json", part="test").as_json()
    assert metrics(run_dir, "test/loss") == [scores["loss"]]


def test_a_run_from_files_goes_on_from_the_cache(table: ImageTable, tmp_path: Path) -> None:
    files = tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": "files"})
    cache = tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": "cache"})
    device = tiny_config(Path(table.source), tmp_path / "run", data={"pixels_from": "device"})
    assert fixed_fields(files) == fixed_fields(cache)
    assert fixed_fields(files) != fixed_fields(device)
