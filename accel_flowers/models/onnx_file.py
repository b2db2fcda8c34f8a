"""An exported ONNX file as a saved model: what predicts and is scored takes it as it takes a `model/` folder.

The file says by itself what it is (`accel_flowers` among its metadata); nothing of it is run but the graph, by ONNX Runtime on the CPU.
A file that takes whole pictures is taken apart where its pixels are ready: its own preparation then stands where else the transforms do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from accel_flowers.config.schema import Tta
from accel_flowers.core.errors import UserError, error_text, printable
from accel_flowers.core.machine import available_cores
from accel_flowers.core.reading import check_permitted
from accel_flowers.data.decoding.jpeg import decode_pixels
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.transforms.build import ImageTransform, build_transform
from accel_flowers.models.spec import ModelSpec

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".onnx"
PIXELS, PICTURE = "pixels", "picture"
"""Inputs: uint8 [B, 3, H, W] of the network's size; uint8 [height, width, 3] of any size."""
PROBABILITIES, LOGITS = "probabilities", "logits"
"""Outputs, float32 [B, C]; the second before the temperature."""
METADATA = "accel_flowers"
"""Key of the spec among the file's metadata."""
_EXTRA = "pip install 'accel-flowers[export]'"


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a model is named as an ONNX file."""
    return Path(path).suffix.lower() == SUFFIX


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


def open_session(graph: str | bytes, *, num_threads: int | None = None) -> onnxruntime.InferenceSession:
    """A graph that can be run on the CPU.

    Args:
        graph: a file, or its bytes.
        num_threads: of one operator; None = the cores of this machine.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"ONNX files need onnxruntime: {_EXTRA}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or available_cores()
    options.log_severity_level = 3  # errors are raised, and the rest is not for users
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def load_onnx_spec(path: Path) -> ModelSpec:
    """What a file says of itself.

    Raises:
        UserError: no file, no ONNX, or none of this program; ONNX Runtime is not installed.
    """
    return _spec_of(path, _open(path))


def load_onnx(path: Path) -> tuple[ModelSpec, OnnxClassifier, ImageTransform]:
    """A file as spec, classifier and what prepares images for it.

    Raises:
        UserError: as `load_onnx_spec`.
    """
    session = _open(path)
    spec = _spec_of(path, session)
    inputs = [each.name for each in session.get_inputs()]
    outputs = {each.name for each in session.get_outputs()}
    if inputs not in ([PIXELS], [PICTURE]) or not {PROBABILITIES, LOGITS} <= outputs:
        raise UserError(f"'{path}' has other inputs and outputs than a file that accel-flowers export writes.")
    if inputs == [PIXELS]:
        transform, _ = build_transform(spec.transforms, field=f"{path}: transforms")
    else:
        preparation, rest = _taken_apart(path)
        transform, session = GraphTransform(preparation), open_session(rest)
    return spec, OnnxClassifier(OnnxNetwork(session), spec.tta).eval(), transform


def _open(path: Path) -> onnxruntime.InferenceSession:
    check_permitted(path)
    if not os.path.isfile(path):
        raise UserError(f"There is no file '{path}'.")
    try:
        return open_session(str(path))
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own kinds of errors
        raise UserError(f"'{path}' is no ONNX file that can be run: {_line(error)}.") from None


def _spec_of(path: Path, session: onnxruntime.InferenceSession) -> ModelSpec:
    told = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if told is None:
        raise UserError(
            f"'{path}' does not say that it is of this program: give a file that accel-flowers export wrote, for only these "
            "know their classes and how images are prepared for them."
        )
    try:
        return ModelSpec.model_validate_json(told)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the whole"
        raise UserError(f"'{path}' is damaged or not of this program: {METADATA}: {place}: {first['msg']}.") from None


def _taken_apart(path: Path) -> tuple[bytes, bytes]:
    """The graph up to the network's pixels, and from there on."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"An ONNX file that takes whole pictures needs onnx: {_EXTRA}") from None
    extractor = onnx.utils.Extractor(onnx.load(path))
    preparation = extractor.extract_model([PICTURE], [PIXELS])
    rest = extractor.extract_model([PIXELS], [PROBABILITIES, LOGITS])
    rest.graph.input[0].type.tensor_type.shape.dim[
        0
    ].dim_param = "batch"  # one picture made one image, but here are many
    del rest.graph.value_info[:]
    return preparation.SerializeToString(), rest.SerializeToString()


def _line(error: Exception) -> str:
    lines = error_text(error).strip().splitlines()
    return printable(lines[0]).rstrip(".") if lines else type(error).__name__


def metadata_of(spec: ModelSpec) -> str:
    """The spec as a file carries it: float32, and without the scores, which hold a line for each class."""
    return json.dumps(spec.model_dump(mode="json", exclude={"scores", "parts"}), ensure_ascii=False)
