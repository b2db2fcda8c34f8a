"""An exported ONNX file as a saved model: what predicts and is scored takes it as it takes a `model/` folder.

A file that takes whole pictures is taken apart where its pixels are ready: its own preparation then stands where else the transforms do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.core.errors import UserError, error_text
from accel_flowers.data.decoding.jpeg import decode_pixels
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.models.onnx_graph import (
    EXTRA,
    LOGITS,
    PICTURE,
    PIXELS,
    PROBABILITIES,
    check_ports,
    open_file,
    open_session,
    spec_in,
)
from accel_flowers.models.spec import ModelSpec

if TYPE_CHECKING:
    import onnxruntime


class OnnxNetwork(nn.Module):
    """Images → scores, as a module: what ONNX Runtime computes.

    Args:
        session: of a graph from `PIXELS` on.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._session = session

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → the mean of the scores over the views, float32 [B, C]."""
        return self.run(LOGITS, pixels)

    def run(self, output: str, pixels: Tensor) -> Tensor:
        """One of the graph's outputs, on the device of the images."""
        (found,) = self._session.run([output], {PIXELS: np.ascontiguousarray(pixels.cpu().numpy())})
        return torch.from_numpy(found).to(pixels.device)


class OnnxClassifier(nn.Module):
    """The counterpart of `Classifier`.

    Args:
        network: the graph.
        tta: the views that are built into it.
    """

    def __init__(self, network: OnnxNetwork, tta: Tta) -> None:
        super().__init__()
        self.network, self.tta, self.normalizer = network, tta, nn.Identity()

    @property
    def views(self) -> OnnxNetwork:
        """Images → the mean of the network's scores over their views."""
        return self.network

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → scores, float32 [B, C]."""
        scores: Tensor = self.network(pixels)
        return scores

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → probabilities, float32 [B, C]."""
        return self.network.run(PROBABILITIES, pixels)


class GraphTransform(ImageTransform):
    """The preparation that a file brings with it: upright RGB images → uint8 [3, H, W].

    Args:
        graph: from `PICTURE` to `PIXELS`, as bytes, so that loader workers can have it, too.
    """

    def __init__(self, graph: bytes) -> None:
        super().__init__(())
        self._graph = graph
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def __call__(self, image: Image.Image) -> Tensor:
        return self._run(np.asarray(image))

    def of_file(self, data: bytes, name: str, key: int = 0) -> Tensor:
        return self.of_pixels(decode_pixels(data, name), name, key)

    def of_pixels(self, pixels: Tensor, name: str, key: int = 0) -> Tensor:  # noqa: ARG002 - there is no chance in it
        try:
            return self._run(pixels.numpy())
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own kinds of errors
            height, width = pixels.shape[:2]
            raise BadImageError(
                name, f"its {width} x {height} pixels cannot be transformed: {error_text(error)}"
            ) from None

    def _run(self, picture: np.ndarray) -> Tensor:
        if self._session is None:
            self._session = open_session(self._graph, num_threads=1)
        (pixels,) = self._session.run([PIXELS], {PICTURE: np.ascontiguousarray(picture)})
        return torch.from_numpy(pixels[0])


def load_onnx(path: Path) -> tuple[ModelSpec, OnnxClassifier, ImageTransform]:
    """A file as spec, classifier and what prepares images for it.

    Raises:
        UserError: as `load_onnx_spec`.
    """
    session = open_file(path)
    spec = spec_in(path, session)
    if check_ports(path, session) == PIXELS:
        transform, _ = build_transform(spec.transforms, field=f"{path}: transforms")
    else:
        preparation, rest = _taken_apart(path)
        transform, session = GraphTransform(preparation), open_session(rest)
    return spec, OnnxClassifier(OnnxNetwork(session), spec.tta).eval(), transform


def _taken_apart(path: Path) -> tuple[bytes, bytes]:
    """The graph up to the network's pixels, and from there on."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"An ONNX file that takes whole pictures needs onnx: {EXTRA}") from None
    extractor = onnx.utils.Extractor(onnx.load(path))
    preparation = extractor.extract_model([PICTURE], [PIXELS])
    rest = extractor.extract_model([PIXELS], [PROBABILITIES, LOGITS])
    rest.graph.input[0].type.tensor_type.shape.dim[
        0
    ].dim_param = "batch"  # one picture made one image, but here are many
    del rest.graph.value_info[:]
    return preparation.SerializeToString(), rest.SerializeToString()
