"""All that `accel-flowers probe` does, in its order: look, compute features, choose and score heads, write what came of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Literal

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.errors import UserError
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.data.content import content_facts, table_facts
from accel_flowers.data.decide_split import describe_table
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.table import one_label_each
from accel_flowers.data.workers import local_cores, plan_workers, workers_as_user_error
from accel_flowers.distributed.collectives import (
    broadcast_from_main,
    check_same_everywhere,
    log_on_main,
    main_process_first,
    num_local_processes,
)
from accel_flowers.distributed.session import process_session
from accel_flowers.probe.backbones import LARGER, Frozen, Sight, check_sight, load_frozen, sight_of
from accel_flowers.probe.cross_validate import Way
from accel_flowers.probe.features import compute_features, spaces_of
from accel_flowers.probe.finder import Clock, Finder
from accel_flowers.probe.output import check_out
from accel_flowers.probe.pictures import FEWEST_FOLDS, find_pictures
from accel_flowers.probe.result import ProbeResult
from accel_flowers.tracking.run_dir import versions

ALL = "all"

Mirror = Literal["auto", "yes", "no"]


def probe(
    source: str | os.PathLike[str],
    *,
    backbones: Sequence[str] = ("auto",),
    weights: Sequence[str] = ("imagenet",),
    size: int | Literal["auto"] | None = None,
    mirror: Mirror = "auto",
    keep: str = ALL,
    num_folds: int = 5,
    seed: int = 0,
    out: Path | None = None,
    label_column: str | None = None,
    label_fixes: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    num_workers: int | None = None,
    owns_process: bool = False,
) -> ProbeResult | None:
    """See what frozen backbones under a linear head are worth on a data set; collective.

    Args:
        source: folder with one sub-folder per class, zip or dataset; a test part is left alone.
        backbones: names of networks, as a recipe's model.name; "auto" = the one that the weights are for, else a good one.
        weights: of each: "imagenet", "none" or a file; one word stands for all of them.
        size: pixels of a side; None = each network's own, "auto" = that or a third more, by cross-validation.
        mirror: whether mirror images are learned from and asked about, too; "auto" = by cross-validation.
        keep: the row of the table that the model, the page and the scores are of: a network's name, or "all" together.
        num_folds: of the cross-validation.
        seed: of the folds and of whatever else is drawn.
        out: folder for the model, the predictions, the page and all numbers; None = nothing is written.
        label_column: the column of classes of a dataset or of a CSV; None = the one there is.
        label_fixes: a CSV of pictures to leave out and of other classes for some; None = labels are right as they are.
        group_column, group_pattern: what stays in one fold beside copies: as a recipe's data.group_column and group_pattern.
        on_bad_image: what becomes of pictures that cannot be read.
        num_workers: loader processes; None = choose.
        owns_process: whether signals are answered here, as on the command line.

    Returns:
        What was found, on the main process; None on the others.

    Raises:
        UserError: a mistake in the words, the data set or the launch.
        Interrupted: a signal; the features that were computed are kept.
        RankLost: another process failed, fell silent or is gone.
    """
    source = os.fspath(source)
    fixes = None if label_fixes is None else os.fspath(label_fixes)
    asked = _check_words(backbones, weights, size, num_folds, keep)
    if out is not None:
        check_out(out)
    facts = {**versions(), "words": [source, list(backbones), list(weights), size, mirror, num_folds, seed]}
    lacks_memory = oom_as_user_error("Leave more memory free.", of_workers="(--num-workers 0)")
    clock = Clock()
    with process_session(facts, owns_process=owns_process) as together, lacks_memory, workers_as_user_error():
        accelerator = together.build_accelerator(mixed_precision="no")
        table = main_process_first(
            accelerator,
            lambda: load_images(
                source,
                label_column=label_column,
                label_fixes=fixes,
                group_column=group_column,
                group_pattern=group_pattern,
            ),
        )
        one_label_each(table, "A probe")
        check_same_everywhere(accelerator, table_facts(table))
        with clock.of("weights"):
            frozen = main_process_first(
                accelerator, lambda: _load_all(asked, num_classes=len(table.class_names), seed=seed)
            )
        told = [line for _, lines in frozen for line in lines]
        networks = [each for each, _ in frozen]
        check_same_everywhere(accelerator, {f"weights of {each.label}": each.digest for each in networks})
        sets = _sets_of(networks, keep)
        ways, sights, lines = _ways_of(networks, sets, size, mirror)
        told += lines
        with clock.of("looking at the pictures"):
            found = broadcast_from_main(
                accelerator,
                lambda: find_pictures(table, num_folds=num_folds, seed=seed, on_bad_image=on_bad_image),
            )
        pictures, lines = found
        told += lines
        if accelerator.num_processes > 1:
            check_same_everywhere(accelerator, content_facts(table, pictures.files, seed=0))
        log_on_main(accelerator, *describe_table(table), *told)
        spaces = [
            space
            for chosen in sets
            for way in ways
            for mirrored in ((False, True) if way.mirror else (False,))
            for space in spaces_of(networks, chosen, sights[chosen, way.size], mirrored=mirrored)
        ]
        if num_workers is None:
            local = num_local_processes(accelerator)
            num_workers = plan_workers(local_cores(local), on_cpu=accelerator.device.type == "cpu")
        with clock.of("features"), together.preemption(accelerator, CheckpointConfig()) as preemption:
            passes = compute_features(
                accelerator,
                table,
                pictures.files,
                pictures.digests,
                networks,
                spaces,
                num_workers=num_workers,
                after_round=preemption.while_scoring(None),
            )
        results: list[ProbeResult] = []

        def find() -> None:
            kept = next(place for place, each in enumerate(sets) if _is_kept(each, networks, keep))
            finder = Finder(source, table, pictures, networks, sets, ways, sights, passes, tuple(told), clock, seed)
            results.append(finder.result(keep=kept, out=out))

        broadcast_from_main(accelerator, find)
    return results[0] if results else None


def _check_words(
    backbones: Sequence[str], weights: Sequence[str], size: object, num_folds: int, keep: str
) -> list[tuple[str, str]]:
    """Name and weights of each network."""
    if not backbones:
        raise UserError("--backbones names no network: type for example --backbones resnet18, or leave it out.")
    if len(weights) not in (1, len(backbones)):
        raise UserError(
            f"--weights names {len(weights)} and --backbones {len(backbones)}: give one for each, in their order, or one word "
            "for all of them."
        )
    if len(weights) == 1 < len(backbones) and weights[0] not in ("imagenet", "none"):
        raise UserError(
            f"--weights '{weights[0]}' is one file for {len(backbones)} networks: give a file for each, in their order."
        )
    if isinstance(size, int) and size < 1:
        raise UserError(f"--size {size} is not allowed: it is auto, or a number of pixels such as 224.")
    if num_folds < FEWEST_FOLDS:
        raise UserError(
            f"--folds {num_folds} is not allowed: it is {FEWEST_FOLDS} or more, one to score, one to choose by and one to learn from."
        )
    pairs = list(zip(backbones, weights if len(weights) > 1 else repeat(weights[0]), strict=False))
    twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
    if twice:
        raise UserError(f"--backbones names {twice[0]} twice with the same weights: name each once.")
    names = [name for name, _ in pairs]
    if keep != ALL and not any(keep == name or keep.startswith(f"{name} (") for name in names) and "auto" not in names:
        raise UserError(
            f"--keep {keep} is not allowed: it is one of {', '.join(names)}, or all of them together: {ALL}."
        )
    return pairs


def _load_all(asked: Sequence[tuple[str, str]], *, num_classes: int, seed: int) -> list[tuple[Frozen, list[str]]]:
    loaded = [load_frozen(name, weights, num_classes=num_classes, seed=seed) for name, weights in asked]
    names = [network.name for network, _ in loaded]
    return [
        (
            network
            if names.count(network.name) == 1
            else replace(network, label=f"{network.name} ({network.weights})"),
            told,
        )
        for network, told in loaded
    ]


def _sets_of(networks: Sequence[Frozen], keep: str) -> list[tuple[int, ...]]:
    """The rows of the table: each network alone, and all together."""
    sets: list[tuple[int, ...]] = [(number,) for number in range(len(networks))]
    if len(networks) > 1:
        sets.append(tuple(range(len(networks))))
    if not any(_is_kept(each, networks, keep) for each in sets):
        names = ", ".join(each.label for each in networks)
        raise UserError(f"--keep {keep} is not allowed: it is one of {names}, or all of them together: {ALL}.")
    return sets


def _is_kept(chosen: tuple[int, ...], networks: Sequence[Frozen], keep: str) -> bool:
    return len(chosen) == len(networks) if keep == ALL else len(chosen) == 1 and networks[chosen[0]].label == keep


def _ways_of(
    networks: Sequence[Frozen], sets: Sequence[tuple[int, ...]], size: int | Literal["auto"] | None, mirror: Mirror
) -> tuple[list[Way], dict[tuple[tuple[int, ...], float | int | None], Sight], list[str]]:
    """The ways among which cross-validation chooses, what each set of networks sees in each size, and what is to be told."""
    sizes: list[float | int | None] = [None, LARGER] if size == "auto" else [size]
    told = []
    for each in networks:
        for wanted in list(sizes):
            try:
                check_sight(each, sight_of([each], wanted).parts[0].size)
            except UserError:
                if wanted != LARGER:
                    raise
                sizes.remove(wanted)
                told.append(f"{each.name} takes pictures of its own size only, so none larger is tried")
    mirrors = {"auto": (False, True), "yes": (True,), "no": (False,)}[mirror]
    ways = [Way(mirrored, wanted) for wanted in sizes for mirrored in mirrors]
    sights = {
        (chosen, wanted): sight_of([networks[number] for number in chosen], wanted)
        for chosen in sets
        for wanted in sizes
    }
    return ways, sights, told
