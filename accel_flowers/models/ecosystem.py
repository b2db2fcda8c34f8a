"""What timm and transformers read of a `model/` folder: keys of theirs in `config.json`, tensors under timm's names.

Both find the architecture, the classes and what is done to an image, and then give the same probabilities; what they have no
word for is told in `lost`, and stands in the model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_flowers.config.field_types import TransformSpec
from accel_flowers.core import registry
from accel_flowers.core.registry import TIMM_PREFIX
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.timm_names import TimmForm, timm_form

_FIXED_SIZE = ("vit_",)
"""Beginnings of timm's names of networks that must be told their size of image."""
_USUAL_SIZE = 224


@dataclass(frozen=True)
class Crop:
    """The usual preparation of an image: its shorter side resized, then the middle cut out."""

    resize: int
    """Pixels of the shorter side; of both where `squash`."""
    size: tuple[int, int]
    """Height and width of what is cut out."""
    interpolation: str
    """Of the resizing, in torchvision's words."""
    squash: bool = False
    """Whether height and width are resized each for itself, and nothing is cut off."""


def crop_of(transforms: Sequence[TransformSpec]) -> Crop | None:
    """A list of transforms as `Crop`; None where it is another preparation."""
    steps = [_name_and_arguments(spec) for spec in transforms]
    if [name for name, _ in steps] not in (["Resize"], ["Resize", "CenterCrop"]):
        return None
    resize = steps[0][1]
    interpolation = resize.get("interpolation", "bilinear")
    if not resize.keys() <= {"size", "interpolation", "antialias"} or resize.get("antialias", True) is not True:
        return None
    side = _sides(resize.get("size"))
    if len(steps) == 1:
        squashed = len(side) == 2 and side[0] == side[1]
        return Crop(side[0], (side[0], side[1]), interpolation, squash=True) if squashed else None
    cut = _sides(steps[1][1].get("size"))
    if len(side) != 1 or not cut or not steps[1][1].keys() <= {"size"}:
        return None
    return Crop(side[0], (cut[0], cut[-1]), interpolation)


def form_of(spec: ModelSpec) -> TimmForm | None:
    """How timm builds the network; None where it cannot."""
    if spec.backbones:
        return None
    if spec.architecture.startswith(TIMM_PREFIX):
        return TimmForm(spec.architecture.removeprefix(TIMM_PREFIX))
    return timm_form(spec.architecture)


def ecosystem_config(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `config.json` that timm and transformers read; none where timm cannot build the network."""
    form, crop = form_of(spec), crop_of(spec.transforms)
    if form is None:
        return {}
    num_classes, arguments = len(spec.class_names), dict(form.arguments)
    pretrained: dict[str, Any] = {"num_classes": num_classes, "mean": list(spec.mean), "std": list(spec.std)}
    if crop is not None:
        height, width = crop.size
        pretrained |= {
            "input_size": [3, height, width],
            "interpolation": crop.interpolation,
            "crop_mode": "squash" if crop.squash else "center",
            # timm takes floor(size / crop_pct) as the shorter side: half a pixel more keeps rounding away from its edge.
            "crop_pct": 1.0 if crop.squash else min(height, width) / (crop.resize + 0.5),
        }
        if form.name.startswith(_FIXED_SIZE) and (height, width) != (_USUAL_SIZE, _USUAL_SIZE):
            arguments["img_size"] = height if height == width else [height, width]
    found: dict[str, Any] = {
        "architecture": form.name.partition(".")[0],
        "num_classes": num_classes,
        "label_names": list(spec.class_names),
        "pretrained_cfg": pretrained,
    }
    if arguments:
        found["model_args"] = arguments
    if spec.several_labels:
        found["problem_type"] = "multi_label_classification"  # transformers then takes the sigmoid of each score
    return found


def lost(spec: ModelSpec) -> list[str]:
    """What timm and transformers do not know of a model, a sentence each; one alone where they cannot read it at all."""
    if form_of(spec) is None:
        why = (
            "they have no network that is several behind one head"
            if spec.backbones
            else f"{spec.architecture} is a network of somebody's own"
            if registry.is_own_name(spec.architecture)
            else f"timm has no {spec.architecture} that computes the same"
        )
        return [f"timm and transformers cannot read this model: {why}."]
    sentences = []
    if crop_of(spec.transforms) is None:
        sentences.append(
            "Its preparation of images is none that they can express: they would resize and crop in their usual way."
        )
    if spec.temperature is not None:
        sentences.append(
            f"Its temperature, {spec.temperature:.4g}: their probabilities are not calibrated. Divide the scores by it before "
            f"{'the sigmoid' if spec.several_labels else 'softmax'}."
        )
    if spec.tta != "none":
        views = "the image and its mirror image" if spec.tta == "mirror" else "four views of the image"
        sentences.append(f"The mean over {views}, which the measured figures are of: they look at one.")
    if spec.thresholds is not None:
        sentences.append("The threshold of each class, from which on it is said of an image.")
    return sentences


def _name_and_arguments(spec: TransformSpec) -> tuple[str, Mapping[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    name, arguments = next(iter(spec.items()))
    return name, arguments if isinstance(arguments, Mapping) else {}


def _sides(size: Any) -> list[int]:
    """One side, or height and width; none where it is no size."""
    if isinstance(size, int):
        return [size]
    if isinstance(size, (list, tuple)) and len(size) in (1, 2) and all(isinstance(side, int) for side in size):
        return list(size)
    return []
