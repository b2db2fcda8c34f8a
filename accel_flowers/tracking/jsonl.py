"""`metrics.jsonl`: one JSON object a line, written always."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel_flowers.core.files import write_text_durably, writing
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.tracking.tracker import Tracker


class JsonlTracker(Tracker):
    """One JSON object a line, each with the optimizer step that it belongs to; the configuration is config.yaml's.

    Args:
        path: the file; lines are added at its end.
    """

    name = "jsonl"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a line."""
        with (
            writing(f"'{self.path}'", "Make room and go on with --resume auto."),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"step": step, **values}) + "\n")


def forget_after(path: Path, step: int, *, scored: bool) -> None:
    """Drop the lines that a run resumed at `step` will write again.

    Args:
        path: a `metrics.jsonl`.
        step: later lines go, and so do the test scores of the end.
        scored: whether the validation scores of `step` itself are there to stay.
    """

    def stays(line: dict[str, Any]) -> bool:
        groups = {name.partition("/")[0] for name in line}
        again = {"test"} if scored or line["step"] < step else {"test", "val", "val_ema"}
        return bool(line["step"] <= step and not groups & again)

    kept = [line for line in read_metrics(path) if stays(line)]
    with writing(f"'{path}'", "Make room and go on with --resume auto."):
        write_text_durably(path, "".join(json.dumps(line) + "\n" for line in kept))
