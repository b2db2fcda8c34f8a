"""What is to be said of a saved model beside its weights: all that evaluate, predict, export and a model card need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from accel_flowers import __version__
from accel_flowers.config.field_types import StandardDeviation, TransformSpec, transform_parts
from accel_flowers.config.schema import Tta
from accel_flowers.core import registry
from accel_flowers.metrics.thresholds import USUAL


class JoinedPart(BaseModel):
    """One of several backbones behind one head, as `model/config.json` describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    """As in a recipe's model.name."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Height and width that this network gets, in pixels."""
    mean: tuple[float, float, float]
    """Of each channel, pixels scaled to 0..1."""
    std: Annotated[tuple[float, float, float], StandardDeviation]


class TrainingRecord(BaseModel):
    """What a model was made of, and how: for people and for the model card. It names no folder of the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    """Name of the folder, the zip or the hub's dataset."""
    images: dict[str, dict[str, int]]
    """Part → class → images of it."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Section → field → value of what the recipe sets to something else than the default: a recipe by itself."""


class ModelSpec(BaseModel):
    """What `config.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1, 2] = 2
    """1: these fields are the file, tensors have the library's names; 2: they stand under their own key of the file, beside the keys of
    timm and transformers, and tensors have timm's names where timm has the network."""
    architecture: str
    """Name of the network: torchvision's, or "prefix/name" of a registered one; of several behind one head all of them, for people."""
    backbones: tuple[JoinedPart, ...] = ()
    """The networks, where there are several behind one head."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """As in the recipe: it decides how the head is built."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """Class of each output."""
    transforms: tuple[TransformSpec, ...]
    """Upright RGB image → network input size, as in a recipe's data.eval_transforms."""
    mean: tuple[float, float, float]
    std: Annotated[tuple[float, float, float], StandardDeviation]
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision in which the scores were made."""
    eval_batch_size: int = Field(default=32, ge=1)
    """Images in one forward pass when the scores were made."""
    temperature: float | None = Field(default=None, gt=0)
    """Fitted on validation: softmax(log p / T) are calibrated probabilities; None where none was fitted."""
    several_labels: bool = False
    """Whether an image may have several labels, or none: then each class has a probability of its own, the sigmoid of its score."""
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Of each class, where there may be several: from which probability on it is said of an image, chosen on validation; None = 0.5."""
    tta: Tta = "none"
    """The views of an image whose scores are averaged, in the scores and in whatever is predicted."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Part → its scores, with the epoch and step of the weights; for people, nothing reads them back."""
    training: TrainingRecord | None = None
    """What it was made of, and how; None where that was not recorded."""
    accel_flowers: str = __version__
    """Version that wrote the folder."""
    parts: dict[str, dict[str, str]] = Field(default_factory=dict)
    """"model my/net" or "transform my/rain" → the module that registered it and the digest of its source; for people."""

    @field_validator("class_names")
    @classmethod
    def _each_name_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("two classes have the same name")
        return value

    @model_validator(mode="after")
    def _thresholds_fit(self) -> ModelSpec:
        if self.thresholds is not None and (not self.several_labels or len(self.thresholds) != len(self.class_names)):
            raise ValueError("thresholds are for several labels, one for each class")
        return self

    @property
    def cuts(self) -> tuple[float, ...]:
        """The threshold of each class."""
        return self.thresholds or (USUAL,) * len(self.class_names)

    def views(self, *, tta: bool) -> Tta:
        """What a prediction averages: as the scores did; where these did not, mirror images if they are asked for."""
        return "mirror" if tta and self.tta == "none" else self.tta

    def own_parts(self) -> Iterator[tuple[registry.Kind, str]]:
        """Kind and name of each part of the user's own that the model needs."""
        for name in [part.name for part in self.backbones] or [self.architecture]:
            if registry.is_own_name(name):
                yield "model", name
        yield from (("transform", name) for name in transform_parts(*self.transforms))
