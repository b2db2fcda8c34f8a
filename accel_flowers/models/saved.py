"""The `model/` folder: best weights, class names and preprocessing; all that evaluate, predict and export need.

`model.safetensors` holds the weights, `config.json` the rest. Nothing here runs code from the folder: the architecture
and the transforms are names, of torchvision's or of parts that were registered before. The modules of the latter are
recorded for people to import, and never imported from here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import init_empty_weights
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_flowers import __version__
from accel_flowers.config.field_types import StandardDeviation, TransformSpec, transform_parts
from accel_flowers.config.schema import Tta
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.files import replace_folder, write_text_durably, writing
from accel_flowers.core.reading import check_permitted, read_file
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.metrics.thresholds import USUAL
from accel_flowers.models.backbone import Backbone
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.find import find_backbone
from accel_flowers.models.joined import JoinedBackbone, JoinedPart
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.seen import SEEN_FILE, Digests, save_seen
from accel_flowers.models.weights import load_state

WEIGHTS = "model.safetensors"
SPEC_FILE = "config.json"
_log = logging.getLogger(__name__)
_MAX_SPEC_BYTES = 2**30
"""The scores hold a confusion matrix: with five thousand classes the file has half of it."""


class ModelSpec(BaseModel):
    """What `config.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
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


@dataclass(frozen=True)
class SavedModel:
    """A model read back: ready to be moved to a device and called."""

    spec: ModelSpec
    classifier: Classifier
    transform: ImageTransform
    backbone: Backbone

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode."""
        return self.classifier.network

    def with_views(self, tta: Tta) -> Classifier:
        """The same network, with other views of an image."""
        spec = self.spec
        classifier = _classifier(self.network, spec, tta)
        return classifier.to(next(self.network.parameters()).device).eval()

    @property
    def normalizer(self) -> Normalizer:
        """uint8 images → what the network takes."""
        return self.classifier.normalizer


def save_model(
    directory: Path, weights: dict[str, Tensor], spec: ModelSpec, *, seen: Mapping[str, Digests] | None = None
) -> None:
    """Write `model/` whole: under a temporary name first, so that a reader never meets half of it.

    Args:
        directory: the folder.
        weights: of the network, as `clean_state_dict` gives them.
        spec: all else; which parts of the user's own it names is added.
        seen: "train" and "val" → digests of their images (`short_digests`); None = that is not recorded.

    Raises:
        UserError: it cannot be written, for example because the disk is full; what was there is untouched.
    """
    spec = spec.model_copy(update={"parts": {**spec.parts, **_described_parts(spec)}})
    # What says nothing is left out, so that earlier versions read the file, too.
    silent = {name for name in ("parts", "backbones") if not getattr(spec, name)}
    silent |= {"several_labels", "thresholds"} if not spec.several_labels else set()
    content = spec.model_dump(mode="json", exclude=silent)
    with (
        writing(f"The model '{directory}'", "Make room and go on with --resume auto."),
        replace_folder(directory) as partial,
    ):
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        if seen is not None:
            save_seen(partial / SEEN_FILE, seen)
        write_text_durably(partial / SPEC_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def model_folder(directory: Path) -> Path:
    """The folder itself, or the model in it where it is a run's directory."""
    inner = directory / "model"
    return inner if not os.path.isfile(directory / SPEC_FILE) and os.path.isfile(inner / SPEC_FILE) else directory


def load_spec(directory: Path) -> ModelSpec:
    """Read `config.json` of a model folder.

    Raises:
        UserError: no such folder, not one of ours, or tampered with; the message names what is wrong.
    """
    directory = model_folder(directory)
    path = directory / SPEC_FILE
    check_permitted(path)
    if not os.path.isfile(path):  # unlike Path's method, it answers for any name
        raise UserError(f"'{directory}' is no model folder: it has no {SPEC_FILE}. A run writes it to RUN_DIR/model.")
    try:
        return ModelSpec.model_validate_json(read_file(path, max_bytes=_MAX_SPEC_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the file"
        cause = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is damaged or not of this program: {place}: {cause}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def load_model(directory: Path) -> SavedModel:
    """Read a model folder.

    Raises:
        UserError: as `load_spec`; a part of somebody's own that is not registered; weights that cannot be read or do not
            fit the architecture.
    """
    directory = model_folder(directory)
    spec = load_spec(directory)
    _check_own_parts(directory, spec)
    state = read_state(directory / WEIGHTS)
    if not any(kind == "model" for kind, _ in spec.own_parts()):
        with init_empty_weights():  # a name may mean a giant: nothing is allocated unless the weights are as large
            _build(directory, spec, state)
    backbone, network = _build(directory, spec, state)
    transform, _ = build_transform(spec.transforms, field=f"{directory / SPEC_FILE}: transforms")
    return SavedModel(spec, _classifier(network, spec, spec.tta).eval(), transform, backbone)


def _classifier(network: nn.Module, spec: ModelSpec, tta: Tta) -> Classifier:
    several = spec.several_labels
    return Classifier(network, spec.mean, spec.std, temperature=spec.temperature, tta=tta, several=several)


def _build(directory: Path, spec: ModelSpec, state: dict[str, Tensor]) -> tuple[Backbone, nn.Module]:
    try:
        backbone = JoinedBackbone(spec.backbones) if spec.backbones else find_backbone(spec.architecture)
        network, _ = backbone.build(len(spec.class_names), dropout=spec.dropout, weights="none")
    except UserError as error:
        raise UserError(f"{directory / SPEC_FILE}: architecture: {error}") from None
    load_state(network, backbone.adapt_state(network, state), source=str(directory / WEIGHTS))
    return backbone, network


def _described_parts(spec: ModelSpec) -> dict[str, dict[str, str]]:
    """Of the parts of the user's own that are registered: "model my/net" → module and digest."""
    kinds: dict[registry.Kind, list[str]] = {}
    for kind, name in spec.own_parts():
        kinds.setdefault(kind, []).append(name)
    return registry.described(kinds)


def _check_own_parts(directory: Path, spec: ModelSpec) -> None:
    """See that all are registered, and say where one is no longer what it was. The record is read, never imported."""
    described = _described_parts(spec)
    missing = list(dict.fromkeys(f"{kind} {name}" for kind, name in spec.own_parts()))
    missing = [key for key in missing if key not in described]
    if missing:
        modules = dict.fromkeys(spec.parts.get(key, {}).get("module", "") for key in missing)
        named = [printable(name[:100]) for name in modules if name]
        told = f"recorded as from the module {', '.join(named)}" if named else "its module is not recorded"
        advice = " ".join(f"--import {name}" for name in named if name != "__main__") or "--import MODULE"
        raise UserError(
            f"{directory / SPEC_FILE} needs parts of somebody's own that are not known here: "
            f"{', '.join(printable(key[:100]) for key in missing)} ({told}). Where you have that module and trust it, add "
            f"{advice} (in Python, import it first). It is never imported because a file names it."
        )
    for key, now in described.items():
        before = spec.parts.get(key, {}).get("digest", "unknown")
        if "unknown" not in (before, now["digest"]) and before != now["digest"]:
            _log.warning("%s: the source of %s has changed since the model was saved", directory / SPEC_FILE, key)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: the file is missing, no regular file, or damaged.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no regular file")
        return load_file(path)
    except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
        raise UserError(f"The weights {path} cannot be read: {error}.") from None
