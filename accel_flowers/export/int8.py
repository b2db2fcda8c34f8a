"""Post-training quantisation: weights and activations of an ONNX graph as 8-bit integers.

Weights have a scale for each output channel: with one for the whole tensor a network of depthwise convolutions agreed with itself on
2 of 100 pictures, with one for each channel on 88 (1,000 classes). Activations have the range that calibration pictures show. Which operators
compute in integers is tried, and the pictures that are kept back choose: between a convolution and its ReLU6 the range is of numbers
that the ReLU6 cuts off, so networks of inverted residuals want both in one piece; ResNets are nearer to float with their
additions left in it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.export.parity import Bytes, Floats
from accel_flowers.models.onnx_graph import PIXELS, PROBABILITIES, open_session

_AT_ONCE = 8
_WAYS: dict[str, tuple[str, ...] | None] = {
    "all operators": None,
    "convolutions and matrix products": ("Conv", "MatMul", "Gemm"),
}
"""In words, and the operators that compute in integers; None = all that can. Ranges that leave out the largest values, and those of the least
entropy, were tried, too: no nearer on EfficientNet-Lite0 and ResNet-18, and five to thirty times as slow."""
_log = logging.getLogger(__name__)


def quantize(model: Path, out: Path, pixels: Bytes, said: Floats) -> None:
    """Write the int8 graph (QDQ: quantise, compute, dequantise) that is nearest to the float one.

    Args:
        model: a float graph from `PIXELS` on.
        out: file of the new one.
        pixels: of the calibration pictures, uint8 [N, 3, H, W]; two thirds give the ranges, the others choose the operators.
        said: what the model says of them, probabilities [N, C].
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_name("ready.onnx")
    with _silence():
        quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    cut = 2 * len(pixels) // 3
    apart: dict[str, float] = {}
    for words, operators in _WAYS.items():
        trial = out.with_name("trial.onnx")
        with _silence():
            _write(ready, trial, pixels[:cut], operators)
        session = open_session(str(trial))
        ask = _asking(session)
        apart[words] = float(np.abs(ask(pixels[cut:]) - said[cut:]).mean())
        if apart[words] == min(apart.values()):
            trial.replace(out)
        else:
            trial.unlink()
    ready.unlink()
    chosen = min(apart, key=lambda words: apart[words])
    told = ", ".join(f"{words} {value:.2g}" for words, value in apart.items())
    _log.info(f"int8: {chosen} compute in integers (mean difference of probabilities: {told})")


def _asking(session: Any) -> Callable[[Bytes], Floats]:
    def ask(pixels: Bytes) -> Floats:
        said = [
            session.run([PROBABILITIES], {PIXELS: pixels[first : first + _AT_ONCE]})[0]
            for first in range(0, len(pixels), _AT_ONCE)
        ]
        return np.concatenate(said)

    return ask


def _write(ready: Path, out: Path, pixels: Bytes, operators: Sequence[str] | None) -> None:
    from onnxruntime import quantization

    batches: Iterator[Bytes] = iter(np.split(pixels, range(_AT_ONCE, len(pixels), _AT_ONCE)))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Bytes] | None:
            batch = next(batches, None)
            return None if batch is None else {PIXELS: batch}

    quantization.quantize_static(
        str(ready),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(operators) if operators else None,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """ONNX Runtime's tools print and log as they go."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
