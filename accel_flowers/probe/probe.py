"""All that `accel-flowers probe` does, in its order: look, compute features, choose and score heads, write what came of it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.console import counted
from accel_flowers.core.errors import UserError
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.plural import number_of
from accel_flowers.data.content import content_facts, table_facts
from accel_flowers.data.decide_split import describe_table
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.table import ImageTable
from accel_flowers.data.workers import local_cores, plan_workers, workers_as_user_error
from accel_flowers.distributed.collectives import (
    broadcast_from_main,
    check_same_everywhere,
    log_on_main,
    main_process_first,
    num_local_processes,
    true_everywhere,
)
from accel_flowers.distributed.session import process_session
from accel_flowers.metrics.calibration import fit_temperature
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.intervals import accuracy_interval, compare_paired
from accel_flowers.metrics.predictions import OUT_OF_FOLD, PartPredictions, SavedPredictions
from accel_flowers.models.joined import joined_name
from accel_flowers.probe.backbones import LARGER, Frozen, Sight, check_sight, load_frozen, sight_of
from accel_flowers.probe.cross_validate import (
    Validated,
    Way,
    cross_validate,
    fit_final,
    learning_curve,
    num_fits,
)
from accel_flowers.probe.curve import find_curve
from accel_flowers.probe.features import Passes, Space, compute_features, open_store, spaces_of
from accel_flowers.probe.head import Features, Head, log_softmax
from accel_flowers.probe.output import check_out, write_output
from accel_flowers.probe.pictures import FEWEST_FOLDS, Pictures, find_pictures
from accel_flowers.probe.result import ProbeResult, Row
from accel_flowers.probe.store import RowStore, keys_of
from accel_flowers.report.findings import find_part
from accel_flowers.report.labels import find_label_candidates
from accel_flowers.tracking.run_dir import versions

_log = logging.getLogger(__name__)
ALL = "all"
_IN_MEMORY = 2**27
"""Numbers of one kind of features that are kept in memory (512 MiB); of more they are read from the disk each time."""

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
    asked = _check_words(backbones, weights, size, num_folds, keep)
    if out is not None:
        check_out(out)
    facts = {**versions(), "words": [source, list(backbones), list(weights), size, mirror, num_folds, seed]}
    lacks_memory = oom_as_user_error("Leave more memory free.", of_workers="(--num-workers 0)")
    clock = _Clock()
    with process_session(facts, owns_process=owns_process) as together, lacks_memory, workers_as_user_error():
        accelerator = together.build_accelerator(mixed_precision="no")
        table = main_process_first(accelerator, lambda: load_images(source, label_column=label_column))
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
        keys = keys_of(pictures.digests)
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
                keys,
                networks,
                spaces,
                num_workers=num_workers,
                after_round=preemption.while_scoring(None),
            )
        results: list[ProbeResult] = []

        def find() -> None:
            finder = _Finder(source, table, pictures, networks, sets, ways, sights, passes, tuple(told), clock, seed)
            results.append(finder.result(keep=next(place for place, each in enumerate(sets) if _is_kept(each, networks, keep)), out=out))  # fmt: skip

        broadcast_from_main(accelerator, find)
        true_everywhere(accelerator, here=True)
    return results[0] if results else None


@dataclass
class _Clock:
    """Seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun


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


class StoredFeatures:
    """Features of several networks side by side, in one or two views of each picture; see `head.Features`.

    Args:
        views: of each view, for each network, what gives the rows of pictures.
    """

    def __init__(self, views: Sequence[Sequence[Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]]]) -> None:
        self._views = views

    @property
    def num_views(self) -> int:
        """1, or 2 with mirror images."""
        return len(self._views)

    def rows(self, view: int, pictures: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [n, D]."""
        pieces = [rows_of(pictures) for rows_of in self._views[view]]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


@dataclass
class _Finder:
    """The main process's own work, once all features are there."""

    source: str
    table: ImageTable
    pictures: Pictures
    networks: Sequence[Frozen]
    sets: Sequence[tuple[int, ...]]
    ways: Sequence[Way]
    sights: Mapping[tuple[tuple[int, ...], float | int | None], Sight]
    passes: Passes
    told: tuple[str, ...]
    clock: _Clock
    seed: int
    _opened: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]] = field(default_factory=dict)

    def result(self, *, keep: int, out: Path | None) -> ProbeResult:
        labels, folds = self.pictures.labels, self.pictures.folds
        class_names = self.table.class_names
        count = sum(
            num_fits(len(self.ways), self.pictures.num_folds, curve=place == keep) for place in range(len(self.sets))
        )
        steps = counted(range(count + 1), count + 1, unit="head")
        next(steps)

        def after_fit() -> None:
            next(steps)

        with self.clock.of("heads"):
            features: list[dict[Way, Features]] = [
                {way: self._features(chosen, way) for way in self.ways} for chosen in self.sets
            ]
            validated = [
                cross_validate(each, labels, folds, len(class_names), seed=self.seed, after_fit=after_fit)
                for each in features
            ]
            sizes, right = learning_curve(
                features[keep], labels, self.pictures.groups, folds, validated[keep], len(class_names),
                seed=self.seed, after_fit=after_fit,
            )  # fmt: skip
            best = validated[keep]
            head = fit_final(features[keep], labels, best.choice, len(class_names))
        with self.clock.of("scores"):
            predictions = self._predictions(best)
            rows = predictions.parts[OUT_OF_FOLD]
            temperature = fit_temperature(rows.probabilities, rows.labels)
            told = list(self.told)
            if best.chosen_by < len(labels):
                told.append(f"what was chosen was chosen by {number_of(best.chosen_by, 'picture')}, drawn from all")
            result = ProbeResult(
                source=self.source,
                class_names=class_names,
                num_folds=self.pictures.num_folds,
                rows=tuple(self._row(place, validated) for place in range(len(self.sets))),
                kept=keep,
                findings=find_part(predictions, OUT_OF_FOLD, temperature=temperature),
                curve=find_curve(sizes, right, len(labels), seed=self.seed),
                candidates=find_label_candidates(predictions, temperature=temperature),
                predictions=predictions,
                temperature=temperature,
                left_out=self.pictures.left_out,
                told=tuple(told),
                weights={
                    each.label: {"given": each.weights, "digest": each.digest, "loaded": each.loaded}
                    for each in self.networks
                },
                computed=self.passes.computed,
                seconds=self.clock.seconds,
                versions=versions(),
            )
        if out is not None:
            with self.clock.of("writing"):
                self._write(out, result, head)
        return result

    def _features(self, chosen: tuple[int, ...], way: Way) -> StoredFeatures:
        sight = self.sights[chosen, way.size]
        views = []
        for mirrored in (False, True) if way.mirror else (False,):
            views.append([self._rows_of(space) for space in spaces_of(self.networks, chosen, sight, mirrored=mirrored)])
        return StoredFeatures(views)

    def _rows_of(self, space: Space) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
        """What gives rows of one kind of features: from memory where they fit, else from the disk."""
        if space.key in self._opened:
            return self._opened[space.key]
        store: RowStore = open_store(self.networks, space)
        places = store.find(keys_of(self.pictures.digests))
        if (places[:, 0] < 0).any():
            lost = int((places[:, 0] < 0).sum())
            raise UserError(
                f"{number_of(lost, 'row')} of features in '{store.folder}' cannot be read any more, though they were written: look at "
                "the disk, and run it again, which computes them anew."
            )
        if len(places) * store.width <= _IN_MEMORY:
            kept = store.read(places)
            self._opened[space.key] = lambda pictures: kept[pictures]
        else:
            self._opened[space.key] = lambda pictures: store.read(places[pictures])
        return self._opened[space.key]

    def _predictions(self, validated: Validated) -> SavedPredictions:
        logs = log_softmax(validated.logits)
        labels = self.pictures.labels
        rows = PartPredictions(
            labels=labels,
            probabilities=np.exp(logs).astype(np.float32),
            losses=-logs[np.arange(len(labels)), labels].astype(np.float32),
            files=self.pictures.files,
        )
        return SavedPredictions(self.table.class_names, {OUT_OF_FOLD: rows})

    def _row(self, place: int, validated: Sequence[Validated]) -> Row:
        found, chosen, labels = validated[place], self.sets[place], self.pictures.labels
        right = found.predicted == labels
        choice = found.choice
        sight = self.sights[chosen, choice.way.size]
        spent = [
            self.passes.seconds.get(space.key)
            for mirrored in ((False, True) if choice.way.mirror else (False,))
            for space in spaces_of(self.networks, chosen, sight, mirrored=mirrored)
        ]
        known = [each for each in spent if each is not None]
        logs = log_softmax(found.logits)
        return Row(
            name=joined_name([self.networks[number].label for number in chosen]),
            accuracy=accuracy_interval(int(right.sum()), len(labels)),
            loss=float(-logs[np.arange(len(labels)), labels].mean()),
            way=choice.way,
            strength=choice.strength,
            strengths=tuple(each.strength for each in found.choices),
            sizes=tuple(part.size for part in sight.parts),
            losses=found.losses,
            seconds_a_picture=sum(known) if len(known) == len(spent) else None,
            gain=compare_paired(validated[0].predicted == labels, right) if place else None,
        )

    def _write(self, out: Path, result: ProbeResult, head: Head) -> None:
        chosen = self.sets[result.kept]
        row = result.best
        about = {
            "made_by": "probe",
            "num_folds": result.num_folds,
            "strength": row.strength,
            "weights": {
                self.networks[number].label: dict(result.weights[self.networks[number].label]) for number in chosen
            },
        }
        scores = {OUT_OF_FOLD: {**summarize(result.predictions.parts[OUT_OF_FOLD], result.class_names), **about}}
        write_output(
            out,
            result,
            self.table,
            frozen=[self.networks[number] for number in chosen],
            sight=self.sights[chosen, row.way.size],
            head=head,
            scores=scores,
            digests=self.pictures.digests,
        )
