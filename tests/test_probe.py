"""`accel-flowers probe`: honest, the same on any number of processes and after a kill, and its model is what it scored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import register
from accel_flowers.data.folds import make_folds, subsample
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import TooFewGroups
from accel_flowers.data.table import content_digest
from accel_flowers.inference.evaluate import evaluate
from accel_flowers.inference.image_classifier import load_model
from accel_flowers.inference.outputs import describe_probabilities
from accel_flowers.metrics.calibration import apply_temperature
from accel_flowers.metrics.intervals import accuracy_interval
from accel_flowers.metrics.predictions import OUT_OF_FOLD, load_predictions
from accel_flowers.models import joined
from accel_flowers.models import saved as saved_models
from accel_flowers.models.backbone import Backbone, Preprocessing
from accel_flowers.models.find import build_network
from accel_flowers.models.weights import WeightsReport, clean_state_dict
from accel_flowers.probe.cross_validate import Way, cross_validate, fit_final, learning_curve, num_fits
from accel_flowers.probe.curve import find_curve
from accel_flowers.probe.features import UnchangedImages
from accel_flowers.probe.head import STRENGTHS, fit_heads, log_softmax
from accel_flowers.probe.probe import probe
from accel_flowers.probe.result import ProbeResult
from accel_flowers.probe.store import RowStore, keys_of, make_room
from accel_flowers.report.cam import explain
from accel_flowers.report.read import read_run
from accel_flowers.samples.draw import draw_sample
from tests.conftest import draw_image, make_folder
from tests.ranks import Ranks

NETWORK = "shufflenet_v2_x0_5"
OTHER = "mobilenet_v3_small"
PHOTOS, WEIGHTS = (os.environ.get(f"ACCEL_FLOWERS_TEST_{name}") for name in ("PHOTOS", "WEIGHTS"))
SLOW_NETWORK = """
import os
import time

import torch
from torch import nn

from accel_flowers.core.registry import register


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU())

    def forward(self, images):
        time.sleep(float(os.environ.get("SECONDS_A_BATCH", "0")))
        return self.inner(images).mean(dim=(2, 3))


@register("model", "garden/slow")
def slow(num_classes):
    return nn.Sequential(Body(), nn.Linear(24, num_classes))
"""


class Table:
    """Features that lie in memory."""

    def __init__(self, *views: npt.NDArray[np.float32]) -> None:
        self._views = views

    @property
    def num_views(self) -> int:
        return len(self._views)

    def rows(self, view: int, pictures: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._views[view][pictures]


def nothing() -> None:
    """What is called after a fit."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flowers of five classes."""
    return draw_sample(tmp_path_factory.mktemp("drawn") / "photos", images_per_class=14, image_size=48)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quick(photos: Path, **words: Any) -> ProbeResult:
    """A probe of small pictures through random weights."""
    given = {"backbones": [NETWORK], "weights": ["none"], "size": 32, "num_folds": 3, "num_workers": 0, **words}
    result = probe(photos, **given)
    assert result is not None
    return result


def numbers_of(result: dict[str, Any]) -> dict[str, Any]:
    """All that a probe says but how long it took."""
    without = {
        name: value for name, value in result.items() if name not in ("seconds", "features_computed", "versions")
    }
    return {**without, "table": [{**row, "seconds_a_picture": None} for row in result["table"]]}


# From end to end


@pytest.fixture(scope="module")
def done(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeResult, Path]:
    """A probe of two networks together, with mirror images, and its folder."""
    folder = tmp_path_factory.mktemp("done")
    before = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        return quick(drawn, backbones=[NETWORK, OTHER], mirror="yes", out=folder / "probe"), folder / "probe"
    finally:
        os.environ["XDG_CACHE_HOME"] = before


def test_the_table_the_scores_and_the_files(done: tuple[ProbeResult, Path]) -> None:
    result, out = done
    assert [row.name for row in result.rows] == [NETWORK, OTHER, f"{NETWORK} + {OTHER}"]
    assert result.best is result.rows[2]
    told = json.loads((out / "probe.json").read_text())
    predictions = load_predictions(out / "predictions.parquet")
    rows = predictions.parts[OUT_OF_FOLD]
    assert len(rows.files) == len(set(rows.files)) == 70
    assert told["accuracy"]["value"] == (rows.predicted == rows.labels).mean()
    assert np.trace(np.array(told["confusion_matrix"])) == (rows.predicted == rows.labels).sum()
    assert rows.losses == pytest.approx(-np.log(rows.probabilities[np.arange(70), rows.labels]), abs=1e-5)
    assert told["learning_curve"]["images"][-1] == pytest.approx(70 * 2 / 3, abs=0.1)
    assert sorted(path.name for path in out.iterdir()) == ["model", "predictions.parquet", "probe.json", "report.html"]
    assert "Cross-validated accuracy" in (out / "report.html").read_text()


@pytest.mark.holds("A probe's model gives the scores of the head that was fitted")
@pytest.mark.parametrize("mirror", ["yes", "no"])
@pytest.mark.parametrize(
    "backbones", [[NETWORK], pytest.param([NETWORK, OTHER], marks=pytest.mark.slow)], ids=["one", "two"]
)
def test_the_model_is_the_head_on_the_features(
    backbones: list[str], mirror: Any, drawn: Path, cache: Path, tmp_path: Path
) -> None:
    """What predict says of each picture is what the last layer says of the features that were kept."""
    result = quick(drawn, backbones=backbones, mirror=mirror, out=tmp_path / "probe")
    saved = saved_models.load_model(tmp_path / "probe/model")
    head = saved.network.get_submodule(saved.backbone.head(saved.network))
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    files = result.predictions.parts[OUT_OF_FOLD].files
    keys = keys_of(_digests(drawn, files))
    by_kind: dict[tuple[str, bool], npt.NDArray[np.float32]] = {}
    for about in (cache / "accel_flowers/features").glob("*/about.json"):
        noted = json.loads(about.read_text())
        store = RowStore(about.parent, weight.shape[1] if len(backbones) == 1 else {NETWORK: 1024, OTHER: 1024}[noted["network"]], np.float32)  # fmt: skip
        by_kind[noted["network"], noted["mirrored"]] = store.read(store.find(keys))
    views = [
        np.concatenate([by_kind[name, mirrored] for name in backbones], axis=1)
        for mirrored in ((False, True) if mirror == "yes" else (False,))
    ]
    logits = np.mean([view @ weight.T + bias for view in views], axis=0)
    expected = np.exp(log_softmax(logits.astype(np.float64)))
    if result.temperature is not None:
        expected = apply_temperature(expected, result.temperature)
    answers = load_model(tmp_path / "probe/model", device="cpu").predict([drawn / file for file in files], top_k=5)
    said = np.array([[dict(each.top)[name] for name in result.class_names] for each in answers])
    assert said == pytest.approx(expected, abs=2e-5)
    assert np.ptp(expected, axis=0).min() > 0.02, "the answers differ from picture to picture"


def _digests(photos: Path, files: Sequence[str]) -> list[str]:
    return [content_digest((photos / file).read_bytes()) for file in files]


def test_other_commands_take_the_model(done: tuple[ProbeResult, Path], drawn: Path) -> None:
    _, out = done
    scores = evaluate(out / "model", drawn, num_workers=0)
    assert scores.num_images == 70
    assert scores.seen is not None
    assert (scores.seen.train, scores.seen.others) == (70, None), "it says that it knows these pictures"
    saved = saved_models.load_model(out)
    assert saved.spec.tta == "mirror"
    told = describe_probabilities(saved.spec.model_copy(update={"temperature": 2.0}), tta=False)
    assert "fitted on pictures out of fold; mean over each picture and its mirror image" in told
    found = explain(saved, [draw_image("rose", 1, (64, 64))], [0])
    assert found.images[0].size == (32, 32)
    assert "Grad-CAM" in found.method


@pytest.mark.slow
@pytest.mark.holds("Features are computed once for a picture, whatever becomes of the probe")
def test_a_second_probe_reads_no_picture_through_a_network(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quick(drawn, mirror="yes")
    photos = shutil.copytree(drawn, tmp_path / "elsewhere")

    def refuse(*_: object) -> None:
        raise AssertionError("a picture went through the network")

    monkeypatch.setattr(joined.FeatureNetwork, "forward", refuse)
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", drawn)
    for source in (photos, Path(archive)):
        second = quick(source, mirror="yes")
        assert (first.computed, second.computed) == (140, 0)
        assert numbers_of(second.as_json()) == {**numbers_of(first.as_json()), "source": str(source)}
    (photos / "daisy/new.png").write_bytes(_png(1))
    with pytest.raises(AssertionError, match="through the network"):
        quick(photos, mirror="yes")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert quick(photos, mirror="yes").computed == 2, "the new picture alone, and its mirror image"


def test_a_picture_that_changes_meanwhile_is_told(folder: Path) -> None:
    """Else another picture's features would be kept under its content, for good."""
    table = load_images(str(folder))
    digests = {row: content_digest(table.read(row)) for row in range(len(table.files))}
    images = UnchangedImages(table.images, digests)
    assert images.read(3) == table.read(3)
    (folder / table.files[3]).write_bytes(_png(7))
    with pytest.raises(UserError, match="is not what it was when the pictures were looked at"):
        images.read(3)


def _png(number: int) -> bytes:
    import io

    stream = io.BytesIO()
    draw_image("rose", number, (64, 48)).save(stream, "PNG")
    return stream.getvalue()


# Processes


def start(tmp_path: Path, name: str, photos: Path, *, processes: int = 1, cache: str = "", seconds: float = 0) -> Ranks:
    """`accel-flowers probe` in processes of its own."""
    part = tmp_path / "garden_slow.py"
    part.write_text(SLOW_NETWORK)
    words = ["probe", photos, "--import", part, "--backbones", "garden/slow", "--weights", "none", "--size", "32",
             "--mirror", "yes", "--folds", "3", "--num-workers", "0", "--out", tmp_path / name]  # fmt: skip
    (tmp_path / f"logs of {name}").mkdir(exist_ok=True)
    variables = {"XDG_CACHE_HOME": str(tmp_path / f"cache {cache or name}"), "SECONDS_A_BATCH": str(seconds)}
    return Ranks(tmp_path / f"logs of {name}", *[words] * processes, variables=variables)


def found_in(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers and weights of a probe's folder."""
    return numbers_of(json.loads((out / "probe.json").read_text())), load_file(out / "model/model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures for several batches, and the folder of a probe that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    photos = draw_sample(folder / "photos", images_per_class=33, image_size=40)
    with start(folder, "probe", photos) as ranks:
        assert ranks.codes(120) == [0], ranks.output()
    return photos, folder / "probe"


@pytest.mark.multiprocess
@pytest.mark.holds("A probe is the same on any number of processes")
def test_two_processes_find_the_same(whole: tuple[Path, Path], tmp_path: Path) -> None:
    photos, one = whole
    with start(tmp_path, "two", photos, processes=2) as ranks:
        assert ranks.codes(120) == [0, 0], ranks.output()
    (numbers, weights), (others, other_weights) = found_in(one), found_in(tmp_path / "two")
    assert numbers == others
    assert all(np.array_equal(weights[name], other_weights[name]) for name in weights)
    assert json.loads((tmp_path / "two/probe.json").read_text())["features_computed"] == 330


@pytest.mark.holds("Features are computed once for a picture, whatever becomes of the probe")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_probe_that_was_stopped_goes_on(whole: tuple[Path, Path], how: signal.Signals, tmp_path: Path) -> None:
    photos, undisturbed = whole
    with start(tmp_path, "probe", photos, seconds=0.4) as ranks:
        features = tmp_path / "cache probe/accel_flowers/features"
        deadline = time.monotonic() + 60
        while not _rows_of(features):
            assert time.monotonic() < deadline, ranks.output()
            time.sleep(0.02)
        ranks.signal(0, how)
        (code,) = ranks.codes(60)
        assert code == (-how if how == signal.SIGKILL else 75), ranks.output()
    kept = _rows_of(features)
    assert 0 < kept < 330
    assert not (tmp_path / "probe").exists()
    with start(tmp_path, "probe", photos) as ranks:
        assert ranks.codes(120) == [0], ranks.output()
    assert json.loads((tmp_path / "probe/probe.json").read_text())["features_computed"] == 330 - kept
    (numbers, weights), (others, other_weights) = found_in(undisturbed), found_in(tmp_path / "probe")
    assert numbers == others
    assert all(np.array_equal(weights[name], other_weights[name]) for name in weights)


def _rows_of(features: Path) -> int:
    """Rows of features that a store's index holds."""
    return sum(file.stat().st_size // 24 for file in features.glob("?" * 32 + "/*.index"))


# Honest


@pytest.mark.holds("A probe's accuracy is honest")
def test_labels_by_lot_are_scored_at_chance() -> None:
    """Though a head that saw a picture knows its label by heart, and one of 32 choices may fit by chance."""
    held, right = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(90) % 3)
        views = [rng.normal(size=(90, 60)).astype(np.float32) for _ in range(4)]
        ways = {Way(mirror=False, size=number): Table(view) for number, view in enumerate(views)}
        folds = make_folds(labels.tolist(), range(90), 5, seed=seed)
        found = cross_validate(ways, labels, folds, 3, seed=0, after_fit=nothing)
        hits = int((found.predicted == labels).sum())
        interval = accuracy_interval(hits, 90)
        held, right = held + (interval.low <= 1 / 3 <= interval.high), right + hits
        # That the test can fail: scored on the pictures that it learned from the head looks perfect.
        (head,) = fit_heads(Table(views[0]), np.arange(90), labels, 3, [10.0])
        assert (head.logits(Table(views[0]), np.arange(90)).argmax(axis=1) == labels).mean() > 0.95
    # Heads that share pictures err together, so nine of ten intervals hold it rather than 95 of 100; the mean leans to no side.
    assert held >= 7
    assert right / 900 == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.holds("A probe's accuracy is honest")
def test_copies_do_not_help_each_other(tmp_path: Path) -> None:
    """Each picture is there twice, saved again smaller, under a class by lot: whoever tears copies apart knows half of them."""
    flowers = sorted(draw_sample(tmp_path / "drawn", images_per_class=10, image_size=64).rglob("*.jpg"))
    labels = np.random.default_rng(0).permutation(np.arange(50) % 2).tolist()
    for number, (file, label) in enumerate(zip(flowers, labels, strict=True)):
        folder = tmp_path / "photos" / ("daisy", "rose")[label]
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(folder / f"{number}.png")
            image.resize((44, 44)).save(folder / f"{number} again.png")
    result = quick(tmp_path / "photos", mirror="no")
    assert "50 groups of pictures that are copies" in " ".join(result.told)
    assert result.findings.num_images == 100
    assert result.findings.accuracy.low < 0.5


def test_what_can_be_learned_is_found_and_chosen() -> None:
    """Of two ways the one that shows the classes is chosen, for all folds; the curve rises, and more pictures are worth more."""
    rng = np.random.default_rng(3)
    labels = np.arange(240) % 3
    groups = np.arange(240)
    shown = (rng.normal(size=(240, 40)) + 1.1 * np.eye(3, 40)[labels]).astype(np.float32)
    ways = {
        Way(False, None): Table(rng.normal(size=(240, 40)).astype(np.float32)),
        Way(True, None): Table(shown, shown),
    }
    folds = make_folds(labels.tolist(), groups.tolist(), 4, seed=0)
    calls: list[int] = []
    found = cross_validate(ways, labels, folds, 3, seed=0, after_fit=lambda: calls.append(1))
    sizes, right = learning_curve(ways, labels, groups, folds, found, 3, seed=0, after_fit=lambda: calls.append(1))
    assert len(calls) == num_fits(2, 4, curve=True)
    assert {choice.way for choice in (*found.choices, found.choice)} == {Way(True, None)}
    assert found.losses[Way(True, None)] < found.losses[Way(False, None)] - 0.1
    assert sizes == pytest.approx([24, 45, 90, 180], abs=2)
    accuracies = right.mean(axis=1)
    assert accuracies[-1] > accuracies[0] + 0.05
    head = fit_final(ways, labels, found.choice, 3)
    assert (head.logits(ways[found.choice.way], groups).argmax(axis=1) == labels).mean() > accuracies[-1]


# Its parts


@pytest.mark.parametrize("num_views", [1, 2])
def test_heads_are_those_of_scikit_learn(num_views: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 150)
    views = [(5 + 3 * rng.normal(size=(150, 30)) + np.eye(4, 30)[labels]).astype(np.float32) for _ in range(num_views)]
    views[0][:, 7] = 2.5  # says nothing
    learned = np.arange(0, 150, 2)
    heads = fit_heads(Table(*views), learned, labels[learned], 4, STRENGTHS)
    both = np.concatenate([view[learned] for view in views])
    scaler = StandardScaler().fit(both)
    mean = np.mean([scaler.transform(view) for view in views], axis=0)
    for strength, head in zip(STRENGTHS, heads, strict=True):
        # A picture counts once, however many views it has.
        plain = LogisticRegression(C=strength / num_views, max_iter=5000, tol=1e-8)
        plain.fit(scaler.transform(both), np.tile(labels[learned], num_views))
        said = np.exp(log_softmax(head.logits(Table(*views), np.arange(150))))
        assert said == pytest.approx(plain.predict_proba(mean), abs=6e-3)


def test_features_that_do_not_fit_into_memory_give_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel_flowers.probe import head as module

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 100)
    features = Table((rng.normal(size=(100, 20)) + np.eye(3, 20)[labels]).astype(np.float32))
    (kept,) = fit_heads(features, np.arange(100), labels, 3, [0.01])
    monkeypatch.setattr(module, "_ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 20 * 7)
    monkeypatch.setattr(module, "_MOST_NUMBERS", 1)
    strong, read = fit_heads(features, np.arange(100), labels, 3, [0.001, 0.01])
    assert read.weight == pytest.approx(kept.weight, abs=1e-4)
    assert np.abs(strong.weight).sum() < np.abs(read.weight).sum()


@given(st.data())
def test_folds_are_disjoint_and_stratified_and_tear_nothing_apart(data: st.DataObject) -> None:
    num_folds = data.draw(st.integers(2, 5))
    sizes = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=num_folds, max_size=12), min_size=1, max_size=4))
    labels = [label for label, groups in enumerate(sizes) for size in groups for _ in range(size)]
    groups = [number for number, size in enumerate(size for its in sizes for size in its) for _ in range(size)]
    folds = make_folds(labels, groups, num_folds, seed=data.draw(st.integers(0, 3)))
    assert set(folds.tolist()) == set(range(num_folds))
    for group in set(groups):
        assert len({fold for fold, its in zip(folds.tolist(), groups, strict=True) if its == group}) == 1
    for label, its_groups in enumerate(sizes):
        counts = np.bincount(folds[np.array(labels) == label], minlength=num_folds)
        assert counts.min() >= 1
        assert np.ptp(counts) <= max(its_groups)
    with pytest.raises(TooFewGroups):
        make_folds(labels, groups, 13, seed=0)


def test_a_small_share_lies_in_a_large_one() -> None:
    labels, groups = np.arange(60) % 3, np.arange(60) // 2
    small, large = (subsample(labels, groups, share, seed=1) for share in (0.25, 0.5))
    assert not (small & ~large).any()
    assert small.sum() < large.sum() < 60
    assert all(len(set(large[groups == group].tolist())) == 1 for group in range(30))
    assert set(labels[small].tolist()) == {0, 1, 2}


def test_a_power_law_is_gone_on_with() -> None:
    """Errors of 40, 28.3, 20 and 14.1 % halve with every fourfold number of pictures: of twice as many there are 10 %."""
    sizes = [100, 200, 400, 800]
    right = np.stack([np.arange(4000) >= 4000 * 0.4 * (100 / size) ** 0.5 for size in sizes])
    curve = find_curve(sizes, right, 800)
    assert curve.twice == 1600
    assert curve.forecast.value == pytest.approx(0.9, abs=0.003)
    assert 0.88 < curve.forecast.low < 0.9 < curve.forecast.high < 0.92
    assert curve.check is not None
    assert curve.check.value == pytest.approx(right[3].mean(), abs=0.003)
    flat = find_curve(sizes, np.tile(right[0], (4, 1)), 800)
    assert flat.forecast.value == pytest.approx(0.6, abs=0.01), "what does not rise is not said to"
    perfect = find_curve(sizes, np.ones((4, 50), dtype=bool), 800)
    assert 0.9 < perfect.forecast.low <= perfect.forecast.value <= 1


def test_a_store_keeps_what_is_whole(tmp_path: Path) -> None:
    keys = keys_of([f"{number:02d}" for number in range(6)])
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    with RowStore(tmp_path / "store", 4, np.float32) as store:
        store.append(keys[:2], rows[:2])
        store.append(keys[2:4], rows[2:4])
    with RowStore(tmp_path / "store", 4, np.float32) as store:  # another run
        places = store.find(keys)
        assert (places[:, 0] >= 0).tolist() == [True] * 4 + [False] * 2
        store.append(keys[4:], rows[4:])
        places = store.find(keys)
        assert np.array_equal(store.read(places[[5, 0, 3, 3]]), rows[[5, 0, 3, 3]])
    first = max((tmp_path / "store").glob("*.rows"), key=lambda file: file.stat().st_size)
    content = bytearray(first.read_bytes())
    content[16] ^= 1  # of the second row
    first.write_bytes(content[:-3])  # the fourth is torn
    again = RowStore(tmp_path / "store", 4, np.float32)
    assert (again.find(keys)[:, 0] >= 0).tolist() == [True, False, True, False, True, True]
    assert again.about == {}
    again.note({"width": 4})
    assert RowStore(tmp_path / "store", 4, np.float32).about == {"width": 4}


def test_the_longest_unused_stores_give_way(tmp_path: Path) -> None:
    folders = [tmp_path / f"{number:032x}" for number in range(3)]
    for age, folder in enumerate(folders):
        with RowStore(folder, 1000, np.float32) as store:
            store.append(keys_of(["a"]), np.zeros((1, 1000), np.float32))
        os.utime(folder, (1000 - age, 1000 - age))
    (tmp_path / "mine").mkdir()
    make_room(tmp_path, [folders[2]], max_bytes=9000)
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (tmp_path / "mine").exists()


# What users get wrong, and what is told


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What the command line says where it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["probe", *map(str, words)])
    told = capsys.readouterr().err
    assert caught.value.code == 2, told
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backbones", "resnet81"], "There is no model 'resnet81'. Did you mean 'resnet18'?"),
        (["--backbones", "resnet18", "--weights", "gone.pth"], "There is no file of weights gone.pth"),
        (["--backbones", "resnet18,vgg11", "--weights", "a.pth"], "one file for 2 networks"),
        (["--backbones", "resnet18,vgg11", "--weights", "a.pth,b.pth,c.pth"], "--weights names 3 and --backbones 2"),
        (["--backbones", "resnet18,resnet18"], "names resnet18 twice"),
        (["--backbones", ","], "--backbones names no network"),
        (["--backbones", "resnet18", "--keep", "vgg11"], "--keep vgg11 is not allowed: it is one of resnet18, or all"),
        (["--size", "big"], "--size big is not allowed: it is auto, or a number of pixels"),
        (["--size", "0"], "--size 0 is not allowed"),
        (["--folds", "2"], "--folds 2 is not allowed: it is 3 or more"),
        (["--backbones", "squeezenet1_1", "--weights", "none"], "squeezenet1_1 has no plain last layer"),
        (["--backbones", "vit_b_32", "--weights", "none", "--size", "100"], "does not take pictures of 100 x 100"),
        (["--epochs", "3"], "a probe trains a linear head until"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(
    words: list[str], told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, folder, *words)
    assert told in said
    assert "--model." not in said, "it speaks of this command's flags"


def test_a_folder_that_cannot_be_learned_from_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbones", NETWORK, "--weights", "none", "--size", "32"]
    assert "There is no folder" in refusal(capsys, tmp_path / "gone", *words)
    one = make_folder(tmp_path / "one", per_class=4, classes=("rose",))
    assert "has one class only" in refusal(capsys, one, *words)
    few = make_folder(tmp_path / "few", per_class=6)
    for number in range(4):
        (few / f"rose/{number:02d}.png").unlink()
    assert "The class 'rose' has 2 different pictures of its own" in refusal(capsys, few, *words)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").touch()
    assert "holds something that is no probe" in refusal(capsys, few, *words, "--out", full)


def test_fewer_folds_and_photos_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", per_class=8)
    for number in range(4):
        (photos / f"rose/{number:02d}.png").unlink()
    (photos / "tulip/00.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 picture of .* cannot be read:\n  tulip/00\.png"):
        quick(photos)
    result = quick(photos, num_folds=5, on_bad_image="skip")
    assert result.num_folds == 4
    assert "4 folds instead of 5, because the class 'rose' has 4 different pictures" in result.told
    assert list(result.left_out) == ["tulip/00.png"]
    assert result.findings.num_images == 8 + 4 + 7


def test_a_test_part_is_left_alone(drawn: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(drawn, tmp_path / "photos" / name)
    for file in (tmp_path / "photos/test").rglob("*.jpg"):
        if int(file.stem[-1]) % 2:
            file.unlink()
    result = quick(tmp_path / "photos")
    assert all(file.startswith("train/") for file in result.predictions.parts[OUT_OF_FOLD].files)
    assert any("test part" in line for line in result.told)


def test_the_command_line_prints_a_table_or_json(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [drawn, "--backbones", NETWORK, "--weights", "none", "--size", "32", "--folds", "3", "--num-workers", "0"]
    said = []
    for more in ([], ["--json", "--out", tmp_path / "probe"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["probe", *map(str, [*words, *more])])
        assert caught.value.code == 0
        said.append(capsys.readouterr())
    accuracy = json.loads(said[1].out)["accuracy"]["value"]
    assert f"{100 * accuracy:.1f} %" in said[0].out
    assert "twice the photos (140) would give about" in said[0].out
    assert "its weights are random" in said[0].err
    assert json.loads((tmp_path / "probe/probe.json").read_text())["accuracy"] == json.loads(said[1].out)["accuracy"]


def test_auto_chooses_a_size_where_the_network_takes_one(drawn: Path) -> None:
    result = quick(drawn, size="auto", mirror="no", backbones=[NETWORK])
    assert {way.size for way in result.best.losses} == {None, 4 / 3}
    least = min(result.best.losses, key=lambda way: result.best.losses[way])
    assert result.best.way == least
    assert result.best.sizes == (((224, 224),) if least.size is None else ((300, 300),))


class OneSize(Backbone):
    """A network that takes pictures of 32 pixels only, as vision transformers take their own."""

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        del dropout
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, num_classes))
        return network, self.first_weights(network, weights)

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(32, 32), resize=36)


def test_a_network_of_one_size_is_probed_in_that(drawn: Path) -> None:
    register("model", "garden/one-size")(OneSize)
    result = quick(drawn, size="auto", mirror="no", backbones=["garden/one-size"])
    assert result.best.sizes == ((32, 32),)
    assert "garden/one-size takes pictures of its own size only, so none larger is tried" in result.told


def test_a_model_of_several_networks_is_read_and_not_trained_on(done: tuple[ProbeResult, Path]) -> None:
    from accel_flowers.config.schema import Config
    from accel_flowers.models.auto import settle_model

    _, out = done
    spec = saved_models.load_spec(out)
    assert [part.name for part in spec.backbones] == [NETWORK, OTHER]
    config = Config.model_validate({"model": {"name": "auto", "weights": str(out / "model")}})
    with pytest.raises(UserError, match="holds 2 networks behind one head"):
        settle_model(config)
    state = saved_models.load_model(out).network.state_dict()
    assert state["head.weight"].shape == (5, 2048)
    assert torch.isfinite(state["head.weight"]).all()


def test_one_network_with_two_weights_is_told_apart(drawn: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        network, _ = build_network(NETWORK, 2)
        save_file(clean_state_dict(network), file)
    result = quick(
        drawn, backbones=[NETWORK] * 2, weights=[*map(str, files)], mirror="no", keep=f"{NETWORK} ({files[1]})"
    )
    assert [row.name for row in result.rows[:2]] == [f"{NETWORK} ({file})" for file in files]
    assert result.best is result.rows[1]
    assert len({facts["digest"] for facts in result.weights.values()}) == 2
    assert result.rows[0].loss != result.rows[1].loss


def test_report_says_where_the_page_is(done: tuple[ProbeResult, Path]) -> None:
    with pytest.raises(UserError, match=r"is a probe and no run: its page is there already, .*report\.html"):
        read_run(done[1])


@pytest.mark.slow
@pytest.mark.skipif(PHOTOS is None or WEIGHTS is None, reason="ACCEL_FLOWERS_TEST_PHOTOS and _WEIGHTS name no folders")
def test_real_photos_are_probed(tmp_path: Path) -> None:
    """MobileNetV2 at 128 pixels on a fifth of the photos: far above chance, and the curve rises."""
    assert PHOTOS is not None
    for folder in sorted(Path(PHOTOS).iterdir()):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[::5]:
            shutil.copy(file, tmp_path / "photos" / folder.name)
    weights = [f"{WEIGHTS}/mobilenet_v2-imagenet.safetensors"]
    result = quick(tmp_path / "photos", backbones=["auto"], weights=weights, size=128, num_folds=5)
    assert result.best.name == "mobilenet_v2"
    assert result.findings.accuracy.value > 0.6
    assert result.curve.accuracies[-1].value > result.curve.accuracies[0].value
