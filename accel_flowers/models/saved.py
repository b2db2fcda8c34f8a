"""The `model/` folder: best weights, class names and preprocessing; all that evaluate, predict and export need.

`model.safetensors` holds the weights, `config.json` the rest. Nothing here runs code from the folder: the architecture
is a name of torchvision's, the transforms are names checked like a recipe's.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_flowers import __version__
from accel_flowers.config.schema import StandardDeviation, TransformSpec
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import replace_folder, write_text_durably, writing
from accel_flowers.core.reading import read_file
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.torchvision import build_network
from accel_flowers.models.weights import load_state

WEIGHTS = "model.safetensors"
SPEC_FILE = "config.json"
_MAX_SPEC_BYTES = 2**30
"""The scores hold a confusion matrix: with five thousand classes the file has half of it."""


class ModelSpec(BaseModel):
    """What `config.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    architecture: str
    """Name of the network in torchvision."""
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
    scores: dict[str, Any] = Field(default_factory=dict)
    """Part → its scores, with the epoch and step of the weights; for people, nothing reads them back."""
    accel_flowers: str = __version__
    """Version that wrote the folder."""

    @field_validator("class_names")
    @classmethod
    def _each_name_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("two classes have the same name")
        return value


@dataclass(frozen=True)
class SavedModel:
    """A model read back: ready to be moved to a device and called."""

    spec: ModelSpec
    network: nn.Module
    transform: ImageTransform
    normalizer: Normalizer


def save_model(directory: Path, weights: dict[str, Tensor], spec: ModelSpec) -> None:
    """Write `model/` whole: under a temporary name first, so that a reader never meets half of it.

    Args:
        directory: the folder.
        weights: of the network, as `clean_state_dict` gives them.
        spec: all else.

    Raises:
        UserError: it cannot be written, for example because the disk is full; what was there is untouched.
    """
    with (
        writing(f"The model '{directory}'", "Make room and go on with --resume auto."),
        replace_folder(directory) as partial,
    ):
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        write_text_durably(
            partial / SPEC_FILE, json.dumps(spec.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        )


def load_spec(directory: Path) -> ModelSpec:
    """Read `config.json` of a model folder.

    Raises:
        UserError: no such folder, not one of ours, or tampered with; the message names what is wrong.
    """
    path = directory / SPEC_FILE
    if not os.path.isfile(path):  # unlike Path's method, it answers for any name
        inner = directory / "model"
        hint = f" Did you mean {inner}?" if os.path.isfile(inner / SPEC_FILE) else ""
        raise UserError(
            f"'{directory}' is no model folder: it has no {SPEC_FILE}.{hint} A run writes it to RUN_DIR/model."
        )
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
        UserError: as `load_spec`; weights that cannot be read or do not fit the architecture.
    """
    spec = load_spec(directory)
    source, state = str(directory / WEIGHTS), read_state(directory / WEIGHTS)
    with torch.device("meta"):  # nothing is allocated for a spec that names a giant: its weights would be as large
        load_state(_build(directory, spec), state, source=source)
    network = _build(directory, spec)
    load_state(network, state, source=source)
    transform, _ = build_transform(spec.transforms, field=f"{directory / SPEC_FILE}: transforms")
    return SavedModel(
        spec=spec,
        network=network.eval(),
        transform=transform,
        normalizer=Normalizer(spec.mean, spec.std, channels_last=wants_channels_last(network)),
    )


def _build(directory: Path, spec: ModelSpec) -> nn.Module:
    try:
        return build_network(spec.architecture, len(spec.class_names), weights="none", dropout=spec.dropout)[0]
    except UserError as error:
        raise UserError(f"{directory / SPEC_FILE}: architecture: {error}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: the file is missing, no regular file, or damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        return load_file(path)
    except Exception as error:  # noqa: BLE001 - a damaged file makes its reader fail in any way it likes
        raise UserError(f"The weights {path} cannot be read: {error}.") from None
