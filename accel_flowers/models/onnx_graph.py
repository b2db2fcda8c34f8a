"""An exported ONNX file: its names, what it says of itself, and how it is opened. Nothing here needs torch.

The file says by itself what it is (`accel_flowers` among its metadata); nothing of it is run but the graph, by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from accel_flowers.core.errors import UserError, error_text, printable
from accel_flowers.core.machine import available_cores
from accel_flowers.core.reading import check_permitted
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
EXTRA = "pip install 'accel-flowers[export]'"


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a model is named as an ONNX file."""
    return Path(path).suffix.lower() == SUFFIX


def open_session(graph: str | bytes, *, num_threads: int | None = None) -> onnxruntime.InferenceSession:
    """A graph that can be run on the CPU.

    Args:
        graph: a file, or its bytes.
        num_threads: of one operator; None = the cores of this machine.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"ONNX files need onnxruntime: {EXTRA}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or available_cores()
    options.log_severity_level = 3  # errors are raised, and the rest is not for users
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def load_onnx_spec(path: Path) -> ModelSpec:
    """What a file says of itself.

    Raises:
        UserError: no file, no ONNX, or none of this program; ONNX Runtime is not installed.
    """
    return spec_in(path, open_file(path))


def open_file(path: Path) -> onnxruntime.InferenceSession:
    """A file that can be run.

    Raises:
        UserError: no file, or no ONNX; ONNX Runtime is not installed.
    """
    check_permitted(path)
    if not os.path.isfile(path):
        raise UserError(f"There is no file '{path}'.")
    try:
        return open_session(str(path))
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own kinds of errors
        raise UserError(f"'{path}' is no ONNX file that can be run: {_line(error)}.") from None


def spec_in(path: Path, session: onnxruntime.InferenceSession) -> ModelSpec:
    """What an open file says of itself.

    Raises:
        UserError: it is none of this program.
    """
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


def check_ports(path: Path, session: onnxruntime.InferenceSession) -> str:
    """What the file takes: `PIXELS` or `PICTURE`.

    Raises:
        UserError: something else, or it gives something else.
    """
    inputs = [each.name for each in session.get_inputs()]
    outputs = {each.name for each in session.get_outputs()}
    if inputs not in ([PIXELS], [PICTURE]) or not {PROBABILITIES, LOGITS} <= outputs:
        raise UserError(f"'{path}' has other inputs and outputs than a file that accel-flowers export writes.")
    return str(inputs[0])


def _line(error: Exception) -> str:
    lines = error_text(error).strip().splitlines()
    return printable(lines[0]).rstrip(".") if lines else type(error).__name__


def metadata_of(spec: ModelSpec) -> str:
    """The spec as a file carries it: float32, and without the scores, which hold a line for each class."""
    return json.dumps(spec.model_dump(mode="json", exclude={"scores", "parts"}), ensure_ascii=False)
