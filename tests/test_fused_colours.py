"""Colours in two kernels: the same levels as one operation after the other, and machine code for every GPU that is supported."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from accel_flowers.data.transforms.gpu import colour
from tests.runs import PROJECT

IN_PYTHON = """
import torch
from torchvision.transforms import v2
from accel_flowers.data.transforms.gpu import colour, fused

cpu = torch.device("cpu")
print("all", colour.share_that_differs(fused.jitter, cpu))
pixels = torch.randint(256, (8, 3, 37, 41), dtype=torch.uint8)
for arguments in ({"hue": 0.5}, {"brightness": 0.5}, {"contrast": (0.2, 3)}, {"saturation": 0.9, "hue": 0.2}):
    step = colour.ColorJitter(v2.ColorJitter(**arguments))
    numbers = torch.tensor([step.numbers() for _ in pixels], dtype=torch.float64)
    usual = step.paint(pixels, numbers)
    colour.quickest_jitter = lambda device: fused.jitter
    made = step.paint(pixels, numbers)
    colour.quickest_jitter = lambda device: colour.jitter
    assert (made != pixels).any()
    print(*arguments, (made != usual).float().mean().item())
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from accel_flowers.data.transforms.gpu.fused import _jitter

types = {"pixels": "*u8", "made": "*u8", "numbers": "*fp64", "sums": "*i64", "hues": "*u8", "saturations": "*fp32", "shares": "*fp32"}
types |= {"num_pixels": "i32", "row_stride": "i32", "num_columns": "i32"}
for capability in (75, 90):
    for sums_up in (True, False):
        fixed = {"num_blends": 3, "num_slots": 7, "with_hue": True, "sums_up": sums_up, "block": 1024}
        source = ASTSource(
            fn=_jitter, signature={**types, **dict.fromkeys(fixed, "constexpr")},
            constexprs={(_jitter.arg_names.index(name),): value for name, value in fixed.items()},
        )
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        print(capability, len(made.asm["cubin"]) > 0, made.asm["ptx"].count("fma.rn"))
"""


def python(script: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_levels_are_those_of_one_operation_after_the_other(tmp_path: object) -> None:
    """To the bit, as Triton's interpreter computes them; in a process of its own, because that is chosen at the import."""
    pytest.importorskip("triton")
    lines = python(IN_PYTHON, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))
    assert len(lines) == 5
    assert all(line.split()[-1] == "0.0" for line in lines), lines


@pytest.mark.slow
def test_it_is_compiled_without_a_gpu(tmp_path: object) -> None:
    """For an old and a new GPU, and no product is rounded together with a sum."""
    pytest.importorskip("triton")
    lines = python(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert lines == ["75 True 0", "75 True 0", "90 True 0", "90 True 0"]


def test_a_cpu_takes_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert colour.quickest_jitter(torch.device("cpu")) is colour.jitter
    assert not caplog.records
    assert colour.share_that_differs(colour.jitter, torch.device("cpu")) == 0


def test_other_levels_are_seen() -> None:
    """What would be refused on a GPU: each level one too low."""

    def wrong(*given: object, **options: object) -> torch.Tensor:
        return colour.jitter(*given, **options).sub(1)  # type: ignore[arg-type]

    assert colour.share_that_differs(wrong, torch.device("cpu")) > 0.5
