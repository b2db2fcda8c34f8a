"""The model that is served, its name and its digest; an exported file is asked without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from accel_flowers.core.errors import UserError, printable
from accel_flowers.inference.onnx_classifier import OnnxImageClassifier
from accel_flowers.inference.prediction import Prediction
from accel_flowers.models.ecosystem import crop_of
from accel_flowers.models.onnx_graph import is_onnx, load_onnx_spec
from accel_flowers.models.spec import ModelSpec

_DIGEST_LENGTH = 16
_MODEL_DIR = "model"
"""Of a run."""


class Model(Protocol):
    """What a server asks; an image is whatever `read` makes of it."""

    @property
    def spec(self) -> ModelSpec:
        """All that its folder or file says of it."""

    def read(self, data: bytes, name: str) -> Any:
        """An encoded image, decoded and prepared, as an array of uint8; from any thread.

        Raises:
            BadImageError: it cannot be read.
        """

    def probabilities(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Of each class, [B, C]."""

    def answer(self, name: str, told: Sequence[tuple[int, float]], top_k: int | None) -> Prediction:
        """What is said of one image; see `answer_of`."""


Heat = Callable[[Any, int], str]
"""An image as it was read, and a class → a picture (`data:image/png`) of where the network looked."""


@dataclass(frozen=True)
class Subject:
    """A model that is served."""

    model: Model
    name: str
    """The run, or the file."""
    digest: str
    """The same digest, the same answers."""
    device: str
    """Where it computes."""
    heat: Heat | None
    """What shows where it looked; None where it cannot. To be called by the thread that owns the network."""

    @property
    def spec(self) -> ModelSpec:
        """All that its folder or file says of it."""
        return self.model.spec

    @property
    def calibrated(self) -> bool:
        """Whether its probabilities are calibrated."""
        return self.spec.temperature is not None

    @property
    def heatmap(self) -> bool:
        """Whether it can show where it looked."""
        return self.heat is not None


def load_subject(path: Path) -> Subject:
    """Read a model.

    Args:
        path: RUN_DIR/model, RUN_DIR, a model of the hub, or an exported file.

    Raises:
        UserError: it cannot be read.
    """
    if is_onnx(path) and (crop_of(load_onnx_spec(path).transforms) is not None or find_spec("torchvision") is None):
        return Subject(OnnxImageClassifier(path), printable(path.absolute().stem), _digest_of([path]), "cpu", None)
    from accel_flowers.serving.torch_model import TorchModel

    model = TorchModel(path)
    return Subject(model, _name_of(path), _digest_of(model.files), str(model.device), model.heat)


def _digest_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(f"'{file}' cannot be read: {error.strerror}.") from None
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _name_of(path: Path) -> str:
    """What people call it: a run's folder rather than the `model` in it."""
    place = path.absolute()
    if path.is_file():
        return printable(place.stem)
    return printable(place.parent.name if place.name == _MODEL_DIR and place.parent.name else place.name)
