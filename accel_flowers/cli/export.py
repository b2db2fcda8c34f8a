"""`export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.distributed.environment import is_left_out


@dataclass(frozen=True)
class _ExportWords:
    """Write a model as one file for other programs, and prove on real pictures that it answers as the model does.

    Nothing is written where it does not.
    """

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    out: Path
    """The file: .onnx, .pt2 (torch) or .xml (openvino, with a .bin beside it)."""
    format: Literal["onnx", "int8", "torch", "openvino"] | None = None
    """None = by the suffix of --out. onnx: for ONNX Runtime and whatever reads ONNX; int8: the same in 8-bit integers, a quarter as large; torch: torch.export's program; openvino: for Intel's processors."""
    picture_in: bool = False
    """The file takes a whole picture of any size, uint8 [height, width, 3], and prepares it itself; onnx and int8."""
    size: int | None = None
    """Side of the network's input in pixels, where that shall be another than the model's: a smaller one is quicker and less accurate; score it with evaluate."""
    data: str | None = None
    """Pictures to compare on: a folder with or without classes, a zip or a dataset; None = the validation pictures of the model's run."""
    pictures: int = 100
    """Pictures that are compared; int8 is measured on all, up to 2,000."""
    calibration_pictures: int = 200
    """Pictures of training that int8 takes the ranges of its activations from."""
    accept_loss: float = 1.0
    """Points of accuracy that int8 may cost."""
    seed: int = 0
    """What the pictures are drawn from."""
    json: bool = False
    """Tell it as JSON."""


_EXPORT_ANSWERS = {"--int8": "--format int8"}


def export_command(words: Sequence[str]) -> int:
    asked = parse_words(_ExportWords, words, "export", answers=_EXPORT_ANSWERS)
    if is_left_out():
        return 0
    from accel_flowers.export.export import export
    from accel_flowers.export.text import describe_export

    result = export(
        asked.model_dir,
        asked.out,
        asked.format,
        picture_in=asked.picture_in,
        size=asked.size,
        data=asked.data,
        num_pictures=asked.pictures,
        num_calibration=asked.calibration_pictures,
        accept_loss=asked.accept_loss,
        seed=asked.seed,
    )
    write_result(json.dumps(result.as_json(), indent=1) if asked.json else describe_export(result))
    return 0
