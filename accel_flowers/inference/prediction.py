"""What is said of an image, however it was computed. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accel_flowers.core.errors import UserError
from accel_flowers.models.spec import ModelSpec


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, or why it says nothing."""

    file: str
    """The file as it was given; "image 3" for what is none, counted from 0."""
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), most probable first: as many as were asked for, or, where an image may have several labels, all
    that reach their thresholds; these may be none."""
    error: str | None = None
    """Why it cannot be read."""
    labels: tuple[str, ...] | None = None
    """Where an image may have several labels, those that reach their thresholds, most probable first; None where it has one."""

    @property
    def label(self) -> str | None:
        """The most probable class; None where the image cannot be read, or is said to have no label."""
        if self.labels is not None:
            return self.labels[0] if self.labels else None
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Of that class."""
        return dict(self.top).get(self.label) if self.label is not None else None


def answer_of(spec: ModelSpec, name: str, told: Sequence[tuple[int, float]], top_k: int | None) -> Prediction:
    """What is said of one image.

    Args:
        spec: of the model.
        name: what the image is called.
        told: classes (numbers) with probabilities, most probable first: of one label at least `top_k`, of several all.
        top_k: classes to tell; None = the most probable one, or, where an image may have several labels, all that reach their
            thresholds.
    """
    top = tuple((spec.class_names[label], value) for label, value in told)
    if not spec.several_labels:
        return Prediction(name, top[: top_k or 1])
    cuts = spec.cuts
    labels = tuple(spec.class_names[label] for label, value in told if value >= cuts[label])
    chosen = top[:top_k] if top_k is not None else tuple(each for each in top if each[0] in set(labels))
    return Prediction(name, chosen, labels=labels)


def check_numbers(
    class_names: Sequence[str],
    *,
    top_k: int | None,
    batch_size: int | None,
    num_workers: int | None,
    names: Mapping[str, str] | None = None,
) -> None:
    """See that a model of these classes can be asked so.

    Args:
        class_names: of the model.
        top_k, batch_size, num_workers: of `predict_each`.
        names: what the command line calls them.

    Raises:
        UserError: a number that is out of range.
    """
    names = names or {}
    if top_k is not None and not 1 <= top_k <= len(class_names):
        raise UserError(
            f"{names.get('top_k', 'top_k')} {top_k} is not allowed: it is 1 or more, and at most {len(class_names)}, for "
            f"the model knows {len(class_names)} classes ({', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''})."
        )
    for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise UserError(f"{names.get(name, name)} {value} is not allowed: it is 1 or more.")
