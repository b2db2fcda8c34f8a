"""What the course of a training says of its length, in plain sentences: advice only where the run bears it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accel_flowers.html.pages import percent
from accel_flowers.report.text import images

_FEW = 30
"""Validation images below which a sentence that rests on them says so: their mean loss has an error of a fifth of its spread."""


@dataclass(frozen=True)
class Length:
    """How long a training was, and what came of it.

    Attributes:
        planned: epochs of the recipe.
        ran: epochs that were evaluated.
        finished: whether the run has come to its end.
        best: epoch of the weights that were kept, from 1; None before the first evaluation.
        train_loss: the last one; None where there is none.
        val_losses: after each epoch that was evaluated, those of the weights that are kept; the best is among them.
        best_place: which of them is the best epoch's; None where that is not known.
        guess: loss of a guess, in nats.
        num_val: images of validation.
        mean_of: epochs whose weights were averaged, where they were several.
        share_of_start: share of the weights from before fine-tuning in those that were kept; 0 where none are mixed in.
        learnt: whether these are the ones that trained the network (debug.overfit_batches).
        beats_baseline: whether the model is surely better than always saying one class.
    """

    planned: int
    ran: int
    finished: bool
    best: int | None
    train_loss: float | None
    val_losses: Sequence[float]
    best_place: int | None
    guess: float
    num_val: int
    mean_of: Sequence[int] = ()
    share_of_start: float = 0.0
    learnt: bool = False
    beats_baseline: bool = True


def course_of_training(length: Length) -> str:
    """What the curves say of the length of the training; of one that goes on nothing but how far it is."""
    if not length.finished:
        return f"{length.ran} of {length.planned} epochs so far." if length.ran else ""
    sentences = []
    stopped = length.ran < length.planned
    if length.best is not None:
        of = f"{length.ran}, where early stopping ended it ({length.planned} were planned)" if stopped else length.ran
        where = "On the pictures that trained it the network" if length.learnt else "Validation"
        sentences.append(f"{where} was best after epoch {length.best} of {of}.")
        if length.mean_of:
            named = ", ".join(map(str, length.mean_of[:-1]))
            sentences.append(
                f"The weights that were kept are the mean of those after epochs {named} and {length.mean_of[-1]}."
            )
        if length.share_of_start:
            whose = "They" if length.mean_of else "The weights that were kept"
            sentences.append(f"{whose} hold {percent(length.share_of_start)} of those from before fine-tuning.")
    if length.learnt:
        return " ".join(
            sentences
        )  # the last line of the run has judged it, and a test of the wiring is not to be improved
    if length.best is not None and length.beats_baseline:
        sentences += _advice(length, stopped=stopped)
    if _is_apart(length):
        sentences += _why_apart(length)
    return " ".join(sentences)


def _advice(length: Length, *, stopped: bool) -> list[str]:
    """Whether another length would do better."""
    assert length.best is not None
    if length.best >= length.ran:
        return ["That is the last one: a longer training may improve it."] if length.ran > 1 else []
    place = length.best_place
    if place is not None and min(length.val_losses[place + 1 :], default=math.inf) < length.val_losses[place]:
        return ["Its loss fell further after that: a longer training may improve it."]
    if length.best <= 0.6 * length.ran and not stopped:
        return ["It did not improve after that: a shorter training would do."]
    return []


def _is_apart(length: Length) -> bool:
    """Whether validation ends with a much higher loss than training."""
    train_loss = length.train_loss
    return train_loss is not None and bool(length.val_losses) and length.val_losses[-1] > 2 * train_loss + 0.05


def _why_apart(length: Length) -> list[str]:
    assert length.train_loss is not None
    far = (
        f"At the end the loss is {length.train_loss:.2f} on training pictures and {length.val_losses[-1]:.2f} on validation"
        + (f" ({images(length.num_val)} only)" if length.num_val < _FEW else "")
    )
    if length.train_loss > 0.5 * length.guess:
        return [
            f"{far}. That is not overfitting, as it has not learnt the training pictures either: where validation jumps from "
            "epoch to epoch, a lower --optim.lr may help."
        ]
    return [f"{far}: it overfits. More pictures, stronger augmentation or fewer trained layers may help."]
