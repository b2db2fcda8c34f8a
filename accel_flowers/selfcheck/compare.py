"""Two run directories side by side: equal to the bit, or losses that agree."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from accel_flowers.tracking.run_dir import METRICS_FILE, read_metrics

LOSSES = ("train/loss", "val/loss", "val_ema/loss", "test/loss")


def differences(one: Path, other: Path) -> list[str]:
    """What two finished run directories differ in, bit by bit; of the lines all but their speed."""
    import torch

    found = []
    for which in ("last", "best"):
        a, b = (run_dir / "checkpoints" / which for run_dir in (one, other))
        if os.readlink(a) != os.readlink(b):
            found.append(f"{which}: {os.readlink(a)} and {os.readlink(b)}")
        if {file.name for file in a.iterdir()} != {file.name for file in b.iterdir()}:
            found.append(f"files in {which}")
            continue
        for file in sorted(file.name for file in a.iterdir() if file.name not in ("optimizer.pt", "manifest.json")):
            if (a / file).read_bytes() != (b / file).read_bytes():
                found.append(f"{which}/{file}")
        saved, again = (torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu") for path in (a, b))
        if not _same(saved, again):
            found.append(f"{which}/optimizer.pt")
    for file in ("split.json", "model/model.safetensors", "model/config.json", "predictions.parquet"):
        if (one / file).read_bytes() != (other / file).read_bytes():
            found.append(file)
    if lines(one) != lines(other):
        found.append(METRICS_FILE)
    return found


def far_apart(one: Path, other: Path, tolerance: float = 1e-5) -> list[str]:
    """What two runs differ in that need not be equal to the bit: steps, rates, or losses by more than the tolerance."""
    a, b = lines(one), lines(other)
    if [line["step"] for line in a] != [line["step"] for line in b]:
        return [f"steps of {METRICS_FILE}"]
    found = []
    for line, again in zip(a, b, strict=True):
        for name in ("lr/all", "epoch", *LOSSES):
            value, other_value = line.get(name, 0.0), again.get(name, 0.0)
            if not math.isclose(value, other_value, rel_tol=0.0, abs_tol=tolerance):
                found.append(f"step {line['step']}: {name} {value} and {other_value}")
    return found


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run, without how fast it was."""
    read = read_metrics(run_dir / METRICS_FILE)
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in read]


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
