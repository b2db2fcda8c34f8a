"""What the main process finds, once all features are there: heads, their scores, the learning curve, labels to look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accel_flowers.core.console import counted
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.data.table import ImageTable
from accel_flowers.metrics.calibration import fit_temperature
from accel_flowers.metrics.classification import summarize
from accel_flowers.metrics.intervals import accuracy_interval, compare_paired
from accel_flowers.metrics.predictions import OUT_OF_FOLD, PartPredictions, SavedPredictions
from accel_flowers.models.joined import joined_name
from accel_flowers.probe.backbones import Frozen, Sight
from accel_flowers.probe.cross_validate import Validated, Way, cross_validate, fit_final, learning_curve, num_fits
from accel_flowers.probe.curve import find_curve
from accel_flowers.probe.features import Passes, Space, open_store, spaces_of
from accel_flowers.probe.head import Features, Head, log_softmax
from accel_flowers.probe.output import write_output
from accel_flowers.probe.pictures import Pictures
from accel_flowers.probe.result import ProbeResult, Row
from accel_flowers.probe.store import RowStore, keys_of
from accel_flowers.report.findings import find_part
from accel_flowers.report.labels import find_label_candidates
from accel_flowers.tracking.run_dir import versions

_IN_MEMORY = 2**27
"""Numbers of one kind of features that are kept in memory (512 MiB); of more they are read from the disk each time."""


@dataclass
class Clock:
    """Seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Measure a phase, which may come several times."""
        begun = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun


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
class Finder:
    """The main process's own work, once all features are there.

    Attributes:
        source: the data set.
        table: its images.
        pictures: those that are learned from.
        networks: the backbones.
        sets: the rows of the table: places of backbones that are together.
        ways: among which cross-validation chooses.
        sights: (set, size of a way) → what these networks see.
        passes: what the features cost.
        told: what was told so far.
        clock: seconds so far.
        seed: of whatever is drawn.
    """

    source: str
    table: ImageTable
    pictures: Pictures
    networks: Sequence[Frozen]
    sets: Sequence[tuple[int, ...]]
    ways: Sequence[Way]
    sights: Mapping[tuple[tuple[int, ...], float | int | None], Sight]
    passes: Passes
    told: tuple[str, ...]
    clock: Clock
    seed: int
    _opened: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]] = field(default_factory=dict)

    def result(self, *, keep: int, out: Path | None) -> ProbeResult:
        """Choose and score the heads of all sets, look closer at one, and write what came of it.

        Args:
            keep: the set that the model, the page and the scores are of.
            out: the folder; None = nothing is written.

        Raises:
            UserError: the disk refuses.
        """
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
                relabelled=self.table.relabelled,
                stores=self._stores(self.sets[keep], best.choice.way),
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

    def _stores(self, chosen: tuple[int, ...], way: Way) -> tuple[tuple[str, int], ...]:
        spaces = spaces_of(self.networks, chosen, self.sights[chosen, way.size], mirrored=False)
        return tuple((space.key, self.networks[space.frozen].width) for space in spaces)

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
