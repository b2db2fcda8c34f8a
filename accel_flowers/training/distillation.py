"""Distillation: a saved model teaches, beside the labels (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images_of

from accel_flowers.config.schema import Config, LossConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.order import natural_key
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, SavedModel, load_model, load_spec, model_folder
from accel_flowers.training.losses import check_number
from accel_flowers.training.tasks import Output, Task, TaskContext


def described_teacher(config: Config) -> dict[str, dict[str, str]]:
    """Of a recipe with a teacher: "teacher PATH" → the digest of its weights and of how it is asked, so that a run that goes on
    notices another."""
    teacher = config.loss.teacher
    if teacher is None:
        return {}
    files = [model_folder(Path(teacher).expanduser()) / name for name in (WEIGHTS, SPEC_FILE)]
    if not all(file.is_file() for file in files):
        return {}  # whoever builds it tells
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest())
    return {f"teacher {os.path.abspath(os.path.expanduser(teacher))}": {"digest": "".join(digests)}}


def classes_for_trial(config: LossConfig, num_classes: int) -> tuple[str, ...]:
    """Names of classes for a trial without photos: those of the teacher, which takes no others, else so many.

    Raises:
        UserError: the teacher is no model folder.
    """
    if config.teacher is not None:
        return load_spec(Path(config.teacher).expanduser()).class_names
    return tuple(f"class {label}" for label in range(num_classes))


class Teacher:
    """A saved model that is asked about the student's pixels.

    Args:
        saved: it; its network is moved to the student's device and learns nothing.
        context: of the student.

    Raises:
        UserError: its classes are others.
    """

    def __init__(self, saved: SavedModel, context: TaskContext) -> None:
        names, wanted = saved.spec.class_names, context.class_names
        if saved.spec.several_labels:
            raise UserError(
                "loss.task_options: the teacher was trained for several labels a picture, so its scores do not compare one class with "
                "the others. Give one that was trained on one label each."
            )
        if set(names) != set(wanted):
            missing, beyond = (
                sorted(a - b, key=natural_key) for a, b in ((set(wanted), set(names)), (set(names), set(wanted)))
            )
            raise UserError(
                f"loss.task_options: the teacher knows other classes than these photos have: it lacks {', '.join(missing) or 'none'}, and "
                f"has {', '.join(beyond) or 'none'} beyond. Give one that was trained on the same classes."
            )
        device, self._autocast = context.device, context.autocast
        self._network = saved.classifier.views.to(device).requires_grad_(False).eval()
        self._order = torch.tensor([names.index(name) for name in wanted], device=device)
        self._size = build_transform(saved.spec.transforms, field="the teacher's transforms")[1]
        if context.image_size is not None and context.image_size != self._size:
            (height, width), (own_height, own_width) = context.image_size, self._size
            context.tell(
                f"distillation: the teacher takes {own_height} x {own_width} pixels, so the student's pictures of {height} x {width} are "
                "resized for it"
            )
        own, theirs = (
            [torch.tensor(each, device=device).view(1, 3, 1, 1) for each in pair]
            for pair in ((context.mean, context.std), (saved.spec.mean, saved.spec.std))
        )
        self._factor, self._shift = own[1] / theirs[1], (own[0] - theirs[0]) / theirs[1]

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """The student's inputs, float32 [B, 3, H, W] → scores in the order of the student's classes, float32 [B, C]."""
        pixels = inputs * self._factor + self._shift
        if tuple(pixels.shape[-2:]) != tuple(self._size):
            pixels = images_of.resize(pixels, list(self._size), antialias=True)
        with self._autocast():
            scores: Tensor = self._network(pixels)
        return scores.float()[:, self._order]


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(taught / T) ‖ softmax(logits / T)), the mean over the batch.

    T² keeps its gradient as large as that of the labels at any temperature.

    Args:
        logits, taught: float32 [B, C], of student and teacher.
        temperature: T.
    """
    student, teacher = (logits.float() / temperature).log_softmax(dim=1), (taught / temperature).log_softmax(dim=1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distillation(context: TaskContext, teacher: str = "", temperature: float = 2.0, weight: float = 0.5) -> Task:
    """`weight` of the teacher's word and the rest of the labels', by the loss that the recipe names.

    Args:
        context: of the run.
        teacher: a model folder, or the directory of a run.
        temperature: by which both scores are divided.
        weight: of the teacher, from 0 to 1.

    Raises:
        ValueError: a number out of range, or no teacher.
        UserError: no model folder, or one of other classes.
    """
    if not isinstance(teacher, str) or not teacher:
        raise ValueError("teacher is wanted: the directory of a run, or its model/")
    check_number("temperature", temperature, least=0.01, most=1000)
    check_number("weight", weight, least=0, most=1)
    asked = Teacher(load_model(Path(teacher).expanduser()), context)

    def run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Output:
        taught = asked(inputs)
        logits = model(inputs)
        of_labels, of_teacher = context.criterion(logits, targets), distillation_loss(logits, taught, temperature)
        loss = (1 - weight) * of_labels + weight * of_teacher
        return Output(loss, logits, {"loss_of_labels": of_labels.detach(), "loss_of_teacher": of_teacher.detach()})

    return run
