"""A saved model → an ONNX graph: uint8 pixels, or a whole picture, in; probabilities and scores out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel_flowers.core.errors import UserError, error_text, printable
from accel_flowers.models.answers import probabilities_of
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.ecosystem import Crop
from accel_flowers.models.onnx_graph import LOGITS, PICTURE, PIXELS, PROBABILITIES
from accel_flowers.models.saved import SavedModel

OPSET = 20
"""Of the graphs: Resize has an antialiasing filter from 18 on."""
_FILTERS = {"bilinear": "linear", "bicubic": "cubic"}
_PILLOWS_CUBIC = -0.5
"""The coefficient of Pillow's bicubic filter; ONNX's own is -0.75."""


class TwoAnswers(nn.Module):
    """A classifier that says its scores, too: what `evaluate` needs beside probabilities.

    Args:
        classifier: on the CPU.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] → probabilities and scores, float32 [B, C]."""
        logits = self.classifier.logits(pixels)
        scaled = logits / self.classifier.temperature
        return probabilities_of(scaled, several=self.classifier.several), logits


def exportable(saved: SavedModel) -> TwoAnswers:
    """The module that is exported, of a model folder."""
    assert isinstance(saved.classifier, Classifier)
    return TwoAnswers(saved.classifier).eval()


def example_of(saved: SavedModel) -> Tensor:
    """Two images of the network's size, uint8 [2, 3, H, W]: with one, a batch would be taken for a constant."""
    from PIL import Image

    pixels = saved.transform(Image.new("RGB", (64, 64)))
    return pixels[None].repeat(2, 1, 1, 1).contiguous()


@contextmanager
def refusals_are_told(architecture: str, what: str) -> Iterator[None]:
    """Turn an exporter's refusal into a message: which of many errors it is depends on the network."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - the exporters raise errors of any kind
        lines = [line.strip() for line in error_text(error).strip().splitlines() if line.strip()]
        told = printable(lines[0])[:400].rstrip(".") if lines else type(error).__name__
        raise UserError(f"{architecture} cannot be exported as {what}: {type(error).__name__}: {told}.") from None


def network_graph(saved: SavedModel) -> Any:
    """The graph from pixels on, an `onnx.ModelProto`.

    Raises:
        UserError: the network cannot be exported.
    """
    module, example = exportable(saved), example_of(saved)
    with refusals_are_told(saved.spec.architecture, "ONNX"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[PIXELS],
            output_names=[PROBABILITIES, LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def with_picture_in(network: Any, crop: Crop) -> Any:
    """The same graph behind one that prepares a picture of any size, uint8 [height, width, 3]; `PIXELS` is an output, too.

    Args:
        network: from `network_graph`.
        crop: how the picture is prepared.

    Raises:
        UserError: a preparation that is not expressible.
    """
    from onnx import compose

    if crop.interpolation not in _FILTERS:
        raise UserError(
            f"--picture-in: the filter {crop.interpolation} cannot be put into the graph, only {' and '.join(_FILTERS)}."
        )
    if not crop.squash and crop.resize < max(crop.size):
        raise UserError("--picture-in: a crop that is larger than the resized picture cannot be put into the graph.")
    return compose.merge_models(
        _preparation(crop, ir_version=network.ir_version),
        network,
        io_map=[(PIXELS, PIXELS)],
        outputs=[PIXELS, PROBABILITIES, LOGITS],
    )


def _preparation(crop: Crop, *, ir_version: int) -> Any:
    """The graph from a picture to pixels: as Pillow resizes and torchvision cuts, within a grey level."""
    from onnx import TensorProto, helper, numpy_helper

    height, width = crop.size
    numbers = {
        "zero": np.array([0]), "two": np.array([2]), "of_image": np.array([2, 3]), "one_rgb": np.array([1, 3]),
        "shorter": np.array([crop.resize]), "cut": np.array([height, width]), "half": np.array([0.5], dtype=np.float32),
    }  # fmt: skip
    node = helper.make_node
    # torchvision's sizes: the longer side is floor(resize * longer / shorter), the cut begins at round(rest / 2), half to even.
    sizes = [
        node("Shape", ["picture_planes"], ["picture_shape"]),
        node("Slice", ["picture_shape", "picture_two", "picture_four"], ["picture_sides"]),
        node("ReduceMin", ["picture_sides"], ["picture_short"], keepdims=1),
        node("Mul", ["picture_sides", "picture_shorter"], ["picture_scaled"]),
        node("Div", ["picture_scaled", "picture_short"], ["picture_new"]),
    ]
    if crop.squash:
        sizes = [node("Identity", ["picture_cut"], ["picture_new"])]
    else:
        numbers["four"] = np.array([4])
    nodes = [
        node("Transpose", [PICTURE], ["picture_chw"], perm=[2, 0, 1]),
        node("Unsqueeze", ["picture_chw", "picture_zero"], ["picture_planes"]),
        *sizes,
        node("Concat", ["picture_one_rgb", "picture_new"], ["picture_size"], axis=0),
        node(
            "Resize",
            ["picture_planes", "", "", "picture_size"],
            ["picture_resized"],
            mode=_FILTERS[crop.interpolation],
            antialias=1,
            exclude_outside=1,  # at the edges Pillow weighs what there is
            coordinate_transformation_mode="half_pixel",
            cubic_coeff_a=_PILLOWS_CUBIC,
        ),
        node("Sub", ["picture_new", "picture_cut"], ["picture_rest"]),
        node("Cast", ["picture_rest"], ["picture_rest_float"], to=TensorProto.FLOAT),
        node("Mul", ["picture_rest_float", "picture_half"], ["picture_half_rest"]),
        node("Round", ["picture_half_rest"], ["picture_rounded"]),
        node("Cast", ["picture_rounded"], ["picture_start"], to=TensorProto.INT64),
        node("Add", ["picture_start", "picture_cut"], ["picture_end"]),
        node("Slice", ["picture_resized", "picture_start", "picture_end", "picture_of_image"], [PIXELS]),
    ]
    graph = helper.make_graph(
        nodes,
        "preparation",
        [helper.make_tensor_value_info(PICTURE, TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [1, 3, height, width])],
        [numpy_helper.from_array(value, f"picture_{name}") for name, value in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=ir_version)


def describe(model: Any, told: dict[str, str]) -> None:
    """Write metadata into a graph, over what stands there under the same names.

    Args:
        model: an `onnx.ModelProto`.
        told: name → text.
    """
    kept = [entry for entry in model.metadata_props if entry.key not in told]
    del model.metadata_props[:]
    for entry in kept:
        model.metadata_props.add(key=entry.key, value=entry.value)
    for name, text in told.items():
        model.metadata_props.add(key=name, value=text)


def preparation_of(crop: Crop | None) -> str:
    """How an image is prepared, as JSON for programs that know nothing of this one; "null" where it is no resize and crop."""
    if crop is None:
        return "null"
    return json.dumps(
        {"resize": crop.resize, "size": list(crop.size), "interpolation": crop.interpolation, "squash": crop.squash}
    )
