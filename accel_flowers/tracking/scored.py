"""A scored part, and what trackers show of it beside the curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.metrics.classification import Predictions

WORST_PICTURES = 16
MOST_CURVES = 50
"""Classes up to which each has a curve of its own."""
THUMBNAIL = 224
"""Pixels of the longer side."""


@dataclass(frozen=True)
class Scored:
    """A look at one part: what dashboards show of it beside the curves."""

    part: str
    predictions: Predictions
    scores: dict[str, Any]
    """Of `summarize`."""
    class_names: tuple[str, ...]
    images: ImageDataset

    def served_with(self, fitted: Mapping[str, Any]) -> Scored:
        """The same part as a model with these settings tells it: thresholds change what is said, a temperature does not."""
        if fitted.get("thresholds") is None:
            return self
        predictions = self.predictions.with_thresholds(fitted["thresholds"])
        return replace(self, predictions=predictions, scores=predictions.summarize(self.class_names))

    @property
    def pairs(self) -> tuple[str, npt.NDArray[np.int64]]:
        """The table of class against class that these images have, [C, C], and its name: "confusion_matrix" (rows: true class), or,
        where an image may have several labels, "cooccurrence" (images that have both)."""
        name = "confusion_matrix" if "confusion_matrix" in self.scores else "cooccurrence"
        return name, np.asarray(self.scores[name], dtype=np.int64)

    def curves_of_classes(self) -> dict[str, float]:
        """Class → F1, for curves; nothing where there are too many classes for a page of them."""
        per_class = self.scores["per_class"]
        few = len(per_class) <= MOST_CURVES
        return {name: float(row["f1"]) for name, row in per_class.items()} if few else {}

    def worst(self, count: int) -> list[int]:
        """Sample numbers of the images with the highest loss, the worst first."""
        return [int(sample) for sample in np.argsort(-self.predictions.losses, kind="stable")[:count]]

    def thumbnail(self, sample: int) -> Image.Image:
        """A small copy of an image; grey where it cannot be read any more."""
        try:
            image = self.images.image(sample).copy()
        except BadImageError:
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    def rows_of_worst(self, count: int) -> list[tuple[int, str, str, str, float, float]]:
        """(sample, file, class, predicted class, its probability, loss) of the worst images."""
        rows = []
        for sample in self.worst(count):
            told = self.predictions.describe(sample, self.class_names)
            rows.append((sample, self.images.files[sample], *told, float(self.predictions.losses[sample])))
        return rows
