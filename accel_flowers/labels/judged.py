"""A run, a study of folds or a probe → what it says of the labels that it was not taught by."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import check_permitted, parse_json, read_text
from accel_flowers.data.label_fixes import LEFT_OUT
from accel_flowers.data.split import Split
from accel_flowers.metrics.predictions import OUT_OF_FOLD, PREDICTIONS_FILE, SavedPredictions, load_predictions
from accel_flowers.probe.result import PROBE_FILE
from accel_flowers.report.data import class_of_files
from accel_flowers.report.findings import PartFindings, find_part
from accel_flowers.report.labels import LabelCandidate, find_label_candidates
from accel_flowers.report.photos import Photos
from accel_flowers.report.read import read_run
from accel_flowers.study.members import STUDY_FILE, load_study
from accel_flowers.tracking.run_dir import CONFIG_FILE

_MAX_BYTES = 2**30
"""Of a probe.json, which lists what was left out."""
_STORE = re.compile(r"[0-9a-f]{32}")

Kind = Literal["run", "folds", "probe"]


@dataclass(frozen=True)
class Judged:
    """What is known of the labels.

    Attributes:
        directory: of the run, the study or the probe.
        kind: which of them it is.
        photos: where its pictures are.
        main: its scores: how far to believe it.
        candidates: labels that look wrong, the most doubtful first; none where `main` is no better than always saying one class.
        num_judged: labels that could be judged: pictures that it did not learn from.
        num_learned: pictures that it learned from with their labels, so that it cannot judge them.
        classes: picture → its label, of all whose label is known, judged or not.
        fixes: picture → class, or None where it was left out, of the label fixes that it was made with.
        stores: of a probe: where the features of its pictures lie, and numbers a picture; of each of its networks.
    """

    directory: Path
    kind: Kind
    photos: Photos
    main: PartFindings
    candidates: tuple[LabelCandidate, ...]
    num_judged: int
    num_learned: int
    classes: Mapping[str, str]
    fixes: Mapping[str, str | None]
    stores: tuple[tuple[str, int], ...] = ()


def judge_labels(directory: Path, data: str | None = None) -> Judged:
    """Read what a run, a study of folds or a probe said of pictures that it did not learn from.

    Args:
        directory: of one of them.
        data: where the pictures are now; None = where they were.

    Raises:
        UserError: it is none of them, has not ended, or is damaged.
    """
    check_permitted(directory / CONFIG_FILE)
    if os.path.isfile(directory / STUDY_FILE):
        return _of_study(directory, data)
    if os.path.isfile(directory / PROBE_FILE):
        return _of_probe(directory, data)
    if not os.path.isfile(directory / CONFIG_FILE):
        what = "holds none of them" if os.path.isdir(directory) else "is not there"
        raise UserError(
            f"Labels are judged by a run, by a study of --folds or by the folder that probe --out wrote, and '{directory}' {what}. For "
            "all pictures of a folder type accel-flowers probe PHOTOS --out runs/probe, then accel-flowers labels runs/probe."
        )
    return _of_run(directory, data)


def _of_run(directory: Path, data: str | None) -> Judged:
    run = read_run(directory)
    if run.predictions is None:
        raise UserError(f"The run in '{directory}' has not ended, so it has judged no label yet. Type {run.how_to_end}")
    if run.overfits:
        raise UserError(
            f"The run in '{directory}' was scored on the pictures that trained it (debug.overfit_batches), so it can judge no label."
        )
    if run.predictions.several_labels:
        raise UserError(
            f"The pictures of '{directory}' may have several labels each, and whether labels look wrong is only judged of one label a "
            "picture."
        )
    photos = Photos(data or run.config.data.path, run.config.data.labels)
    temperature = run.spec.temperature if run.spec else None
    part = "test" if "test" in run.predictions.parts else "val"
    return _judged(
        directory,
        "run",
        photos,
        run.predictions,
        find_part(run.predictions, part, temperature=temperature),
        temperature=temperature,
        num_learned=len(run.split.files_of("train")),
        classes=class_of_files(run, photos),
        fixes=_fixes_of(run.split),
    )


def _of_study(directory: Path, data: str | None) -> Judged:
    study = load_study(directory)
    first = directory / study.members[0].name
    if study.kind != "folds":
        raise UserError(
            f"The runs of '{directory}' differ in their seeds, and which pictures they hold out overlaps: give one of them "
            f"(accel-flowers labels {shlex.quote(str(first))}), or judge all labels by a study of folds: train RECIPE --folds 5."
        )
    if any(member.result is None for member in study.members) or not os.path.exists(directory / PREDICTIONS_FILE):
        raise UserError(
            f"The study in '{directory}' has not ended, so it has not judged all labels yet. Go on with the command that began it and "
            "--resume auto."
        )
    predictions = _out_of_fold(directory)
    run = read_run(first)
    return _judged(
        directory,
        "folds",
        Photos(data or run.config.data.path, run.config.data.labels),
        predictions,
        find_part(predictions, OUT_OF_FOLD, temperature=None),
        fixes=_fixes_of(run.split),
    )


def _of_probe(directory: Path, data: str | None) -> Judged:
    path = directory / PROBE_FILE
    try:
        said = parse_json(read_text(path, max_bytes=_MAX_BYTES))
        if not isinstance(said, dict):
            raise ValueError("it is no object")
        source, temperature = said["source"], said["temperature"]
        left_out, relabelled, features = said["left_out"], said.get("relabelled", {}), said.get("features", [])
        if not isinstance(source, str) or not (
            temperature is None or (isinstance(temperature, float) and temperature > 0)
        ):
            raise ValueError("source or temperature is not of this form")
        fixes: dict[str, str | None] = {str(name): None for name, cause in left_out.items() if cause == LEFT_OUT}
        stores = tuple((each["store"], each["numbers"]) for each in features)
        if not all(isinstance(name, str) and _STORE.fullmatch(name) and type(width) is int for name, width in stores):
            raise ValueError("what it says of features is not of this form")
        fixes |= {str(name): str(label) for name, label in relabelled.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what a probe writes: {error}.") from None
    predictions = _out_of_fold(directory)
    return _judged(
        directory,
        "probe",
        Photos(data or source),
        predictions,
        find_part(predictions, OUT_OF_FOLD, temperature=temperature),
        temperature=temperature,
        fixes=fixes,
        stores=stores,
    )


def _out_of_fold(directory: Path) -> SavedPredictions:
    predictions = load_predictions(directory / PREDICTIONS_FILE)
    if list(predictions.parts) != [OUT_OF_FOLD]:
        raise UserError(
            f"{directory / PREDICTIONS_FILE} has other parts than {OUT_OF_FOLD}: it is not this directory's own."
        )
    return predictions


def _fixes_of(split: Split) -> dict[str, str | None]:
    out: dict[str, str | None] = {name: None for name, cause in split.left_out.items() if cause == LEFT_OUT}
    return out | dict(split.relabelled)


def _judged(
    directory: Path,
    kind: Kind,
    photos: Photos,
    predictions: SavedPredictions,
    main: PartFindings,
    *,
    temperature: float | None = None,
    num_learned: int = 0,
    classes: Mapping[str, str] | None = None,
    fixes: Mapping[str, str | None],
    **more: Any,
) -> Judged:
    rows = predictions.parts.values()
    said = {
        name: predictions.class_names[label]
        for each in rows
        for name, label in zip(each.files, each.labels, strict=True)
    }
    candidates = find_label_candidates(predictions, temperature=temperature) if main.beats_baseline else []
    return Judged(
        directory=directory,
        kind=kind,
        photos=photos,
        main=main,
        candidates=tuple(candidates),
        num_judged=len(said),
        num_learned=num_learned,
        classes={**(classes or {}), **said},
        fixes=fixes,
        **more,
    )
