"""A saved model teaches: the loss by hand, what the teacher is shown, and a run on any number of processes that goes on exactly."""

from __future__ import annotations

import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accel_flowers.config.loading import config_from_yaml
from accel_flowers.config.paths import with_absolute_paths
from accel_flowers.config.schema import Config, LossConfig
from accel_flowers.core.errors import UserError
from accel_flowers.models.saved import load_model, load_spec, save_model
from accel_flowers.training import precision
from accel_flowers.training.build_task import build_task
from accel_flowers.training.distillation import Teacher, distillation_loss
from accel_flowers.training.tasks import TaskContext
from accel_flowers.training.train import train
from tests.conftest import CLASSES, make_folder
from tests.faults import Forked, differences, far_apart
from tests.ranks import finish
from tests.runs import metrics, tiny_config, write_recipe

CONTEXT = TaskContext(
    LossConfig(), torch.tensor([0, 1, 2]), CLASSES, torch.device("cpu"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=12)


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny_config(photos, run_dir, train={"epochs": 1}))
    return run_dir / "model"


def test_the_loss_by_hand() -> None:
    """Teacher 3 : 1, student even: KL = 0.75 log 1.5 + 0.25 log 0.5; nothing where they agree; T² times that of scores / T."""
    taught, even = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert float(distillation_loss(even, taught, 1.0)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(distillation_loss(taught + 5, taught, 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(2 * even, 2 * taught, 2.0)) == pytest.approx(
        4 * float(distillation_loss(even, taught, 1.0))
    )


def test_its_gradient_stays_as_large_at_any_temperature() -> None:
    taught, sizes = torch.tensor([[1.0, 0.0, -1.0]]), []
    for temperature in (10.0, 100.0):
        logits = torch.zeros(1, 3, requires_grad=True)
        distillation_loss(logits, taught, temperature).backward()
        assert logits.grad is not None
        sizes.append(float(logits.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_the_teacher_sees_its_own_normalisation_and_the_students_classes(teacher: Path) -> None:
    saved = load_model(teacher)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    turned = tuple(reversed(saved.spec.class_names))
    asked = Teacher(saved, replace(CONTEXT, mean=mean, std=std, class_names=turned))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    theirs = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = load_model(teacher).classifier.logits(pixels).flip(1).detach()
    torch.testing.assert_close(asked(theirs), expected, atol=1e-4, rtol=1e-4)
    larger = torch.nn.functional.interpolate(theirs, size=64)
    assert asked(larger).shape == (2, 3), "other sizes are brought to its own"
    assert not asked(theirs.requires_grad_()).requires_grad


def test_it_is_told_once_where_the_teacher_takes_another_size(teacher: Path) -> None:
    told: list[str] = []
    for size in ((32, 32), (48, 40)):
        Teacher(load_model(teacher), replace(CONTEXT, image_size=size, tell=told.append))
    assert len(told) == 1
    assert "takes 32 x 32 pixels, so the student's pictures of 48 x 40 are resized" in told[0]


def test_the_trial_of_precisions_asks_the_teacher(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision that is tried, and another answer is kept for another teacher."""
    asked_in: list[bool] = []

    def ask(self: Teacher, inputs: Tensor) -> Tensor:
        with self._autocast():
            asked_in.append(torch.is_autocast_enabled("cpu"))
        return as_it_is(self, inputs)

    as_it_is = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", ask)
    monkeypatch.setattr(precision, "BUDGET_SECONDS", 0.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loss = {"task": "distillation", "task_options": {"teacher": str(teacher)}}
    config = tiny_config(photos, tmp_path / "run", loss=loss)
    choice = precision.try_precisions(config, num_processes=1)
    assert choice is not None
    assert not choice.remembered
    assert set(asked_in) == {True, False}
    plain = precision.try_precisions(tiny_config(photos, tmp_path / "run"), num_processes=1)
    assert plain is not None
    assert not plain.remembered
    again = precision.try_precisions(config, num_processes=1)
    assert again is not None
    assert again.remembered


def test_a_teacher_of_other_classes_is_told(teacher: Path, tmp_path: Path) -> None:
    saved = load_model(teacher)
    names = ("aster", *saved.spec.class_names[1:])
    save_model(
        tmp_path / "other",
        load_file(teacher / "model.safetensors"),
        saved.spec.model_copy(update={"class_names": names}),
    )
    with pytest.raises(UserError, match=r"it lacks daisy, and has aster beyond\. Give one"):
        Teacher(load_model(tmp_path / "other"), CONTEXT)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "teacher is wanted"),
        ({"teacher": "TEACHER", "weight": 2}, "weight is a number from 0 to 1, not 2"),
        ({"teacher": "TEACHER", "temperature": 0}, r"temperature is a number from 0\.01 to 1000, not 0"),
        ({"teacher": "nowhere"}, "is no model folder"),
        ({"teacher": "TEACHER", "alpha": 1}, "unexpected keyword argument 'alpha'"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], told: str, teacher: Path) -> None:
    options = {name: str(teacher) if value == "TEACHER" else value for name, value in options.items()}
    with pytest.raises(UserError, match=told):
        build_task(replace(CONTEXT, config=LossConfig(task="distillation", task_options=options)))


def test_the_weight_is_the_teachers_share(teacher: Path) -> None:
    class Even(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.zeros(len(inputs), 3, requires_grad=True)

    inputs, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for weight in (0.0, 0.3, 1.0):
        options = {"teacher": str(teacher), "weight": weight}
        output = build_task(replace(CONTEXT, config=LossConfig(task="distillation", task_options=options)))(
            Even(), inputs, targets
        )
        of_labels, of_teacher = output.parts["loss_of_labels"], output.parts["loss_of_teacher"]
        assert float(of_labels) == pytest.approx(math.log(3))
        assert float(of_teacher) > 0
        torch.testing.assert_close(output.loss.detach(), (1 - weight) * of_labels + weight * of_teacher)


def test_another_teacher_is_noticed_when_a_run_goes_on(
    photos: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    loss = {"task": "distillation", "task_options": {"teacher": str(tmp_path / "teacher")}}
    config = tiny_config(photos, tmp_path / "run", loss=loss, train={"epochs": 1})
    train(config)
    assert "changed since this run began" not in caplog.text
    weights, spec = load_file(teacher / "model.safetensors"), load_spec(teacher)
    changed = {
        "weights": ({name: tensor + 1 for name, tensor in weights.items()}, spec),
        "how it is asked": (weights, spec.model_copy(update={"tta": "mirror"})),
    }
    for what, (other_weights, other_spec) in changed.items():
        save_model(tmp_path / "teacher", other_weights, other_spec)
        caplog.clear()
        train(config.model_copy(update={"resume": "auto"}))
        assert f"may not go on as it would have: teacher {tmp_path / 'teacher'}" in caplog.text, what


def student(photos: Path, teacher: Path, folder: Path, epochs: int) -> list[str | Path]:
    """Words for a run with all at once: classes of unlike sizes in balanced epochs, mixed pictures, which the teacher sees as the
    student does, focal loss, dropout."""
    unlike = shutil.copytree(photos, folder / "photos")
    for file in sorted((unlike / "rose").iterdir())[5:]:
        file.unlink()
    recipe = write_recipe(
        folder / "recipe.yaml",
        data={"sampling": "balanced", "batch_transform": {"mixup": {"alpha": 0.4}}},
        model={"dropout": 0.3},
        loss={
            "name": "focal",
            "options": {"gamma": 1},
            "task": "distillation",
            "task_options": {"teacher": str(teacher)},
        },
        train={"epochs": epochs, "micro_batch_size": 2, "log_every_steps": 1},
        checkpoint={"every_steps": 1},
    )
    return [recipe, "--data.path", unlike, "--tracking.no-report"]


@pytest.mark.holds("A student learns alike on 1, 2 and 4 processes, and after a kill")
@pytest.mark.multiprocess
def test_a_student_learns_alike_on_any_number_of_processes(photos: Path, teacher: Path, tmp_path: Path) -> None:
    words = student(photos, teacher, tmp_path, epochs=2)
    for processes in (1, 2, 4):
        finish(tmp_path, ["train", *words, "--run-dir", tmp_path / str(processes)], processes=processes)
    for processes in (2, 4):
        assert far_apart(tmp_path / "1", tmp_path / str(processes), 1e-4) == []
    losses = metrics(tmp_path / "1", "train/loss")
    assert len(losses) == len(metrics(tmp_path / "1", "train/loss_of_teacher")) > 4
    for processes in (2, 4):
        assert metrics(tmp_path / str(processes), "train/loss") == pytest.approx(losses, abs=1e-5)
    assert str(teacher.parent) not in load_spec(tmp_path / "1/model").model_dump_json(), "the model needs no teacher"
    assert load_file(tmp_path / "1/model/model.safetensors").keys() == load_file(teacher / "model.safetensors").keys()


@pytest.mark.holds("A student learns alike on 1, 2 and 4 processes, and after a kill")
@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_student_that_was_killed_ends_as_if_it_had_not_been(photos: Path, teacher: Path, tmp_path: Path) -> None:
    words = student(photos, teacher, tmp_path, epochs=6)
    finish(tmp_path, ["train", *words, "--run-dir", tmp_path / "undisturbed"], processes=2)
    num_steps = len(metrics(tmp_path / "undisturbed", "train/loss"))
    with Forked(2, tmp_path / "run", *words) as run:
        run.wait_for_step(4)
        for rank in (0, 1):
            run.signal(rank, signal.SIGKILL)
        run.codes(30)
        assert 4 <= run.steps_seen() < num_steps, "killed too late to prove anything"
    said = finish(tmp_path, ["train", *words, "--run-dir", tmp_path / "run", "--resume", "auto"], processes=2)
    assert "going on after step" in said
    assert differences(tmp_path / "run", tmp_path / "undisturbed") == []


@pytest.mark.parametrize("field", ["task_options", "options"])
def test_the_teacher_is_found_from_anywhere(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(
        loss=LossConfig.model_validate({"task": "distillation", field: {"teacher": "runs/large", "weight": 1}})
    )
    found = with_absolute_paths(config)
    assert found.loss.options_of_task == {"teacher": str(tmp_path / "runs/large"), "weight": 1}
    assert with_absolute_paths(found) == found


def test_a_mistake_in_a_run_with_a_teacher_speaks_of_no_module() -> None:
    text = "optim: {lr: -1}\nenvironment: {parts: {teacher /x: {digest: ab}, loss my/l: {module: mine, digest: cd}}}"
    with pytest.raises(UserError) as told:
        config_from_yaml(text, source="it")
    assert "teacher" not in str(told.value)
    assert "The run took loss my/l from the Python module mine." in str(told.value)
