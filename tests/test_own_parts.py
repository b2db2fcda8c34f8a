"""Parts of the user's own: trained, resumed, saved, read back and predicted with; and never imported unasked."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from accel_flowers.core import registry
from accel_flowers.core.errors import UserError
from accel_flowers.core.registry import Part, import_parts, register
from accel_flowers.core.yaml_text import parse_yaml
from accel_flowers.tracking.run_dir import read_metrics
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import PROJECT, metrics, write_recipe
from tests.specs import change_spec, read_spec

EXAMPLE = PROJECT / "examples/my_parts.py"
OWN: dict[str, dict[str, Any]] = {
    "data": {
        "train_transforms": [{"my/rain": {"drops": 8}}, {"RandomResizedCrop": {"size": 32}}],
        "batch_transform": {"my/mixup": {"alpha": 0.4}},
    },
    "model": {"name": "my/tiny", "dropout": 0.2},
    "loss": {"name": "my/focal", "options": {"gamma": 1.5}},
    "optim": {"name": "my/lion", "options": {"betas": [0.9, 0.98]}, "lr": 1e-3},
    "train": {"best_metric": "my/worst_recall", "epochs": 3},
    "tracking": {"also": [{"my/milestones": {"every": 0.01}}]},
}
"""Sections of a recipe in which everything is somebody's own."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with parts of each kind, on two processes."""
    folder = tmp_path_factory.mktemp("own")
    recipe = write_recipe(folder / "own.yaml", **OWN)
    finish(folder, words(recipe, photos, folder / "run"), processes=2)
    return folder / "run"


def words(recipe: Path, photos: Path, run_dir: Path, *more: str) -> list[str | Path]:
    return ["train", recipe, "--import", EXAMPLE, "--data.path", photos, "--run-dir", run_dir, *more]


@pytest.mark.multiprocess
def test_a_run_records_where_its_parts_came_from(whole: Path) -> None:
    environment = parse_yaml((whole / "config.yaml").read_text(), "config.yaml")["environment"]
    kinds = {name.split()[0] for name in environment["parts"]}
    assert kinds == {"transform", "batch_transform", "model", "loss", "optimizer", "metric"}
    assert {part["module"] for part in environment["parts"].values()} == {"my_parts"}
    spec = read_spec(whole / "model")
    assert set(spec["parts"]) == {"model my/tiny"}, "what is needed to predict"
    assert metrics(whole, "val/my/worst_recall"), "a metric of one's own is logged"
    best = max(metrics(whole, "val/accuracy"))
    *_, last = (whole / "milestones.txt").read_text().splitlines()
    assert last.endswith(f": {int(best / 0.01) / 100:.0%}"), "and shown by a tracker of one's own"


@pytest.mark.multiprocess
def test_a_run_that_was_stopped_goes_on_to_the_same_end(whole: Path, photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "own.yaml", **OWN)
    run_dir = tmp_path / "run"
    command = words(recipe, photos, run_dir)
    with Ranks(tmp_path, command, command) as ranks:
        ranks.wait_for(run_dir / "checkpoints/last")
        ranks.signal(1, signal.SIGTERM)
        codes = ranks.codes(60)
    if codes == [75, 75]:  # else it was at its end already
        finish(tmp_path, [*command, "--resume", "auto"], processes=2)
    expected, found = (load_file(each / "model/model.safetensors") for each in (whole, run_dir))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    said = [
        [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in read_metrics(each / "metrics.jsonl")]
        for each in (whole, run_dir)
    ]  # fmt: skip
    assert said[0] == said[1]


@pytest.mark.multiprocess
def test_its_model_is_read_with_the_import_and_told_without(whole: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    predict = ["predict", whole / "model", photos / "rose", "--out", out]
    evaluate = ["evaluate", whole / "model", "--data", photos, "--split", whole / "split.json", "--json"]
    finish(tmp_path, [*predict, "--import", EXAMPLE])
    assert len(json.loads(out.read_text())["files"] if isinstance(json.loads(out.read_text()), dict) else json.loads(out.read_text())) == 12  # fmt: skip
    said = finish(tmp_path, ["--import", EXAMPLE, *evaluate])
    assert '"accuracy"' in said
    for command in (predict, evaluate):
        with Ranks(tmp_path, command) as ranks:
            assert ranks.codes(60) == [2]
            assert "my/tiny" in ranks.said(0)
            assert "--import" in ranks.said(0)
            assert "my_parts" in ranks.said(0)
            assert "Traceback" not in ranks.said(0)


@pytest.mark.multiprocess
def test_mixing_is_the_same_on_any_number_of_processes(photos: Path, tmp_path: Path) -> None:
    mixed = {"data": {"batch_transform": {"my/mixup": {"alpha": 1.0}}}, "optim": {"lr": 1e-2}}
    losses = {}
    for name, processes, sections in (("one", 1, mixed), ("two", 2, mixed), ("plain", 1, {"optim": {"lr": 1e-2}})):
        recipe = write_recipe(tmp_path / f"{name}.yaml", **sections)
        finish(tmp_path, words(recipe, photos, tmp_path / name), processes=processes)
        losses[name] = metrics(tmp_path / name, "train/loss")
    assert losses["one"] == pytest.approx(losses["two"], abs=1e-5)
    assert losses["one"] != pytest.approx(losses["plain"], abs=1e-3), "it does mix"


def test_a_teacher_needs_no_change_of_the_loop(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "teacher.yaml")
    finish(tmp_path, words(recipe, photos, tmp_path / "teacher"))
    loss = {"task": "my/distill", "options": {"teacher": str(tmp_path / "teacher/model"), "alpha": 0.3}}
    student = write_recipe(tmp_path / "student.yaml", loss=loss)
    finish(tmp_path, words(student, photos, tmp_path / "student"))
    hard, soft, both = (metrics(tmp_path / "student", f"train/{name}") for name in ("hard", "soft", "loss"))
    assert len(both) == len(metrics(tmp_path / "teacher", "train/loss"))
    assert [0.7 * h + 0.3 * s for h, s in zip(hard, soft, strict=True)] == pytest.approx(both, rel=1e-5)
    kept = load_file(tmp_path / "student/model/model.safetensors")
    assert kept.keys() == load_file(tmp_path / "teacher/model/model.safetensors").keys(), "no teacher is saved"


HOSTILE = """
from pathlib import Path
Path({marker!r}).write_text("imported")
"""


def test_no_file_makes_anything_be_imported(whole: Path, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A recipe, a run's config.yaml and a model/ that name a module which stands in the working directory."""
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(HOSTILE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    parts = {"model evil/net": {"module": "evil", "digest": "0" * 32}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": {"name": "evil/net"}, "environment": {"parts": parts}, "optim": {"name": "evil/sgd"}}))  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    for file in (whole / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    change_spec(model, architecture="evil/net", parts=parts)
    for command in (
        ["train", recipe, "--data.path", photos],
        ["train", "quickstart", "--data.path", photos, "--model.name", "evil/net"],
        ["predict", model, photos],
        ["evaluate", model, "--data", photos],
    ):
        with Ranks(tmp_path, command) as ranks:
            assert ranks.codes(60) == [2], ranks.output()
            assert "--import" in ranks.said(0)
            assert "Traceback" not in ranks.said(0)
    assert not marker.exists()
    for field in ("import", "imports", "modules"):
        recipe.write_text(json.dumps({field: ["evil"]}))
        with Ranks(tmp_path, ["train", recipe, "--data.path", photos]) as ranks:
            assert ranks.codes(60) == [2]
    assert not marker.exists()
    with Ranks(tmp_path, ["train", "nosuch", "--import", tmp_path / "evil.py"]) as ranks:
        assert ranks.codes(60) == [2]
    assert marker.exists(), "asked for on the command line it is imported"


# The registry itself


@pytest.fixture
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))


@pytest.mark.usefixtures("_clean_registry")
def test_names_have_a_prefix() -> None:
    for name in ("rain", "/rain", "my/", "my/rain/drops", "my rain/x", "1/2"):
        with pytest.raises(UserError, match="prefix of its own and a slash"):
            register("transform", name)
    with pytest.raises(UserError, match=r"no kind 'metrics'\. Did you mean 'metric'"):
        register("metrics", "my/rain")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_clean_registry")
def test_the_last_of_a_name_counts() -> None:
    for number in (1, 2):
        register("metric", "my/number", lower_is_better=number == 2)(lambda predictions, number=number: number)
    part = registry.find("metric", "my/number")
    assert isinstance(part, Part)
    assert part.make(None) == 2
    assert part.options == {"lower_is_better": True}
    assert "my/number" in registry.registered("metric")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("no_such_module_at_all", "there is no module 'no_such_module_at_all'"),
        ("broken.py", "cannot be imported: ZeroDivisionError"),
        ("needs.py", "needs the module 'something_not_installed'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(given: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("broken.py").write_text("1 / 0")
    Path("needs.py").write_text("import something_not_installed")
    with pytest.raises(UserError, match=f"--import {given}: .*{said}"):
        import_parts([given])
