"""`train --seeds` and `--folds`: one run after the other, and what they say together."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accel_flowers.config.effects import fit_warmup
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import writing
from accel_flowers.core.plural import number_of
from accel_flowers.distributed.collectives import broadcast_from_main, log_on_main
from accel_flowers.distributed.environment import is_main_process
from accel_flowers.distributed.session import process_session
from accel_flowers.metrics.predictions import OUT_OF_FOLD
from accel_flowers.study.folds import write_folds
from accel_flowers.study.keep import Kept, save_together
from accel_flowers.study.members import (
    SPLITS_DIR,
    Member,
    Study,
    config_of,
    fold_members,
    holds_study,
    load_study,
    recipe_of,
    save_study,
    seed_members,
)
from accel_flowers.study.page import write_study_page
from accel_flowers.study.summary import Summary, scores_of, summarise
from accel_flowers.tracking.run_dir import MODEL_DIR, holds_run
from accel_flowers.training.build_data import check_source
from accel_flowers.training.debugging import shorten
from accel_flowers.training.train import TrainResult, train

_log = logging.getLogger(__name__)

FEWEST_FOLDS = 3
"""One is held out, one chooses the epoch, and something must be left to learn from."""


@dataclass(frozen=True)
class StudyResult:
    """What a study came to."""

    run_dir: Path
    summary: Summary | None
    """None on all processes but the main one."""


def train_study(
    config: Config, *, seeds: Sequence[int] = (), folds: int = 0, keep: Kept = "none", owns_process: bool = False
) -> StudyResult:
    """Train the runs of a study that have not ended yet, one after the other, and see what they say together; collective.

    Args:
        config: resolved; `run_dir` (the study's) and `data.path` are set.
        seeds: of the runs; each draws split, first weights, order and augmentation anew.
        folds: as many runs, each of which holds another part of the images out, so that together they score every image
            once; another fold chooses its epoch.
        keep: what becomes the study's own `model/`.
        owns_process: as of `train`.

    Raises:
        UserError: a mistake in the configuration, the folder, the weights or the launch; another study, or a run, is there.
        Interrupted: a signal; the same call goes on.
    """
    check_asked(seeds, folds, keep)
    fit_warmup(shorten(config))  # its mistakes come before there is a directory that cannot be gone on with
    if config.run_dir is None:
        raise UserError("Where shall the study go? Set run_dir, for example to runs/folds.")
    run_dir = Path(config.run_dir)
    if "WANDB_RUN_ID" in os.environ:
        raise UserError("WANDB_RUN_ID names one run, and a study has several: remove it with unset WANDB_RUN_ID.")
    os.environ.setdefault("WANDB_RUN_GROUP", run_dir.absolute().name)  # its runs stand together there
    with process_session({"recipe": recipe_of(config)}, owns_process=owns_process) as together:
        study = broadcast_from_main(together.processes, lambda: _open(config, run_dir, seeds, folds))
        done = sum(member.result is not None for member in study.members)
        left = f"; {done} of them ended before" if done else ""
        log_on_main(together.processes, *study.told, f"{number_of(len(study.members), 'run')} in '{run_dir}'{left}")
    for member in study.members:
        if member.result is not None:
            continue
        if is_main_process():
            _log.info(f"--- {member.name}: {', '.join(f'{name} {value}' for name, value in member.changes.items())}")
        found = train(config_of(member, config, run_dir), owns_process=owns_process)
        study = study.with_result(member.name, result_of(found))
        if is_main_process():
            save_study(run_dir, study)
    if not is_main_process():
        return StudyResult(run_dir, None)
    summary = summarise(run_dir, study)
    if keep != "none":
        folders = [run_dir / member.name / MODEL_DIR for member in study.members]
        scores = {} if summary.findings is None else {OUT_OF_FOLD: scores_of(run_dir)}
        summary = replace(summary, model=save_together(run_dir / MODEL_DIR, folders, keep=keep, scores=scores))
    if config.tracking.report:
        _log.info(f"report: {write_study_page(run_dir, summary, config)}")
    return StudyResult(run_dir, summary)


def check_asked(seeds: Sequence[int], folds: int, keep: Kept) -> None:
    """Whether it is a study.

    Raises:
        UserError: it is none, or none that can be.
    """
    if bool(seeds) == bool(folds):
        raise UserError("A study has --seeds or --folds, one of them.")
    if seeds and (len(set(seeds)) < len(seeds) or len(seeds) < 2 or min(seeds) < 0):
        raise UserError(
            f"--seeds {','.join(map(str, seeds))}: give two or more different ones, or their number: --seeds 5."
        )
    if folds and folds < FEWEST_FOLDS:
        raise UserError(
            f"--folds {folds}: allowed are {FEWEST_FOLDS} or more, for one fold is held out, one chooses the epoch, and the others "
            "are learned from."
        )
    if keep == "soup" and seeds:
        raise UserError(
            "--keep soup averages weights, which only makes sense where all begin with the same ones: runs of --folds do, those of "
            "--seeds do not. Take --keep ensemble."
        )


def result_of(found: TrainResult) -> dict[str, Any]:
    """Plain values of what a run came to."""
    scores = {}
    for part, each in found.scores.items():
        kept = {name: getattr(each, name, None) for name in ("accuracy", "map", "loss", "macro_f1")}
        scores[part] = {name: value for name, value in kept.items() if value is not None}
    return {"best_epoch": found.best_epoch, "scores": scores}


def _open(config: Config, run_dir: Path, seeds: Sequence[int], folds: int) -> Study:
    """The study in its directory, begun where there is none; on the main process."""
    check_source(config.data)
    kind: Literal["seeds", "folds"] = "folds" if folds else "seeds"
    if holds_run(run_dir):
        raise UserError(
            f"'{run_dir}' holds a single run, and nothing is overwritten: give another directory with --run-dir DIR."
        )
    wanted = recipe_of(config)
    if holds_study(run_dir):
        return _go_on(load_study(run_dir), config, run_dir, kind, seeds, folds, wanted)
    with writing(f"The directory '{run_dir}'", "Give another one with --run-dir DIR."):
        (run_dir / SPLITS_DIR if folds else run_dir).mkdir(parents=True, exist_ok=True)
    told = tuple(write_folds(config, folds, run_dir / SPLITS_DIR)) if folds else ()
    members = fold_members(folds, run_dir) if folds else seed_members(seeds)
    study = Study(kind, wanted, members, told)
    save_study(run_dir, study)
    return study


def _go_on(
    study: Study, config: Config, run_dir: Path, kind: str, seeds: Sequence[int], folds: int, wanted: dict[str, Any]
) -> Study:
    if config.resume != "auto":
        raise UserError(
            f"'{run_dir}' holds a study already, and nothing is overwritten: go on with it by --resume auto, or give another "
            "directory with --run-dir DIR."
        )
    names = [member.name for member in (fold_members(folds, run_dir) if folds else seed_members(seeds))]
    changed = [name for name in sorted({*study.recipe, *wanted}) if study.recipe.get(name) != wanted.get(name)]
    if study.kind != kind or [member.name for member in study.members] != names or changed:
        there = ", ".join(member.name for member in study.members)
        differs = [f"  {name}: {study.recipe.get(name)!r} then, {wanted.get(name)!r} now" for name in changed]
        raise UserError(
            "\n".join([f"The study in '{run_dir}' has the runs {there} and was begun with its own recipe:", *differs])
            + "\nGo on with the same words, or begin another study with --run-dir DIR."
        )
    # The directory may have moved: what stands inside it is where it is now.
    moved = fold_members(len(study.members), run_dir) if kind == "folds" else study.members
    members = tuple(Member(new.name, new.changes, old.result) for new, old in zip(moved, study.members, strict=True))
    return Study(study.kind, study.recipe, members, study.told)
