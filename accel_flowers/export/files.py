"""The formats: how each is written, and how its file is asked, as a program that uses it would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import available_cores
from accel_flowers.export.graph import (
    describe,
    example_of,
    exportable,
    network_graph,
    refusals_are_told,
    with_picture_in,
)
from accel_flowers.export.int8 import quantize
from accel_flowers.export.parity import Answer, Bytes, Floats, pixels_of, reference, upright
from accel_flowers.export.pictures import Picture
from accel_flowers.inference.onnx_classifier import prepared
from accel_flowers.models.ecosystem import Crop, crop_of
from accel_flowers.models.onnx_graph import PICTURE, PIXELS, PROBABILITIES, open_session
from accel_flowers.models.saved import SavedModel

Format = Literal["onnx", "int8", "torch", "openvino"]
SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "int8": ".onnx", "torch": ".pt2", "openvino": ".xml"}
_AT_ONCE = 32


@dataclass(frozen=True)
class Exported:
    """A file that was written, and can be asked.

    Attributes:
        paths: of it; OpenVINO has two.
        network: pixels, uint8 [B, 3, H, W] → probabilities [B, C]; None where the file takes whole pictures.
        answer: encoded images → probabilities, end to end.
        made: an encoded image as the file prepares it; None where the program does that.
    """

    paths: tuple[Path, ...]
    network: Callable[[Bytes], Floats] | None
    answer: Answer
    made: Callable[[bytes], Bytes] | None = None


def write(
    saved: SavedModel,
    path: Path,
    how: Format,
    *,
    picture_in: bool,
    told: Mapping[str, str],
    calibration: Sequence[Picture],
) -> Exported:
    """Write a model as one file of a format.

    Args:
        saved: the model, on the CPU.
        path: of the file.
        how: the format.
        picture_in: whether the graph prepares pictures of any size; ONNX alone.
        told: metadata.
        calibration: pictures for int8.

    Raises:
        UserError: the network or the preparation cannot be exported so, or a library is not installed.
    """
    if how == "torch":
        return _torch(saved, path, told)
    _check_libraries(how)
    if how == "openvino":
        return _openvino(saved, path, told)
    return _onnx(
        saved,
        path,
        told,
        crop=_crop_for_graph(saved) if picture_in else None,
        calibration=calibration,
        int8=how == "int8",
    )


def _check_libraries(how: Format) -> None:
    import importlib.util

    wanted = {"onnx": "export", "onnxscript": "export", "onnxruntime": "export"} | (
        {"openvino": "openvino"} if how == "openvino" else {}
    )
    for name, extra in wanted.items():
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--format {how} needs {name}: pip install 'accel-flowers[{extra}]'")


def _crop_for_graph(saved: SavedModel) -> Crop:
    crop = crop_of(saved.spec.transforms)
    if crop is None:
        raise UserError(
            f"--picture-in: the model's transforms {list(saved.spec.transforms)} cannot be put into the graph; Resize of the shorter "
            "side with CenterCrop can, or Resize to a square. Leave --picture-in out, and prepare pictures before."
        )
    return crop


def _end_to_end(saved: SavedModel, network: Callable[[Bytes], Floats]) -> Answer:
    """From the file to the probabilities, as a program without torch does it; with the model's own transforms where they are others."""
    crop = crop_of(saved.spec.transforms)

    def answer(images: Sequence[bytes]) -> Floats:
        said = []
        for first in range(0, len(images), _AT_ONCE):
            some = images[first : first + _AT_ONCE]
            if crop is None:
                pixels = pixels_of(saved, [Picture("", data, None) for data in some])
            else:
                pixels = np.stack([prepared(data, crop) for data in some])
            said.append(network(pixels))
        return np.concatenate(said)

    return answer


def _onnx(
    saved: SavedModel,
    path: Path,
    told: Mapping[str, str],
    *,
    crop: Crop | None,
    calibration: Sequence[Picture],
    int8: bool,
) -> Exported:
    import onnx

    model = network_graph(saved)
    if int8:
        onnx.save(model, path)
        small = path.with_name("int8.onnx")
        pixels = pixels_of(saved, calibration)
        quantize(path, small, pixels, reference(saved, pixels))
        model = onnx.load(small)
        small.unlink()
    if crop is not None:
        model = with_picture_in(model, crop)
    describe(model, dict(told))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    session = open_session(str(path), num_threads=torch.get_num_threads())
    if crop is None:
        network = lambda pixels: session.run([PROBABILITIES], {PIXELS: pixels})[0]  # noqa: E731 - of two lines it would be no clearer
        return Exported((path,), network, _end_to_end(saved, network))

    def ask(data: bytes, output: str) -> Any:
        return session.run([output], {PICTURE: upright(data)})[0][0]

    return Exported(
        (path,),
        None,
        lambda images: np.stack([ask(data, PROBABILITIES) for data in images]),
        made=lambda data: ask(data, PIXELS),
    )


def _torch(saved: SavedModel, path: Path, told: Mapping[str, str]) -> Exported:
    module, example = exportable(saved), example_of(saved)
    with refusals_are_told(saved.spec.architecture, "a torch program"):
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path, extra_files=dict(told))
        loaded = torch.export.load(path).module()

    def network(pixels: Bytes) -> Floats:
        with torch.inference_mode():
            found: Floats = loaded(torch.from_numpy(pixels))[0].numpy()
        return found

    return Exported((path,), network, _end_to_end(saved, network))


def _openvino(saved: SavedModel, path: Path, told: Mapping[str, str]) -> Exported:
    import onnx
    import openvino

    graph = path.with_name("graph.onnx")
    onnx.save(network_graph(saved), graph)
    with refusals_are_told(saved.spec.architecture, "OpenVINO"):
        model = openvino.convert_model(graph)
        for name, text in told.items():
            model.set_rt_info(text, [name])
        openvino.save_model(model, path, compress_to_fp16=False)
        compiled = openvino.compile_model(
            path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": available_cores()}
        )
    graph.unlink()

    def network(pixels: Bytes) -> Floats:
        found: Floats = compiled({PIXELS: pixels})[PROBABILITIES]
        return found

    return Exported((path, path.with_suffix(".bin")), network, _end_to_end(saved, network))
