"""What the endpoint answers, as /openapi.json describes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from accel_flowers.serving.batching import Said
from accel_flowers.serving.subject import Subject


class Model(BaseModel):
    """Which model answers."""

    name: str = Field(description="The run, or the file.")
    digest: str = Field(
        description="The first characters of the SHA-256 of its files: the same digest, the same answers."
    )
    architecture: str
    several_labels: bool = Field(description="Whether a picture may have several labels, or none.")


class Facts(Model):
    """All that is known of the model."""

    classes: list[str] = Field(description="What a picture can be taken for.")
    calibrated: bool = Field(description="Whether its probabilities are calibrated.")
    thresholds: dict[str, float] | None = Field(
        description="Of each class, from which probability on it is a label; null where a picture has one label."
    )
    scores: dict[str, Any] = Field(
        description='What its run scored: "val" and "test", each with the number of pictures.'
    )
    heatmap: bool = Field(description="Whether it can show where the network looked.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class PictureAnswer(BaseModel):
    """What is said of one picture, or why nothing is."""

    name: str = Field(description='Of the file as it was sent; "picture" where it has none.')
    top: list[ClassProbability] = Field(
        description="Most probable first: top_k of them; without it the most probable one, or, where a picture may have "
        "several labels, all that reach their thresholds."
    )
    labels: list[str] | None = Field(
        default=None, description="Only where a picture may have several labels: those that reach their thresholds."
    )
    calibrated: bool
    heatmap: str | None = Field(
        default=None,
        description="With ?heatmap=true: a PNG as a data: address, what the network saw, coloured where it looked.",
    )
    error: str | None = Field(default=None, description="Why the picture cannot be read; then there is nothing in top.")


class Answer(BaseModel):
    """Of a request in which at least one picture could be read."""

    model: Model
    predictions: list[PictureAnswer] = Field(description="One for each picture, in their order.")


class Problem(BaseModel):
    """Why a request is not answered."""

    error: str = Field(description='A word for programs: "body_too_large".')
    message: str = Field(description="For people: what was given, what is allowed, what to do.")


class Unreadable(Problem):
    """Of a request of which no picture could be read."""

    predictions: list[PictureAnswer] = Field(default=[], description="Each with its error.")


class Health(BaseModel):
    """Whether the server can answer."""

    status: str = Field(description='"ready" or "stopping".')
    model: Model


def picture_answer(said: Said, *, calibrated: bool) -> dict[str, Any]:
    """A `PictureAnswer` as plain values; what is not there is left out."""
    prediction = said.prediction
    told: dict[str, Any] = {
        "name": prediction.file,
        "top": [{"class": name, "probability": probability} for name, probability in prediction.top],
    }
    if prediction.labels is not None:
        told["labels"] = list(prediction.labels)
    told["calibrated"] = calibrated
    if said.heatmap is not None:
        told["heatmap"] = said.heatmap
    if prediction.error is not None:
        told["error"] = prediction.error
    return told


def model_answer(subject: Subject) -> dict[str, Any]:
    """A `Model` as plain values."""
    return {
        "name": subject.name,
        "digest": subject.digest,
        "architecture": subject.spec.architecture,
        "several_labels": subject.spec.several_labels,
    }


def facts_answer(subject: Subject) -> dict[str, Any]:
    """A `Facts` as plain values."""
    spec = subject.spec
    told = ("num_images", "accuracy", "macro_f1", "map", "micro_f1")
    return {
        **model_answer(subject),
        "classes": list(spec.class_names),
        "calibrated": subject.calibrated,
        "thresholds": dict(zip(spec.class_names, spec.cuts, strict=True)) if spec.several_labels else None,
        "scores": {
            part: {name: scores[name] for name in told if name in scores}
            for part, scores in spec.scores.items()
            if isinstance(scores, dict)
        },
        "heatmap": subject.heatmap,
    }
