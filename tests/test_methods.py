"""Methods that change what a step computes, all at once: alike on any number of processes, and bit for bit after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from accel_flowers.models.saved import load_spec
from tests.conftest import make_folder
from tests.faults import Forked, differences, far_apart
from tests.ranks import finish
from tests.runs import metrics, write_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def words_of(photos: Path, folder: Path, *, model: str, epochs: int) -> list[str | Path]:
    """Pictures that grow, mixed inside the network, gradients of the worst weights nearby, the head alone at first, and its epochs mixed
    into the end; beside dropout and a moving average."""
    recipe = write_recipe(
        folder / "recipe.yaml",
        data={"batch_transform": [{"progressive_size": {"from": 0.65, "until": 0.75, "multiple": 4}}]},
        model={"name": model, "dropout": 0.3},
        loss={"task": "manifold_mixup", "task_options": {"alpha": 1.0, "stages": 2}},
        optim={"lr": 5e-3, "sam_rho": 0.05},
        train={"epochs": epochs, "micro_batch_size": 2, "log_every_steps": 1, "head_epochs": 0.8},
        ema={"decay": 0.9},
        soup={"epochs": 2, "start": 0.3},
        checkpoint={"every_steps": 1, "keep_last": 1},
    )
    return [recipe, "--data.path", photos, "--tracking.no-report"]


@pytest.mark.holds("Methods of a step go together, on 1, 2 and 4 processes and after a kill")
@pytest.mark.multiprocess
def test_alike_on_any_number_of_processes(photos: Path, tmp_path: Path) -> None:
    words = words_of(photos, tmp_path, model="squeezenet1_1", epochs=2)
    for processes in (1, 2, 4):
        finish(tmp_path, ["train", *words, "--run-dir", tmp_path / str(processes)], processes=processes)
    losses = metrics(tmp_path / "1", "train/loss")
    assert len(losses) == len(metrics(tmp_path / "1", "train/loss_nearby")) == 8
    assert load_spec(tmp_path / "1/model").scores["val"]["share_of_start"] == 0.3
    for processes in (2, 4):
        assert metrics(tmp_path / str(processes), "train/loss") == pytest.approx(losses, abs=1e-4)
        assert far_apart(tmp_path / "1", tmp_path / str(processes), 1e-3) == []


@pytest.mark.holds("Methods of a step go together, on 1, 2 and 4 processes and after a kill")
@pytest.mark.slow
@pytest.mark.multiprocess
def test_bit_for_bit_after_kills(photos: Path, tmp_path: Path) -> None:
    """With batch norm, on two processes: killed while the head trains, where its epochs end, and later."""
    words = words_of(photos, tmp_path, model="shufflenet_v2_x0_5", epochs=4)
    finish(tmp_path, ["train", *words, "--run-dir", tmp_path / "undisturbed"], processes=2)
    num_steps = len(metrics(tmp_path / "undisturbed", "train/loss"))
    for step in (1, 4, 7):
        with Forked(2, tmp_path / "run", *words) as run:
            run.wait_for_step(step)
            for rank in (0, 1):
                run.signal(rank, signal.SIGKILL)
            run.codes(30)
            assert step <= run.steps_seen() < num_steps, "killed too late to prove anything"
    finish(tmp_path, ["train", *words, "--run-dir", tmp_path / "run", "--resume", "auto"], processes=2)
    assert differences(tmp_path / "run", tmp_path / "undisturbed") == []
