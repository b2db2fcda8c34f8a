"""An exported ONNX file that is asked without torch: what a server needs of a model.

Images are prepared by Pillow, or by the file itself. For the transforms that are no resize and crop torchvision is needed; then this
says so, and whoever has it asks the file through `ImageClassifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding.pillow import decode_image
from accel_flowers.inference.prediction import Prediction, answer_of
from accel_flowers.models.ecosystem import Crop, crop_of
from accel_flowers.models.onnx_graph import PICTURE, PIXELS, PROBABILITIES, check_ports, open_file, spec_in

Bytes = npt.NDArray[np.uint8]


def prepared(data: bytes, crop: Crop, name: str = "") -> Bytes:
    """An encoded image as Pillow prepares it, uint8 [3, H, W]: `scripts/onnx_predict.py` does the same.

    Raises:
        BadImageError: it cannot be read.
    """
    image = decode_image(data, name)
    height, width = crop.size
    if crop.squash:
        size = (width, height)
    else:
        short = min(image.size)
        size = (int(crop.resize * image.width / short), int(crop.resize * image.height / short))
    image = image.resize(size, Image.Resampling[crop.interpolation.upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)


class OnnxImageClassifier:
    """A file, open.

    Args:
        path: of it.

    Raises:
        UserError: it is no file of this program, or prepares images in a way that takes torchvision.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_file(path)
        self.spec = spec_in(path, self._session)
        self._takes = check_ports(path, self._session)
        self._crop = crop_of(self.spec.transforms)
        if self._takes == PIXELS and self._crop is None:
            raise UserError(
                f"'{path}' has images prepared by {list(self.spec.transforms)}, for which torch and torchvision are needed: install them, "
                "or export it with --picture-in."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """What an image can be taken for."""
        return self.spec.class_names

    def read(self, data: bytes, name: str) -> Bytes:
        """An encoded image as the file takes it, uint8: [3, H, W], or a whole picture [height, width, 3]; from any thread.

        Raises:
            BadImageError: it cannot be read.
        """
        if self._takes == PICTURE or self._crop is None:
            return np.asarray(decode_image(data, name))
        return prepared(data, self._crop, name)

    def probabilities(self, images: Sequence[Bytes]) -> npt.NDArray[np.float32]:
        """Of each class, float32 [B, C], of images as `read` gives them."""
        if self._takes == PIXELS:
            found: npt.NDArray[np.float32] = self._session.run([PROBABILITIES], {PIXELS: np.stack(images)})[0]
            return found
        return np.concatenate([self._session.run([PROBABILITIES], {PICTURE: image})[0] for image in images])

    def answer(self, name: str, told: Sequence[tuple[int, float]], top_k: int | None) -> Prediction:
        """See `answer_of`."""
        return answer_of(self.spec, name, told, top_k)
