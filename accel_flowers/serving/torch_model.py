"""A model folder behind a server: torch computes, and its gradients say where the network looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accel_flowers.inference.image_classifier import load_model
from accel_flowers.inference.prediction import Prediction
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, model_folder
from accel_flowers.models.spec import ModelSpec
from accel_flowers.report.cam import Explainer, overlay


class TorchModel:
    """A model as `serving.subject.Model` wants it.

    Args:
        path: RUN_DIR/model, RUN_DIR, a model of the hub, or an exported file whose transforms are torchvision's.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._model = load_model(path)
        self.files = [path] if path.is_file() else [model_folder(path) / name for name in (WEIGHTS, SPEC_FILE)]
        self.device: torch.device = self._model.device
        saved = self._model.saved
        self._explainer = Explainer(saved) if saved.backbone is not None else None
        self.heat = self._heat if self._explainer else None

    @property
    def spec(self) -> ModelSpec:
        """All that its folder says of it."""
        return self._model.spec

    def read(self, data: bytes, name: str) -> Tensor:
        """See `ImageClassifier.read`."""
        return self._model.read(data, name)

    def probabilities(self, images: Sequence[Tensor]) -> npt.NDArray[np.float32]:
        """Of each class, float32 [B, C]."""
        found: npt.NDArray[np.float32] = self._model.probabilities(images).cpu().numpy()
        return found

    def answer(self, name: str, told: Sequence[tuple[int, float]], top_k: int | None) -> Prediction:
        """See `answer_of`."""
        return self._model.answer(name, told, top_k)

    def _heat(self, pixels: Tensor, label: int) -> str:
        assert self._explainer is not None
        heat = self._explainer.heat(pixels[None], [label])[0]
        stream = io.BytesIO()
        overlay(pixels, heat).save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
