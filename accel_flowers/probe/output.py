"""The folder of a probe: its model, its predictions, its page and all numbers; whole, or as it was before."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import replace_folder, write_text_durably, writing
from accel_flowers.data.table import ImageTable, source_name
from accel_flowers.metrics.predictions import PREDICTIONS_FILE, save_predictions
from accel_flowers.models.spec import TrainingRecord
from accel_flowers.probe.backbones import Frozen, Sight
from accel_flowers.probe.head import Head
from accel_flowers.probe.model import save_probe
from accel_flowers.probe.page import write_probe_page
from accel_flowers.probe.result import PROBE_FILE, ProbeResult
from accel_flowers.tracking.run_dir import MODEL_DIR

PAGE_FILE = "report.html"


def check_out(out: Path) -> None:
    """See that a folder can become a probe's, before the work whose result it shall hold.

    Raises:
        UserError: there is something else, or the folder above it refuses.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"'{out}' is a file. Give a folder with --out DIR.")
    if os.path.isdir(out) and not os.path.isfile(out / PROBE_FILE) and os.listdir(out):
        raise UserError(
            f"'{out}' holds something that is no probe, and is not overwritten. Give another folder with --out DIR."
        )
    with writing(f"'{out}'", "Give another folder with --out DIR."):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.absolute().parent, os.W_OK):
            raise PermissionError(13, os.strerror(13), str(out))


def _learned_from(table: ImageTable) -> TrainingRecord:
    """The head of what is kept learned from all images."""
    counts = np.bincount(table.labels, minlength=len(table.class_names)).tolist()
    return TrainingRecord(
        source=source_name(table.source), images={"train": dict(zip(table.class_names, counts, strict=True))}
    )


def write_output(
    out: Path,
    result: ProbeResult,
    table: ImageTable,
    *,
    frozen: Sequence[Frozen],
    sight: Sight,
    head: Head,
    scores: dict[str, Any],
    digests: Sequence[str],
) -> None:
    """Write all of it, aside first; what was there goes when the new one is whole.

    Args:
        out: the folder.
        result: what was found.
        table: the images, for the page.
        frozen, sight, head, scores, digests: of the model; see `save_probe`.

    Raises:
        UserError: the disk refuses.
    """
    with (
        writing(f"'{out}'", "Make room, or give another folder with --out DIR."),
        replace_folder(out) as partial,
    ):
        save_probe(
            partial / MODEL_DIR,
            frozen,
            sight,
            head,
            result.class_names,
            mirror=result.best.way.mirror,
            temperature=result.temperature,
            scores=scores,
            digests=digests,
            training=_learned_from(table),
        )
        parts = result.predictions.parts
        save_predictions(
            partial / PREDICTIONS_FILE, parts, {name: rows.files for name, rows in parts.items()}, result.class_names
        )
        write_probe_page(partial / PAGE_FILE, result, table)
        write_text_durably(partial / PROBE_FILE, json.dumps(result.as_json(), indent=1, ensure_ascii=False) + "\n")
