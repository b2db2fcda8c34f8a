"""What is done to each image, where a recipe leaves it open: what the network's weights were learned with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel_flowers.config.field_types import AUTO, TransformSpec
from accel_flowers.config.schema import Config
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.auto import settle_model
from accel_flowers.models.backbone import Preprocessing
from accel_flowers.models.find import find_backbone, takes_size


def settle_preprocessing(config: Config) -> tuple[Config, list[str]]:
    """The configuration with network, transforms, mean and standard deviation settled, and a line for what was chosen and for
    each that the recipe sets to something else than the network's weights were learned with.

    Args:
        config: `model.name` may be "auto", `data.train_transforms`, `eval_transforms`, `mean` and `std` may be None, the size of a transform
            "auto"; `data.eval_size_factor` is 1 in what is returned.

    Raises:
        UserError: there is no such network, or a mistake in the recipe's transforms.
    """
    config, chosen = settle_model(config)
    seen, data = find_backbone(config.model.name).preprocessing(), config.data
    open_fields = {name: value for name, value in _fields_of(seen).items() if getattr(data, name) is None}
    for name in ("train_transforms", "eval_transforms"):
        if (given := getattr(data, name)) is not None:
            open_fields[name] = tuple(_with_size(spec, seen) for spec in given)
    told: list[str] = []
    if data.eval_size_factor != 1:
        open_fields["eval_size_factor"] = 1.0
        open_fields["eval_transforms"], told = _enlarged(config, seen)
    config = config.model_copy(update={"data": data.model_copy(update=open_fields)})
    if config.model.weights != "none":
        told += _contradictions(config, seen, enlarged=data.eval_size_factor != 1)
    return config, [*chosen, *told]


def _enlarged(config: Config, seen: Preprocessing) -> tuple[tuple[TransformSpec, ...], list[str]]:
    """`eval_transforms: auto` at a larger size, if the network takes it, and the line that says so."""
    factor, name = config.data.eval_size_factor, config.model.name
    larger = seen.enlarged(factor)
    (own_height, own_width), (height, width) = seen.size, larger.size
    sizes = f"data.eval_size_factor {factor:g}: pictures are scored at {height} x {width} pixels, not at {own_height} x {own_width}"
    if not takes_size(name, larger.size):
        return _fields_of(seen)["eval_transforms"], [
            f"data.eval_size_factor {factor:g} has no effect: {name} takes no other size than {own_height} x {own_width}"
        ]
    return _fields_of(larger)["eval_transforms"], [sizes]


def _with_size(spec: TransformSpec, seen: Preprocessing) -> TransformSpec:
    """A transform whose size is "auto" with the one that the network was scored with; Resize leaves room for the crop."""
    if not isinstance(spec, dict):
        return spec
    height, width = seen.size
    sizes = {"Resize": seen.resize}
    return {
        name: {**arguments, "size": sizes.get(name, height if height == width else [height, width])}
        if isinstance(arguments, dict) and arguments.get("size") == AUTO
        else arguments
        for name, arguments in spec.items()
    }


def _fields_of(seen: Preprocessing) -> Mapping[str, Any]:
    """The fields of `DataConfig` that do it."""
    height, width = seen.size
    size = height if height == width else [height, width]
    # Crops are enlarged by chance in training, where the filter matters less than the time: bilinear has the fast ways.
    resize: dict[str, Any] = {"size": seen.resize}
    if seen.interpolation != "bilinear":
        resize["interpolation"] = seen.interpolation
    return {
        "train_transforms": ({"RandomResizedCrop": {"size": size}}, "RandomHorizontalFlip"),
        "eval_transforms": ({"Resize": resize}, {"CenterCrop": {"size": size}}),
        "mean": seen.mean,
        "std": seen.std,
    }


def _contradictions(config: Config, seen: Preprocessing, *, enlarged: bool) -> list[str]:
    name, data, lines = config.model.name, config.data, []
    for field in ("mean", "std"):
        given, learned = getattr(data, field), getattr(seen, field)
        if given is not None and max(abs(a - b) for a, b in zip(given, learned, strict=True)) > _SAME:
            lines.append(f"data.{field} is {_numbers(given)}; {name} was trained with {_numbers(learned)}")
    if data.eval_transforms is not None and not enlarged:
        _, size = build_transform(data.eval_transforms, field="data.eval_transforms")
        if size != seen.size:
            lines.append(
                f"data.eval_transforms make {size[0]} x {size[1]} pixels; "
                f"{name} was trained with {seen.size[0]} x {seen.size[1]}"
            )
    return lines


_SAME = 2e-3
"""Of a mean or deviation, pixels scaled to 0..1: half a grey level, which people leave off when they round."""


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
