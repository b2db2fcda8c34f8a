"""The course of a training: its figures, and what they say of its length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from accel_flowers.data.split import PARTS
from accel_flowers.report import text as words
from accel_flowers.report.length import Length, course_of_training
from accel_flowers.report.plots import Course, Plot, course_plot
from accel_flowers.report.read import RunRecord


@dataclass(frozen=True)
class Training:
    """The course of the training: its figures, and what they say in words."""

    plots: tuple[Plot, ...]
    sentence: str


class Judged(Protocol):
    """What the course needs of the findings of a part."""

    @property
    def beats_baseline(self) -> bool:
        """Whether the model is surely better than an answer that looks at no image."""


def _loss_of_a_guess(run: RunRecord) -> float:
    """In nats: of one class among all, or, where an image may have several labels, of a half for each."""
    count = len(run.split.class_names)
    return count * math.log(2) if run.several_labels else math.log(count)


def find_course(run: RunRecord, main: Judged | None) -> Training:
    """Draw what metrics.jsonl holds so far.

    Args:
        run: as it was read.
        main: of the part that the report's headline is of; None while there is none.
    """
    train, val = Course("training", *run.course("train/loss")), Course("validation", *run.course("val/loss"))
    averaged = Course("averaged weights", *run.course("val_ema/loss"))
    score, title = ("map", "mAP") if run.several_labels else ("accuracy", "accuracy")
    accuracy = Course("validation", *run.course(f"val/{score}"))
    train_accuracy = Course("training", *run.course(f"train/{score}"))
    kept = averaged if averaged.values else val
    averaged_accuracy = Course("averaged weights", *run.course(f"val_ema/{score}"))
    rates = [Course(name.partition("/")[2].replace("_", " "), *run.course(name)) for name in run.rates()]
    if len(rates) == 1:
        rates = [replace(rates[0], label="learning rate")]
    best = run.spec.scores.get("val", {}) if run.spec else {}
    best_at = next(
        (line["epoch"] for line in run.lines if line.get("step") == best.get("step") and "val/loss" in line), None
    )
    counts = {part: len(run.split.files_of(part)) for part in PARTS}
    plots = []
    if train.values:
        plots.append(
            course_plot(
                "loss",
                "loss",
                "nats",
                [each for each in (train, val, averaged) if each.values],
                best=best_at,
                alt=f"Loss over the epochs. {words.parts_of_curves(counts, run.config, loss=True)}",
            )
        )
    if accuracy.values:
        plots.append(
            course_plot(
                score,
                title,
                "%",
                [each for each in (train_accuracy, accuracy, averaged_accuracy) if each.values],
                best=best_at,
                percent=True,
                alt=("Mean average precision" if run.several_labels else "Share of right answers")
                + " over the epochs. "
                + (
                    words.parts_of_curves(counts, run.config, loss=False)
                    if train_accuracy.values
                    else f"Validation: {words.images(counts['val'])}, after each epoch."
                ),
            )
        )
    if rates:
        plots.append(course_plot("lr", "learning rate", "", rates, marked=False, alt="Learning rate over the epochs."))
    ends = math.ceil if run.config.train.minutes else int
    scored_to = ends(max(val.epochs, default=0))
    ran = scored_to if run.config.train.min_steps else min(scored_to, run.config.train.epochs)
    settled_late = run.config.train.minutes or run.config.train.min_steps
    return Training(
        plots=tuple(plots),
        sentence=course_of_training(
            Length(
                # How many fitted into train.minutes, or made train.min_steps, is said nowhere but in the checkpoints.
                planned=ran if settled_late and run.predictions is not None else max(ran, run.config.train.epochs),
                ran=ran,
                finished=run.predictions is not None,
                best=best.get("epoch"),
                mean_of=best.get("mean_of_epochs", ()),
                share_of_start=best.get("share_of_start", 0.0),
                train_loss=train.values[-1] if train.values else None,
                val_losses=kept.values,
                best_place=kept.epochs.index(best_at) if best_at in kept.epochs else None,
                guess=_loss_of_a_guess(run),
                num_val=counts["val"],
                learnt=run.overfits,
                beats_baseline=main is None or main.beats_baseline,
            )
        ),
    )
