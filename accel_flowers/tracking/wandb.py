"""What people watch a run with: W&B and TensorBoard. Curves, the confusion matrix, scores of each class, worst images.

W&B gets each step once, also where the run is killed: what it had not written then (it buffers much) is given to it
again from metrics.jsonl after the resume, and what it has is not repeated. Its own counter would drop all that is older
than the newest it has seen; so steps are a value of their own.
"""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.errors import UserError
from accel_flowers.tracking.run_dir import METRICS_FILE, read_metrics
from accel_flowers.tracking.scored import WORST_PICTURES, Scored

_log = logging.getLogger(__name__)

SECONDS_TO_CONNECT, SECONDS_TO_FINISH = 20.0, 60.0
"""How long a network that does not answer may keep a run from starting and from ending."""


def _never_in_the_way(method: Callable[..., None]) -> Callable[..., None]:
    """W&B's errors after its start end its part, not the training: all numbers are in metrics.jsonl, too."""

    @functools.wraps(method)
    def guarded(tracker: WandbTracker, *args: Any, **words: Any) -> None:
        if tracker.run is None:
            return
        try:
            method(tracker, *args, **words)
        except Exception as error:  # noqa: BLE001 - a network and a process of its own: anything can come
            tracker.run = None
            _log.info(f"W&B has failed ({type(error).__name__}: {error}); a resumed run shows it what is missing")

    return guarded


class WandbTracker(GeneralTracker):
    """One W&B run for the whole job, also after a resume.

    Args:
        run_dir: holds W&B's local files, and the list of what was given to it.
        config: project, name and mode.
    """

    name = "wandb"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_dir: Path, config: TrackingConfig) -> None:
        super().__init__()
        self._run_dir, self._config = run_dir, config
        self._shown: set[tuple[int, str]] = set()
        self.run: Any = None

    @property
    def tracker(self) -> Any:
        """The run, for those who want more of it."""
        return self.run

    def open(self, run_id: str) -> None:
        """Begin the run or go on with it; where the network does not answer, offline.

        Raises:
            UserError: W&B refuses, for example because nobody is logged in.
        """
        import wandb

        init = {
            "project": self._config.wandb_project,
            "name": self._config.wandb_name or self._run_dir.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(self._run_dir),
            "settings": wandb.Settings(
                quiet=True, console="off", init_timeout=SECONDS_TO_CONNECT, finish_timeout=SECONDS_TO_FINISH
            ),
        }
        try:
            self.run = wandb.init(mode="online" if self._config.wandb == "online" else "offline", **init)
        except wandb.errors.CommError as error:
            if "401" in str(error) or "403" in str(error):
                raise UserError(f"W&B does not let you in: {error} Log in with `wandb login`.") from None
            _log.info(
                f"W&B does not answer ({str(error).splitlines()[0]}): the run is written for `wandb sync` instead"
            )
            wandb.teardown()  # its service still holds the run that did not begin
            self.run = wandb.init(mode="offline", **init)
        except wandb.errors.Error as error:
            raise UserError(
                f"W&B does not start: {error} Log in with `wandb login`, or use --tracking.wandb offline and `wandb sync` later."
            ) from None
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("epoch", hidden=True)
        for group in ("train", "lr", "speed"):
            self.run.define_metric(f"{group}/*", step_metric="step")
        for group in ("val", "val_ema", "test"):
            self.run.define_metric(f"{group}/*", step_metric="epoch")
            for score, best in (("accuracy", "max"), ("macro_f1", "max"), ("loss", "min")):
                self.run.define_metric(f"{group}/{score}", step_metric="epoch", summary=best)
        self._shown = {_key(row) for row in self._rows_before()}
        for line in read_metrics(self._run_dir / METRICS_FILE):
            self.log(**_split(line))

    def _rows_before(self) -> list[dict[str, Any]]:
        """What W&B has of this run: on its server, or in the files that parts of it left here."""
        import wandb

        if not self.run.offline:
            try:
                path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
                return list(wandb.Api(timeout=int(SECONDS_TO_CONNECT)).run(path).scan_history())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is W&B's, and no reason to stop a run
                _log.info(
                    f"W&B does not say what it has of this run ({type(error).__name__}); steps may come twice there"
                )
                return []
        files = self._run_dir.glob(f"wandb/*run-*-{self.run.id}/run-{self.run.id}.wandb")
        return [row for file in sorted(files) for row in _read_rows(file)]

    @_never_in_the_way
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration, to search and compare runs by."""
        self.run.config.update(values, allow_val_change=True)

    @_never_in_the_way
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Show values once."""
        row = {"step": step, **values}
        if _key(row) not in self._shown:
            self._shown.add(_key(row))
            self.run.log(row)

    @_never_in_the_way
    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """Confusion matrix, scores of each class, and the worst images."""
        import wandb

        names = list(scored.class_names)
        per_class = wandb.Table(columns=["class", "precision", "recall", "F1", "pictures"])
        for name, row in scored.scores["per_class"].items():
            per_class.add_data(name, row["precision"], row["recall"], row["f1"], row["count"])
        worst = wandb.Table(columns=["picture", "file", "class", "predicted", "confidence", "loss"])
        for sample, *cells in scored.rows_of_worst(WORST_PICTURES):
            worst.add_data(wandb.Image(scored.thumbnail(sample), file_type="jpg"), *cells)
        matrix = wandb.plot.confusion_matrix(
            y_true=scored.predictions.labels.tolist(),
            preds=scored.predictions.predicted.tolist(),
            class_names=names,
            title=f"{scored.part}: true and predicted class",
        )
        tables = {"confusion_matrix": matrix, "per_class": per_class, "worst_pictures": worst}
        self.log({"epoch": epoch, **{f"{scored.part}/{name}": table for name, table in tables.items()}}, step=step)

    @_never_in_the_way
    def keep_model(self, model_dir: Path, last_weights: Path | None) -> None:
        """The model as an artifact: alias best, and last for the last epoch's weights."""
        import wandb

        name = f"model-{self.run.id}"
        if last_weights is not None:
            last = wandb.Artifact(name, type="model", description="weights of the last epoch")
            last.add_file(str(model_dir / "config.json"))
            last.add_file(str(last_weights), name="model.safetensors")
            self.run.log_artifact(last, aliases=["last"])
        best = wandb.Artifact(name, type="model", description="weights of the best epoch")
        best.add_dir(str(model_dir))
        self.run.log_artifact(best, aliases=["best"] if last_weights is not None else ["best", "last"])

    @_never_in_the_way
    def summarize(self, values: dict[str, Any]) -> None:
        """Set what stands for the whole run."""
        self.run.summary.update(values)

    def forget_after(self, step: int) -> None:
        """A rollback: later steps will be shown again, with other values."""
        self._shown = {(shown, names) for shown, names in self._shown if shown <= step}

    @_never_in_the_way
    def finish(self) -> None:
        """End the run; what a dead network did not take stays on the disk."""
        self.run.finish()


def _key(row: Mapping[str, Any]) -> tuple[int, str]:
    """What makes a row one that was shown: its step, and its last name (W&B writes a table as `name.path` and more)."""
    return row.get("step", -1), max((name.partition(".")[0] for name in row if "/" in name), default="")


def _split(line: dict[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], "values": {name: value for name, value in line.items() if name != "step"}}


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a local file, by W&B's own reader; as many as a run that was killed has left."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return [record["history"]["item"] for record in records if "history" in record]
