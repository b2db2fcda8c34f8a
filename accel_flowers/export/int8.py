"""Post-training quantisation: weights and activations of an ONNX graph as 8-bit integers.

Weights have a scale for each output channel: with one for the whole tensor a network of depthwise convolutions agreed with itself on
2 of 100 pictures, with one for each channel on 88 (1,000 classes). Activations have their range from calibration pictures, in one of
several ways of which the pictures that are kept back choose: the whole range serves ResNets, and a range that leaves out the largest
values serves networks of inverted residuals, whose few large ones would make all others coarse.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.export.parity import Bytes, Floats
from accel_flowers.models.onnx_graph import PIXELS, PROBABILITIES, open_session

_AT_ONCE = 8
_OPERATORS = ("Conv", "MatMul", "Gemm")
"""What takes the time. Additions and activations stay in float, where their rounding would cost accuracy and win little."""
_WAYS: tuple[tuple[str, str, float | None], ...] = (
    ("the whole range", "MinMax", None),
    ("99.99 % of the values", "Percentile", 99.99),
    ("99.9 % of the values", "Percentile", 99.9),
)
"""In words, ONNX Runtime's method, and its percentile: the range of each activation."""
_log = logging.getLogger(__name__)


def quantize(model: Path, out: Path, pixels: Bytes, said: Floats) -> None:
    """Write the int8 graph (QDQ: quantise, compute, dequantise) that is nearest to the float one.

    Args:
        model: a float graph from `PIXELS` on.
        out: file of the new one.
        pixels: of the calibration pictures, uint8 [N, 3, H, W]; two thirds give the ranges, the others choose the way.
        said: what the model says of them, probabilities [N, C].
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_name("ready.onnx")
    with _silence():
        quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    cut = 2 * len(pixels) // 3
    cut -= cut % _AT_ONCE if cut > _AT_ONCE else 0  # histograms want batches of one size
    apart: dict[str, float] = {}
    for words, method, percentile in _WAYS:
        trial = out.with_name("trial.onnx")
        with _silence():
            _write(ready, trial, pixels[:cut], method, percentile)
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
    _log.info(f"int8: activations have {chosen} as their range (mean difference of probabilities: {told})")


def _asking(session: Any) -> Callable[[Bytes], Floats]:
    def ask(pixels: Bytes) -> Floats:
        said = [
            session.run([PROBABILITIES], {PIXELS: pixels[first : first + _AT_ONCE]})[0]
            for first in range(0, len(pixels), _AT_ONCE)
        ]
        return np.concatenate(said)

    return ask


def _write(ready: Path, out: Path, pixels: Bytes, method: str, percentile: float | None) -> None:
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
        op_types_to_quantize=list(_OPERATORS),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=getattr(quantization.CalibrationMethod, method),
        extra_options={} if percentile is None else {"CalibPercentile": percentile},
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
