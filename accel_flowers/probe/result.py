"""What a probe found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accel_flowers.metrics.intervals import Interval, Paired
from accel_flowers.metrics.predictions import SavedPredictions
from accel_flowers.probe.cross_validate import Way
from accel_flowers.probe.curve import LearningCurve
from accel_flowers.report.findings import PartFindings
from accel_flowers.report.labels import LabelCandidate

PROBE_FILE = "probe.json"


@dataclass(frozen=True)
class Row:
    """One set of networks in the table.

    Attributes:
        name: the network's, or all names.
        accuracy: cross-validated, with its exact interval.
        loss: mean cross-entropy out of fold, in nats.
        way, strength: what was chosen for the final head.
        strengths: those of the folds' heads.
        sizes: height and width that each network gets.
        losses: way → mean cross-validated loss of its best strength, in nats.
        seconds_a_picture: of computing its features, in all views that were chosen; None where it was never measured.
        gain: over the first row, on the same pictures; None of the first row.
    """

    name: str
    accuracy: Interval
    loss: float
    way: Way
    strength: float
    strengths: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]
    losses: Mapping[Way, float]
    seconds_a_picture: float | None
    gain: Paired | None


@dataclass(frozen=True)
class ProbeResult:
    """All that a probe found.

    Attributes:
        source: the data set.
        class_names: of the classes.
        num_folds: of the cross-validation.
        rows: the table.
        kept: the row that the rest speaks of, by its place; what `model/` holds.
        findings: its scores out of fold.
        curve: its learning curve.
        candidates: pictures whose label looks wrong, the most doubtful first.
        predictions: of every picture out of fold.
        temperature: of the model; None where none was fitted.
        left_out: file → why it was not learned from.
        relabelled: file → its class, where a file of label fixes says another one than the data set.
        stores: where the kept row's features lie, of each of its networks: the store's name, and numbers a picture.
        told: what a person should know, a line each.
        weights: of each network: what was given, the digest of its tensors, and what became of them.
        computed: features that were computed now, in rows; 0 where all were kept from before.
        seconds: phase → seconds that it took.
        versions: of the program and its libraries.
    """

    source: str
    class_names: tuple[str, ...]
    num_folds: int
    rows: tuple[Row, ...]
    kept: int
    findings: PartFindings
    curve: LearningCurve
    candidates: Sequence[LabelCandidate]
    predictions: SavedPredictions
    temperature: float | None
    left_out: Mapping[str, str]
    relabelled: Mapping[str, str]
    stores: tuple[tuple[str, int], ...]
    told: tuple[str, ...]
    weights: Mapping[str, Mapping[str, str]]
    computed: int
    seconds: Mapping[str, float]
    versions: Mapping[str, Any]

    @property
    def best(self) -> Row:
        """The row that the rest speaks of."""
        return self.rows[self.kept]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = self.findings
        return {
            "source": self.source,
            "num_images": found.num_images,
            "class_names": list(self.class_names),
            "num_folds": self.num_folds,
            "kept": self.best.name,
            "accuracy": asdict(found.accuracy),
            "loss": found.loss,
            "macro_f1": found.macro_f1,
            "baseline": {"largest_class": found.baseline.share, "chance": found.baseline.chance},
            "confusion_matrix": found.matrix.tolist(),
            "per_class": {
                each.name: {
                    "precision": asdict(each.precision),
                    "recall": asdict(each.recall),
                    "f1": asdict(each.f1),
                    "count": each.num_images,
                }
                for each in found.classes
            },
            "temperature": self.temperature,
            "table": [_row_as_json(row) for row in self.rows],
            "learning_curve": {
                "images": list(self.curve.sizes),
                "accuracy": [asdict(each) for each in self.curve.accuracies],
                "forecast": {"images": self.curve.twice, **asdict(self.curve.forecast)},
                "forecast_of_the_last": asdict(self.curve.check) if self.curve.check else None,
            },
            "label_candidates": [asdict(each) for each in self.candidates],
            "left_out": dict(self.left_out),
            "relabelled": dict(self.relabelled),
            "features": [{"store": name, "numbers": width} for name, width in self.stores],
            "weights": {name: dict(facts) for name, facts in self.weights.items()},
            "features_computed": self.computed,
            "seconds": {phase: round(spent, 3) for phase, spent in self.seconds.items()},
            "told": list(self.told),
            "versions": dict(self.versions),
        }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "backbones": row.name,
        "accuracy": asdict(row.accuracy),
        "loss": row.loss,
        **_way_as_json(row.way),
        "strength": row.strength,
        "strengths_of_folds": list(row.strengths),
        "sizes": [list(size) for size in row.sizes],
        "tried": [{**_way_as_json(way), "loss": loss} for way, loss in row.losses.items()],
        "seconds_a_picture": row.seconds_a_picture,
        "gain": asdict(row.gain.difference) | {"p_value": row.gain.p_value} if row.gain else None,
    }


def _way_as_json(way: Way) -> dict[str, Any]:
    return {"mirror": way.mirror, "enlarged": isinstance(way.size, float)}
