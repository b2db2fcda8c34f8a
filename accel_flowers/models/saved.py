"""The `model/` folder: best weights, class names and preprocessing; all that evaluate, predict and export need.

`model.safetensors` holds the weights, `config.json` the rest, `README.md` is its model card. timm and transformers read the folder,
too, where timm has the network: see ecosystem.py. Nothing here runs code from the folder: the architecture
and the transforms are names, of torchvision's or of parts that were registered before. The modules of the latter are
recorded for people to import, and never imported from here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.files import replace_folder, write_text_durably, writing
from accel_flowers.core.reading import check_permitted, parse_json, read_file
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.models.backbone import Backbone
from accel_flowers.models.card import model_card
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.ecosystem import ecosystem_config, form_of
from accel_flowers.models.find import find_backbone
from accel_flowers.models.hub import fetch_model, is_on_hub
from accel_flowers.models.joined import JoinedBackbone
from accel_flowers.models.onnx_file import OnnxClassifier, load_onnx
from accel_flowers.models.onnx_graph import is_onnx, load_onnx_spec
from accel_flowers.models.seen import SEEN_FILE, Digests, save_seen
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.timm_names import to_timm
from accel_flowers.models.weights import load_state

WEIGHTS = "model.safetensors"
SPEC_FILE = "config.json"
CARD_FILE = "README.md"
_OWN_KEY = "accel_flowers"
"""Of the spec in `config.json`; format 1 had the version there, and the spec's fields beside it."""
_log = logging.getLogger(__name__)
_MAX_SPEC_BYTES = 2**30
"""The scores hold a confusion matrix: with five thousand classes the file has half of it."""


@dataclass(frozen=True)
class SavedModel:
    """A model read back: ready to be moved to a device and called."""

    spec: ModelSpec
    classifier: Classifier | OnnxClassifier
    transform: ImageTransform
    backbone: Backbone | None
    """What built the network; None of an exported file, whose network cannot be looked into."""

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode."""
        return self.classifier.network

    def with_views(self, tta: Tta) -> Classifier | OnnxClassifier:
        """The same network, with other views of an image.

        Raises:
            UserError: an exported file has other ones built in.
        """
        spec = self.spec
        if isinstance(self.classifier, OnnxClassifier):
            if tta != spec.tta:
                raise UserError(
                    f"The views of an image are built into an exported file, and this one has {spec.tta!r}, not {tta!r}: leave --tta "
                    "out, or ask the model folder."
                )
            return self.classifier
        classifier = _classifier(self.network, spec, tta)
        return classifier.to(next(self.network.parameters()).device).eval()

    @property
    def normalizer(self) -> nn.Module:
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
    silent = {name for name in ("parts", "backbones", "training") if not getattr(spec, name)}
    silent |= {"several_labels", "thresholds"} if not spec.several_labels else set()
    spec = spec.model_copy(update={"format": 2})
    form = form_of(spec)
    content = ecosystem_config(spec) | {_OWN_KEY: spec.model_dump(mode="json", exclude=silent)}
    with (
        writing(f"The model '{directory}'", "Make room and go on with --resume auto."),
        replace_folder(directory) as partial,
    ):
        save_file(to_timm(weights, form) if form else weights, partial / WEIGHTS, metadata={"format": "pt"})
        if seen is not None:
            save_seen(partial / SEEN_FILE, seen)
        write_text_durably(partial / CARD_FILE, model_card(spec))
        write_text_durably(partial / SPEC_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def model_folder(directory: Path) -> Path:
    """The folder itself, or the model in it where it is a run's directory; of "hub:OWNER/NAME" the one that it was fetched to.

    Raises:
        UserError: the hub has no such model, or cannot be reached.
    """
    if is_on_hub(directory):
        return fetch_model(str(directory))
    inner = directory / "model"
    return inner if not os.path.isfile(directory / SPEC_FILE) and os.path.isfile(inner / SPEC_FILE) else directory


def load_spec(directory: Path) -> ModelSpec:
    """Read `config.json` of a model folder, or what an exported ONNX file says of itself.

    Raises:
        UserError: no such folder, not one of ours, or tampered with; the message names what is wrong.
    """
    if is_onnx(directory):
        return load_onnx_spec(directory)
    directory = model_folder(directory)
    path = directory / SPEC_FILE
    check_permitted(path)
    if not os.path.isfile(path):  # unlike Path's method, it answers for any name
        raise UserError(f"'{directory}' is no model folder: it has no {SPEC_FILE}. A run writes it to RUN_DIR/model.")
    try:
        content = read_file(path, max_bytes=_MAX_SPEC_BYTES)
        return ModelSpec.model_validate_json(_own_part(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the file"
        cause = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is damaged or not of this program: {place}: {cause}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _own_part(content: bytes) -> bytes:
    """The spec of a `config.json`: under its key, or, in format 1 and in what is none of ours, the whole."""
    try:
        own = parse_json(content.decode("utf-8"))[_OWN_KEY]
    except (ValueError, TypeError, LookupError):
        return content
    return json.dumps(own).encode() if isinstance(own, dict) else content


def load_model(directory: Path) -> SavedModel:
    """Read a model folder, or an exported ONNX file.

    Raises:
        UserError: as `load_spec`; a part of somebody's own that is not registered; weights that cannot be read or do not
            fit the architecture.
    """
    if is_onnx(directory):
        spec, classifier, prepare = load_onnx(directory)
        return SavedModel(spec, classifier, prepare, None)
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
