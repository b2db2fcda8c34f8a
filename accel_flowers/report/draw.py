"""A run directory → `report.html` and its plots."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel_flowers.config.schema import Config, config_to_dict
from accel_flowers.data.split import PARTS
from accel_flowers.html.pages import data_uri
from accel_flowers.models.saved import load_model
from accel_flowers.report import text as words
from accel_flowers.report.findings import (
    Answer,
    PartFindings,
    answers,
    find_part,
    find_temperature,
    least_sure,
    worst_mistakes,
)
from accel_flowers.report.labels import LabelCandidate, find_label_candidates
from accel_flowers.report.page import render, write_page, write_plots
from accel_flowers.report.photos import Photos
from accel_flowers.report.plots import (
    Course,
    Plot,
    classes_plot,
    confusion_plot,
    counts_plot,
    course_plot,
    reliability_plot,
    sizes_plot,
)
from accel_flowers.report.read import RunRecord, read_run
from accel_flowers.tracking.run_dir import CONFIG_FILE, MODEL_DIR

REPORT_FILE, PLOTS_DIR = "report.html", "plots"
NUM_MISTAKES, NUM_UNSURE, NUM_LABELS, NUM_TWINS, NUM_OF_WORST = 12, 8, 24, 8, 3
"""Images that the page shows of each kind."""


@dataclass(frozen=True)
class Shown:
    """An image on the page: small, with what spoke for the answer, and what is said of it."""

    answer: Answer
    photo: str | None
    heat: str | None
    doubtful: bool
    """Whether its label looks wrong."""


def draw_report(run_dir: Path, data: str | None = None) -> Path:
    """Write `report.html` into a run directory, and the plots as PNGs beside it.

    Args:
        run_dir: of a run, finished or still going on.
        data: where its images are now, where they are no longer at its data.path.

    Returns:
        The page.

    Raises:
        UserError: no run directory, a damaged one, or one that cannot be written to.
    """
    run = read_run(run_dir)
    photos = Photos(data or run.config.data.path)
    values: dict[str, Any] = {
        "run": run,
        "title": run.name,
        "photos": photos,
        "moved": _missing(run, photos),
        "training": _training(run),
        "data": _data(run, photos),
        "settings": _settings(run),
        "results": _results(run, photos) if run.predictions else None,
    }
    plots = [
        *values["training"]["plots"],
        *values["data"]["plots"],
        *(values["results"]["plots"].values() if values["results"] else []),
    ]
    path = run_dir / REPORT_FILE
    write_page(path, render("report.html", **values))
    write_plots(run_dir / PLOTS_DIR, plots)
    return path


def _missing(run: RunRecord, photos: Photos) -> list[str]:
    """Held-out images that are no longer there."""
    if photos.problem:
        return []
    return [file for file in sorted(run.split.parts) if run.split.parts[file] != "train" and not photos.has(file)]


def _results(run: RunRecord, photos: Photos) -> dict[str, Any]:
    predictions = run.predictions
    assert predictions is not None
    temperature = find_temperature(predictions, run.spec.temperature if run.spec else None)
    found = {part: find_part(predictions, part, temperature=temperature) for part in predictions.parts}
    part = "test" if "test" in found else "val"
    main = found[part]
    candidates = find_label_candidates(predictions)
    doubtful = {each.file for each in candidates}
    held_out = [answer for each in predictions.parts for answer in answers(predictions, each)]
    judged = [answer for answer in held_out if answer.part == part]
    mistakes, unsure = worst_mistakes(judged, NUM_MISTAKES), least_sure(judged, NUM_UNSURE)
    shown, method = _show([*mistakes, *unsure], doubtful, run, photos)
    said_of = f"{words.part_name(part)}, {words.images(main.num_images)}"
    return {
        "part": part,
        "main": main,
        "others": [each for name, each in found.items() if name != part],
        "looks": _looks(run),
        "said_of": said_of,
        "candidates": _with_thumbnails(candidates[:NUM_LABELS], photos),
        "num_candidates": len(candidates),
        "held_out": len(held_out),
        "mistakes": shown[: len(mistakes)],
        "num_mistakes": main.num_images - main.right,
        "unsure": shown[len(mistakes) :],
        "method": method,
        "confusions": _confusions(main),
        "of_worst": _of_worst(main, judged, photos),
        "sentences": {
            "worst": words.worst_class(main),
            "labels": words.label_candidates(
                candidates, len(held_out), len(run.split.files_of("train")), main.accuracy.value
            ),
            "calibration": words.calibration(main.calibration),
        },
        "plots": _plots(main, said_of),
    }


def _plots(main: PartFindings, said_of: str) -> dict[str, Plot]:
    return {
        "classes": classes_plot(main, said_of),
        "confusion": confusion_plot(main, said_of),
        "reliability": reliability_plot(main.calibration, said_of),
    }


def _of_worst(found: PartFindings, judged: Sequence[Answer], photos: Photos) -> list[tuple[Answer, str]]:
    """A few missed images of the worst class, small: those that went to the class it is confused with most."""
    worst = found.worst
    if photos.problem or not worst.taken_for:
        return []
    missed = [answer for answer in judged if answer.label == worst.name and answer.predicted == worst.taken_for[0][0]]
    opened = photos.open_all([answer.file for answer in worst_mistakes(missed, NUM_OF_WORST)])
    of_file = {answer.file: answer for answer in missed}
    return [(of_file[file], data_uri(image)) for file, image in opened.items() if image is not None]


def _confusions(found: PartFindings, count: int = 8) -> list[tuple[str, str, int, int]]:
    """(true class, what was said, images, of so many), the most frequent first."""
    pairs = [(each.name, other, images, each.num_images) for each in found.classes for other, images in each.taken_for]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:count]


def _looks(run: RunRecord) -> int:
    """How often validation was scored during the training."""
    return sum("val/accuracy" in line for line in run.lines)


def _show(chosen: Sequence[Answer], doubtful: set[str], run: RunRecord, photos: Photos) -> tuple[list[Shown], str]:
    """Each answer with its photo and where the network looked; and how that was found, in words."""
    opened = photos.open_all([answer.file for answer in chosen]) if not photos.problem else {}
    there = {file: image for file, image in opened.items() if image is not None}
    predicted = {answer.file: answer.predicted_index for answer in chosen}
    heat, method = {}, ""
    if there and run.spec:
        # Seconds of import, which a page without images does not need.
        from accel_flowers.report.cam import explain

        found = explain(load_model(run.run_dir / MODEL_DIR), list(there.values()), [predicted[file] for file in there])
        heat, method = dict(zip(there, found.images, strict=True)), found.method
    return [
        Shown(
            answer=answer,
            photo=data_uri(there[answer.file]) if answer.file in there else None,
            heat=data_uri(heat[answer.file]) if answer.file in heat else None,
            doubtful=answer.file in doubtful,
        )
        for answer in chosen
    ], method


def _with_thumbnails(candidates: Sequence[LabelCandidate], photos: Photos) -> list[tuple[LabelCandidate, str | None]]:
    opened = photos.open_all([each.file for each in candidates]) if not photos.problem else {}
    rows = []
    for each in candidates:
        image = opened.get(each.file)
        rows.append((each, data_uri(image) if image else None))
    return rows


def _training(run: RunRecord) -> dict[str, Any]:
    train, val = Course("training", *run.course("train/loss")), Course("validation", *run.course("val/loss"))
    averaged = Course("averaged weights", *run.course("val_ema/loss"))
    accuracy = Course("validation", *run.course("val/accuracy"))
    averaged_accuracy = Course("averaged weights", *run.course("val_ema/accuracy"))
    rates = [Course(name.partition("/")[2].replace("_", " "), *run.course(name)) for name in run.rates()]
    if len(rates) == 1:
        rates = [replace(rates[0], label="learning rate")]
    best = run.spec.scores.get("val", {}).get("epoch") if run.spec else None
    best_step = run.spec.scores.get("val", {}).get("step") if run.spec else None
    best_at = next((line["epoch"] for line in run.lines if line.get("step") == best_step and "val/loss" in line), None)
    counts = {part: len(run.split.files_of(part)) for part in PARTS}
    plots = []
    if train.values:
        plots.append(
            course_plot(
                "loss",
                "loss",
                "nats",
                [each for each in (train, val, averaged) if each.values],
                best=best_at,
                alt=f"Loss over the epochs: {counts['train']} training and {counts['val']} validation pictures.",
            )
        )
    if accuracy.values:
        plots.append(
            course_plot(
                "accuracy",
                "accuracy",
                "%",
                [each for each in (accuracy, averaged_accuracy) if each.values],
                best=best_at,
                percent=True,
                alt=f"Accuracy over the epochs on {counts['val']} validation pictures.",
            )
        )
    if rates:
        plots.append(course_plot("lr", "learning rate", "", rates, marked=False, alt="Learning rate over the epochs."))
    return {
        "plots": plots,
        "best_epoch": best,
        "epochs": run.config.train.epochs,
        "sentence": words.course_of_training(
            best,
            run.config.train.epochs,
            train.values[-1] if train.values else None,
            val.values[-1] if val.values else None,
        ),
        "counts": counts,
    }


def _class_of(file: str, run: RunRecord) -> str | None:
    """The class of an image by its folder; None for a dataset whose names tell nothing."""
    folder = file.split("/")[-2] if "/" in file else None
    return folder if folder in run.split.class_names else None


def _data(run: RunRecord, photos: Photos) -> dict[str, Any]:
    split = run.split
    counts: dict[str, Counter[str]] = {name: Counter() for name in split.class_names}
    for file, part in split.parts.items():
        if (name := _class_of(file, run)) is not None:
            counts[name][part] += 1
    known = sum(counts[name].total() for name in counts) == len(split.parts)
    files = sorted(split.parts)
    sizes = list(photos.sizes(files).values()) if not photos.problem else []
    twins: list[dict[str, Any]] = []
    for group in sorted(split.duplicates, key=lambda group: (len({_class_of(f, run) for f in group}) < 2, group)):
        classes = sorted({_class_of(file, run) or "" for file in group})
        parts = sorted({split.parts.get(file, "left out") for file in group})
        twins.append({"files": group, "classes": classes, "parts": parts, "torn": len(classes) > 1, "photo": None})
    for each in twins[:NUM_TWINS]:
        image = photos.open(each["files"][0]) if not photos.problem else None
        each["photo"] = data_uri(image, longest=140) if image else None
    plots = [counts_plot(counts)] if known else []
    if len(set(sizes)) > 1:
        plots.append(sizes_plot(sizes))
    totals = {name: counts[name].total() for name in counts} if known else {}
    return {
        "counts": counts if known else None,
        "parts": [part for part in PARTS if split.files_of(part)],
        "totals": {part: len(split.files_of(part)) for part in PARTS},
        "num_images": len(split.parts),
        "balance": _balance(totals),
        "sizes": _sizes_in_words(sizes, len(files)),
        "twins": twins,
        "shown_twins": NUM_TWINS,
        "torn": sum(each["torn"] for each in twins),
        "left_out": sorted(split.left_out.items()),
        "plots": plots,
    }


def _balance(totals: dict[str, int]) -> str:
    if not totals or not min(totals.values()):
        return ""
    most, least = max(totals, key=lambda name: totals[name]), min(totals, key=lambda name: totals[name])
    ratio = totals[most] / totals[least]
    if ratio < 1.2:
        return "The classes are about equally large."
    advice = " Consider --loss.class-weights balanced." if ratio > 3 else ""
    return f"{most} has {ratio:.1f} times as many pictures as {least}.{advice}"


def _sizes_in_words(sizes: Sequence[tuple[int, int]], num_files: int) -> str:
    if not sizes:
        return ""
    of = f" (of {len(sizes):,} looked at)" if len(sizes) < num_files else ""
    if len(set(sizes)) == 1:
        return f"All are {_size(sizes[0])} pixels{of}."
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    smallest, middle, largest = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"From {_size(smallest)} to {_size(largest)} pixels, in the middle {_size(middle)}{of}."


def _size(size: tuple[int, int]) -> str:
    return "{}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{}".format(*size)


def _settings(run: RunRecord) -> dict[str, Any]:
    return {
        "changed": differing(config_to_dict(run.config), config_to_dict(Config())),
        "text": run.config_text,
        "environment": {name: _plain(value) for name, value in run.environment.items()},
        "command": repeat_command(run),
    }


def differing(values: dict[str, Any], others: dict[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """Fields in which two configurations differ: (dotted name, first value, second value)."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(others.get(name), dict):
            found += differing(value, others[name], f"{prefix}{name}.")
        elif value != others.get(name) and prefix + name not in ("run_dir", "resume") and prefix != "about.":
            found.append((prefix + name, _plain(value), _plain(others.get(name))))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    return "none" if value is None else str(value)


def repeat_command(run: RunRecord) -> str:
    """What to type to have the same run again, on as many processes and in the same precision."""
    processes, precision = run.environment.get("num_processes", 1), run.environment.get("precision", "no")
    on_cpu = run.environment.get("device") == "cpu"
    program = ["accel-flowers"]
    if processes != 1 and on_cpu:
        program = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu_2_processes.yaml"]
    elif processes != 1 or precision != "no":
        program = ["accelerate", "launch"] + (["--cpu"] if on_cpu else [])
    if len(program) > 1:
        program += ["--num_processes", str(processes), "--mixed_precision", str(precision), "-m", "accel_flowers"]
    again = run.run_dir.with_name(f"{run.run_dir.name}-again")
    own = ["--train.precision", "launcher"] if on_cpu and precision == "bf16" else []  # no trial that may end otherwise
    return shlex.join([*program, "train", str(run.run_dir / CONFIG_FILE), "--run-dir", str(again), *own])
