"""TensorBoard: curves, confusion matrices, worst images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from accel_flowers.core.errors import printable
from accel_flowers.tracking.figures import draw_confusion, draw_cooccurrence
from accel_flowers.tracking.scored import THUMBNAIL, WORST_PICTURES, Scored
from accel_flowers.tracking.tracker import Tracker


class TensorBoardTracker(Tracker):
    """Event files for TensorBoard.

    Args:
        directory: where they go.
    """

    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._writer: Any = None

    @property
    def tracker(self) -> Any:
        """The `SummaryWriter`."""
        return self._writer

    def open(self, run_id: str, next_step: int) -> None:
        """Begin, or go on: what was written of `next_step` and later ones is hidden."""
        del run_id
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=next_step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Show the configuration as text."""
        self._writer.add_text("configuration", "```json\n" + json.dumps(values, indent=1) + "\n```")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """The confusion matrix and the worst images, as images; of few classes a curve of each."""
        del epoch
        for name, value in scored.curves_of_classes().items():
            self._writer.add_scalar(f"{scored.part}_f1/{name}", value, global_step=step)
        name, pairs = scored.pairs
        draw = draw_confusion if name == "confusion_matrix" else draw_cooccurrence
        matrix = draw(pairs, scored.class_names)
        self._writer.add_image(f"{scored.part}/{name}", matrix, global_step=step, dataformats="HWC")
        squares = []
        for sample in scored.worst(WORST_PICTURES):
            square = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
            square.paste(scored.thumbnail(sample))
            squares.append(np.asarray(square))
        self._writer.add_images(
            f"{scored.part}/worst_pictures", np.stack(squares), global_step=step, dataformats="NHWC"
        )
        rows = ["| file | class | predicted | confidence | loss |", "|---|---|---|---|---|"]
        for _, file, true, predicted, confidence, loss in scored.rows_of_worst(WORST_PICTURES):
            names = " | ".join(map(markdown_text, (file, true, predicted)))
            rows.append(f"| {names} | {confidence:.3f} | {loss:.3f} |")
        self._writer.add_text(f"{scored.part}/worst_pictures", "\n".join(rows), global_step=step)
        self._writer.flush()

    def describe(self, facts: dict[str, Any]) -> None:
        """Show as text what the run runs on and learns from."""
        self._writer.add_text("run", "```json\n" + json.dumps(facts, indent=1) + "\n```")

    def finish(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()


def markdown_text(text: str) -> str:
    """A name as text in a cell of a Markdown table: what would be markup is written as its number."""
    return re.sub(r"[\\`*_\[\]|<>&~!]", lambda found: f"&#{ord(found[0])};", printable(text))
