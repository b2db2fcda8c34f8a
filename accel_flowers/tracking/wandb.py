"""Weights & Biases: curves, the confusion matrix, scores of each class, worst images, the log, the model.

W&B gets each step once, also where the run is killed: what it had not written then (it buffers much) is given to it
again from metrics.jsonl after the resume, and what it has is not repeated. Its own counter would drop all that is older
than the newest it has seen; so steps are a value of their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from typing import Any

from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core import registry
from accel_flowers.core.errors import Diverged, Interrupted, RankLost, UserError, error_text
from accel_flowers.core.files import writing
from accel_flowers.metrics.classification import HEADLINE, lower_is_better
from accel_flowers.tracking.run_dir import METRICS_FILE, read_metrics
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.tracker import Tracker
from accel_flowers.tracking.wandb_environment import DEFAULT_PROJECT, files_under, wandb_root
from accel_flowers.tracking.wandb_errors import LOG_IN, as_user_errors, is_refusal
from accel_flowers.tracking.wandb_tables import tables_of

_log = logging.getLogger(__name__)

SECONDS_TO_CONNECT, SECONDS_TO_FINISH = 20.0, 60.0
"""How long a network that does not answer may keep a run from starting and from ending."""


class WandbTracker(Tracker):
    """One W&B run for the whole job, also after a resume.

    Args:
        run_dir: holds W&B's local files, unless WANDB_DIR names another place.
        config: project, name, mode and the like, with what the environment says.
    """

    name = "wandb"
    after_failure = "W&B gets nothing more of this run; a resumed run shows it what is missing"

    def __init__(self, run_dir: Path, config: TrackingConfig) -> None:
        super().__init__()
        self._run_dir, self._config = run_dir, config
        self._root = wandb_root(run_dir)
        self._shown: set[tuple[int, str]] = set()
        self._artifacts: set[str] = set()
        self._adds = False
        self._answers = True
        self._exit_code = 0
        self._opened = ExitStack()
        self.run: Any = None

    @property
    def tracker(self) -> Any:
        """The run, for those who want more of it."""
        return self.run

    def check(self) -> None:
        """See that W&B takes the settings and lets the user in.

        Raises:
            UserError: it does not, or its files cannot be written.
        """
        with as_user_errors(), files_under(self._root, offline=self._config.wandb == "offline"):
            import wandb

            wandb.setup()  # reads all that the environment sets
            if self._config.wandb == "online":
                try:
                    _ = wandb.Api(timeout=int(SECONDS_TO_CONNECT)).viewer
                except wandb.errors.UsageError:
                    raise  # nobody is logged in
                except Exception as error:  # noqa: BLE001 - of several kinds, by version
                    if is_refusal(error):
                        raise UserError(f"W&B does not let you in: {error_text(error)}. {LOG_IN}") from None
                    self._answers = False
                    _log.info(f"W&B does not answer ({error_text(error)})")
                    wandb.teardown()

    def open(self, run_id: str, next_step: int) -> None:
        """Begin the run or go on with it; where the network does not answer, offline.

        Raises:
            UserError: W&B refuses, for example because nobody is logged in.
        """
        del next_step  # what it has already is asked of it
        offline = self._config.wandb == "offline" or not self._answers
        with writing(f"W&B's folder '{self._root}'", "Give another one with WANDB_DIR."):
            self._root.mkdir(parents=True, exist_ok=True)
        self._opened.enter_context(files_under(self._root, offline=offline))
        try:
            with as_user_errors():
                self.run = self._begin(run_id, offline=offline)
        except BaseException:
            self._opened.close()
            raise
        if self.run.offline:
            _keep_paths_relative(self.run, self._root)
        self._define_metrics()
        self._take_note_of(self._records_before())
        for line in read_metrics(self._run_dir / METRICS_FILE):
            self.log(**_split(line))
        self._opened.enter_context(_log_goes_to(self.run))

    def _begin(self, run_id: str, *, offline: bool) -> Any:
        import wandb

        init = {
            "project": self._config.wandb_project or DEFAULT_PROJECT,
            "name": self._config.wandb_name or self._run_dir.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(self._root),
            "settings": wandb.Settings(
                quiet=True, console="off", init_timeout=SECONDS_TO_CONNECT, finish_timeout=SECONDS_TO_FINISH
            ),
        }
        if "WANDB_JOB_TYPE" not in os.environ:  # what is given here would go over the environment
            init["job_type"] = "train"
        if offline:
            return wandb.init(mode="offline", **init)
        try:
            return wandb.init(mode="online", **init)
        except wandb.errors.CommError as error:
            if is_refusal(error):
                raise UserError(f"W&B does not let you in: {error_text(error)}. {LOG_IN}") from None
            _log.info(f"W&B does not answer ({error_text(error)}): the run is written for `wandb sync` instead")
            wandb.teardown()  # its service still holds the run that did not begin
            return wandb.init(mode="offline", **init)

    def _define_metrics(self) -> None:
        for name in ("step", "epoch", "kind"):
            self.run.define_metric(name, hidden=True)
        for group in ("train", "lr", "speed"):
            self.run.define_metric(f"{group}/*", step_metric="step")
        best = {name: "min" if lower_is_better(name) else "max" for name in HEADLINE}
        best |= {name: "min" if lower_is_better(name) else "max" for name in registry.registered("metric")}
        for group in ("val", "val_ema", "test"):
            self.run.define_metric(f"{group}/*", step_metric="epoch")
            for score, kind in best.items():
                self.run.define_metric(f"{group}/{score}", step_metric="epoch", summary=f"{kind},last")

    def _take_note_of(self, records: list[dict[str, Any]]) -> None:
        """Remember what W&B has already."""
        self._shown = {_key(record["history"]["item"]) for record in records if "history" in record}
        self._artifacts = {record["artifact"]["digest"] for record in records if "artifact" in record}

    def _records_before(self) -> list[dict[str, Any]]:
        """What W&B has of this run: on its server, or in the files that parts of it left here."""
        import wandb

        if not self.run.offline:
            try:
                path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
                rows = wandb.Api(timeout=int(SECONDS_TO_CONNECT)).run(path).scan_history()
                return [{"history": {"item": row}} for row in rows]
            except Exception as error:  # noqa: BLE001 - whatever it is, it is W&B's, and no reason to stop a run
                _log.info(
                    f"W&B does not say what it has of this run ({type(error).__name__}); steps may come twice there"
                )
                return []
        return [record for file in self._files() for record in _read_records(file)]

    def _files(self) -> list[Path]:
        """Of the parts of this run that are here, the oldest first."""
        name = escape(self.run.id)
        return sorted(self._root.glob(f"wandb/*run-*-{name}/run-{name}.wandb"))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration, to search and compare runs by."""
        self.run.config.update(values, allow_val_change=True)

    def describe(self, facts: dict[str, Any]) -> None:
        """Keep it beside the configuration; the architecture is a tag, unless the environment has tags."""
        self.run.config.update(facts, allow_val_change=True)
        if "WANDB_TAGS" not in os.environ:
            self.run.tags = tuple(dict.fromkeys([*(self.run.tags or ()), self.run.config["model"]["name"]]))

    def log(self, values: dict[str, Any], step: int | None = None, *, kind: str | None = None, **_: Any) -> None:
        """Show values once.

        Args:
            values: name → number, or a table.
            step: the optimizer step; with the kind it says which row this is.
            kind: what the row is; None = scores or losses, which their names tell.
        """
        row = {"step": step, "kind": kind or _kind_of(values), **values}
        if _key(row) not in self._shown:
            self._shown.add(_key(row))
            self.run.log(row)
            self._adds = True

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """Confusion matrix, scores of each class, and the worst images; of few classes their curves, too."""
        kind = f"{scored.part} tables"
        if (step, kind) in self._shown:
            return
        named = {f"{scored.part}/{name}": table for name, table in tables_of(scored).items()}
        curves = {f"{scored.part}_f1/{name}": value for name, value in scored.curves_of_classes().items()}
        for name in curves:
            self.run.define_metric(f"{name.partition('/')[0]}/*", step_metric="epoch")
            break
        self.log({"epoch": epoch, **named, **curves}, step=step, kind=kind)

    def keep_model(self, model_dir: Path, last_weights: Path | None) -> None:
        """The model as an artifact: alias best, and last for the last epoch's weights."""
        import wandb

        name = "model-" + re.sub(r"[^0-9A-Za-z_.-]", "_", self.run.id)  # what an artifact may be called
        if last_weights is not None:
            last = wandb.Artifact(name, type="model", description="weights of the last epoch")
            last.add_file(str(model_dir / "config.json"))
            last.add_file(str(last_weights), name="model.safetensors")
            self._log_artifact(last, ["last"])
        best = wandb.Artifact(name, type="model", description="weights of the best epoch")
        for file in sorted(model_dir.iterdir()):
            best.add_file(str(file))
        self._log_artifact(best, ["best"] if last_weights is not None else ["best", "last"])
        if self._config.wandb_registry:
            self._link(best, self._config.wandb_registry)

    def _link(self, artifact: Any, registry_path: str) -> None:
        """A version in a registry; the run has its model and its end, whatever the registry answers."""
        if self.run.offline:
            _log.info(
                f"W&B links no model of an offline run: link it to {registry_path} on its page when it is uploaded"
            )
            return
        try:
            self.run.link_artifact(artifact, registry_path)
        except Exception as error:  # noqa: BLE001 - of several kinds: no such registry, no right to it, no network
            _log.warning(f"W&B does not link the model to {registry_path} ({error_text(error)})")

    def _log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        if artifact.digest not in self._artifacts:
            self._artifacts.add(artifact.digest)
            self.run.log_artifact(artifact, aliases=aliases)
            self._adds = True
            return
        for entry in artifact.manifest.entries.values():  # W&B has copied its files already
            if entry.local_path and Path(entry.local_path).is_relative_to(self._root / "wandb"):
                Path(entry.local_path).unlink(missing_ok=True)

    def summarize(self, values: dict[str, Any]) -> None:
        """Set what stands for the whole run."""
        self.run.summary.update(values)

    def forget_after(self, step: int) -> None:
        """A rollback: later steps will be shown again, with other values."""
        self._shown = {(shown, kind) for shown, kind in self._shown if shown <= step}

    def warn(self, error: Exception) -> None:
        """An alert, which W&B sends to whoever asked for it."""
        kinds = {type(error), type(error.__context__)}
        title = (
            "A loss is no number"
            if Diverged in kinds
            else "A process is lost"
            if RankLost in kinds
            else "The run failed"
        )
        self.run.alert(title, str(error), level="ERROR")

    def stop(self, error: BaseException) -> None:
        """Say how the run ends; one of a sweep that was told to stop is begun again there."""
        if isinstance(error, Interrupted):
            self._exit_code = Interrupted.RESUME_ME
            self.run.mark_preempting()
            return
        self._exit_code = 1
        if isinstance(error, Exception):
            self.warn(error)

    def finish(self) -> None:
        """End the run; what a dead network did not take stays on the disk."""
        try:
            if self.run is not None:
                self.run.finish(exit_code=self._exit_code)
                if self.run.offline:
                    self._tell_how_to_upload()
        finally:
            self._opened.close()

    def _tell_how_to_upload(self) -> None:
        *before, own = self._files()
        if before and not self._adds and not self._exit_code:
            shutil.rmtree(own.parent, ignore_errors=True)  # a run that had ended before: nothing new
            for link in (self._root / "wandb").iterdir():
                if link.is_symlink() and not link.exists():
                    target = os.readlink(link).replace(own.parent.name, before[-1].parent.name)
                    link.unlink()
                    link.symlink_to(target)
        parts = f"wandb/*run-*-{shlex.quote(self.run.id)}"
        _log.info(f"W&B: this run is uploaded by: cd {shlex.quote(str(self._root))} && wandb sync {parts}")


def _keep_paths_relative(run: Any, root: Path) -> None:
    """Let an offline run name files as seen from `root`: W&B writes where they are now, and a copied folder would not have them."""
    log_artifact = run.log_artifact

    def log_relative(artifact: Any, *args: Any, **words: Any) -> Any:
        for entry in artifact.manifest.entries.values():
            if entry.local_path and Path(entry.local_path).is_relative_to(root):
                entry.local_path = os.path.relpath(entry.local_path, root)
        return log_artifact(artifact, *args, **words)

    run.log_artifact = log_relative


@contextlib.contextmanager
def _log_goes_to(run: Any) -> Iterator[None]:
    """The program's own lines stand in W&B's log of the run; standard output and error are left as they are."""
    handler = _RunLog(run)
    logger = logging.getLogger("accel_flowers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _RunLog(logging.Handler):
    """Gives W&B each line."""

    def __init__(self, run: Any) -> None:
        super().__init__(logging.INFO)
        self._write = getattr(run, "write_logs", None)  # of newer versions of W&B

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a log is no reason to end a run."""
        if self._write is not None:
            with contextlib.suppress(Exception):
                self._write(record.getMessage())


def _key(row: Mapping[str, Any]) -> tuple[int, str]:
    """What makes a row one that was shown: its step and its kind."""
    return row.get("step", -1), row.get("kind") or _kind_of(row)


def _kind_of(names: Iterable[str]) -> str:
    """The kind of a row by what it holds: of one that is logged, and of those that earlier versions left without a kind."""
    names = [name.partition(".")[0] for name in names]  # W&B writes a table as `name.path` and more
    for part in ("train", "val", "test"):
        if f"{part}/worst_pictures" in names:
            return f"{part} tables"
        if any(name.startswith(f"{part}/") for name in names):
            return part
    return "note"


def _split(line: dict[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], "values": {name: value for name, value in line.items() if name != "step"}}


def _read_records(file: Path) -> list[dict[str, Any]]:
    """What a local file holds, by W&B's own reader; as much as a run that was killed has left."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
