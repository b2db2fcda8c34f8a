"""Where the network looked, as a picture in an answer."""

from __future__ import annotations

import base64
import io
from typing import Any

from torch import Tensor, nn

from accel_flowers.inference.image_classifier import ImageClassifier
from accel_flowers.report.cam import Explainer, overlay

NOT_AVAILABLE = "Where the network looked is not available for this file: it takes gradients, which only a model folder (RUN_DIR/model) gives."


class HeatMaps:
    """Makes them; to be called by the thread that owns the network.

    Args:
        model: what is asked.
    """

    def __init__(self, model: ImageClassifier) -> None:
        saved: Any = model.saved  # a `SavedModel`, where there are gradients
        self._explainer = Explainer(saved) if has_gradients(model) else None

    def of(self, pixels: Tensor, label: int) -> str:
        """A picture (`data:image/png`) of what the network saw, coloured where it looked.

        Args:
            pixels: uint8 [3, H, W], as the transform makes them.
            label: number of the class that is explained.
        """
        assert self._explainer is not None, "asked for where there are none"
        heat = self._explainer.heat(pixels[None], [label])[0]
        stream = io.BytesIO()
        overlay(pixels, heat).save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def has_gradients(model: ImageClassifier) -> bool:
    """Whether there is a network of torch behind a model, whose gradients say where it looked."""
    network = getattr(model.saved.classifier, "network", None)
    return isinstance(network, nn.Module) and next(network.parameters(), None) is not None
