"""The training run: from a configuration to a run directory. The loop itself is in `loop.py`."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from accel_flowers.config.effects import fit_warmup, settings_without_effect
from accel_flowers.config.field_types import AUTO
from accel_flowers.config.loading import PARTS_KEY, read_config
from accel_flowers.config.schema import Config, config_to_dict, own_parts
from accel_flowers.config.several import settle_labels
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.console import Progress, attach_to_notebook
from accel_flowers.core.errors import Diverged, UserError
from accel_flowers.core.machine import check_can_train
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.signals import signals_stop
from accel_flowers.data.split import save_split
from accel_flowers.data.workers import local_cores, start_forkserver, workers_as_user_error
from accel_flowers.distributed.collectives import broadcast_from_main, log_on_main
from accel_flowers.distributed.health import HealthTimes
from accel_flowers.distributed.launch import launched_precision
from accel_flowers.distributed.session import ProcessSession, process_session
from accel_flowers.distributed.shared_folder import check_shared
from accel_flowers.inference.image_classifier import ImageClassifier, load_model
from accel_flowers.metrics.classification import Scores
from accel_flowers.models.preprocessing import settle_preprocessing
from accel_flowers.tracking.jsonl import forget_after
from accel_flowers.tracking.last_error import forget_error, note_error, read_error
from accel_flowers.tracking.run_dir import (
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_DIR,
    SPLIT_FILE,
    RunDirLock,
    check_run_dir,
    fixed_fields,
    holds_run,
    open_run_dir,
    versions,
    write_config,
)
from accel_flowers.tracking.trackers import build_trackers, check_trackers, start_trackers, tell_end
from accel_flowers.tracking.wandb_environment import obey_environment, said_by_environment
from accel_flowers.training.budget import fit_to_minutes
from accel_flowers.training.build import build_run
from accel_flowers.training.build_data import check_source
from accel_flowers.training.checkpoint import Checkpoints
from accel_flowers.training.debugging import shorten, stricter
from accel_flowers.training.distillation import described_teacher
from accel_flowers.training.epoch import finish, save
from accel_flowers.training.loop import loop
from accel_flowers.training.precision import choose_precision
from accel_flowers.training.profiler import StepProfiler
from accel_flowers.training.rollback import roll_back
from accel_flowers.training.run import Session, Watch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run_dir: Path
    scores: dict[str, Scores]
    """Part → scores of the best epoch's weights: "val" and, where there is such a part, "test"."""
    best_epoch: int
    """From 1."""
    best_value: float
    """Of `train.best_metric` on validation, in that epoch."""

    @cached_property
    def model(self) -> ImageClassifier:
        """The best epoch's model, read from the run directory when it is first asked for."""
        return load_model(self.run_dir / MODEL_DIR)


def train(
    config: Config,
    *,
    owns_process: bool = False,
    watch: Watch | None = None,
    times: HealthTimes = HealthTimes(),  # noqa: B008 - it is frozen
) -> TrainResult:
    """Train, keep the best, score the test part once; collective.

    Args:
        config: resolved; `run_dir` and `data.path` are set.
        owns_process: whether SIGTERM, SIGUSR1, SIGINT and SIGHUP mean "checkpoint and leave" and all cores are taken for the report, as on
            the command line; a notebook's or another program's signals and threads are left alone.
        watch: sees each epoch and may end the run with it. The run is then one of several to choose from: the test part is not scored,
            and there is no report.
        times: how long the processes wait for each other.

    Raises:
        SeenEnough: `watch` ended it.
        UserError: a mistake in the configuration, the folder, the weights or the launch, found before the first step;
            a disk that refuses to write; a loss that is no number.
        Interrupted: a signal; a checkpoint was written.
        RankLost: another process is gone.
    """
    check_can_train()
    begun = time.monotonic()
    config, told = fit_warmup(shorten(config))
    config, taken = settle_labels(config)
    if config.run_dir is None:
        raise UserError("Where shall the run go? Set run_dir, for example to runs/first.")
    run_dir = Path(config.run_dir)
    config, settled = settle_preprocessing(_with_earlier_choice(config, run_dir))
    if not owns_process:
        attach_to_notebook()
    tracking = obey_environment(config.tracking, run_dir)
    told = [*told, *taken, *settled, *said_by_environment(config.tracking, tracking)]
    config = config.model_copy(update={"tracking": tracking})
    trackers = build_trackers(config.tracking, run_dir)
    if config.data.num_workers or (config.data.num_workers is None and torch.accelerator.is_available()):
        start_forkserver()
    facts = {**versions(), **fixed_fields(config), "parts": _parts(config), "precision": launched_precision()}
    with process_session(facts, owns_process=owns_process, times=times) as together, RunDirLock(times.lock) as lock:
        processes = together.processes
        broadcast_from_main(processes, lambda: check_run_dir(run_dir, config, lock))
        log_on_main(processes, *told, *settings_without_effect(config, os.environ))
        broadcast_from_main(processes, lambda: check_source(config.data))
        broadcast_from_main(processes, lambda: check_trackers(trackers))
        precision = broadcast_from_main(
            processes, lambda: choose_precision(config, processes, run_dir=run_dir, bare=owns_process)
        )
        accelerator = together.build_accelerator(mixed_precision=precision, trackers=trackers, run_dir=run_dir)
        together.when_it_ends(lambda error: tell_end(accelerator, error))
        with (
            fast_arithmetic(accelerator.device, deterministic=config.debug.deterministic),
            _session(config, run_dir, together, lock, accelerator, begun) as session,
        ):
            session.watch = watch
            scores = _train_to_the_end(session)
        best_value = session.run.state.best_value
        assert best_value is not None
        best_epoch, on = session.run.state.best_epoch, accelerator.device.type
        is_main_process = accelerator.is_main_process
    # All is saved, and the other processes may leave: nobody waits for the drawing, nothing is lost where it fails.
    if is_main_process and config.tracking.report and watch is None:
        if owns_process and on != "cpu":
            torch.set_num_threads(local_cores(1))  # launchers leave each process of several one core
        saved = f"while it drew the report; the run is done and saved: draw it with\naccel-flowers report {run_dir}"
        with signals_stop(saved) if owns_process else nullcontext():
            _draw_report(run_dir)
    return TrainResult(run_dir, scores, best_epoch, best_value)


def _with_earlier_choice(config: Config, run_dir: Path) -> Config:
    """Of a run that goes on, perhaps on another machine, the network that was chosen when it began."""
    if config.model.name != AUTO or not holds_run(run_dir):
        return config
    begun = read_config(run_dir / CONFIG_FILE, what=f"'{run_dir / CONFIG_FILE}'")
    return config.model_copy(update={"model": config.model.model_copy(update={"name": begun.model.name})})


@contextmanager
def _session(
    config: Config, run_dir: Path, together: ProcessSession, lock: RunDirLock, accelerator: Any, begun: float
) -> Iterator[Session]:
    """The run in its directory, restored where that holds a checkpoint; collective."""
    with ExitStack() as stack:
        checkpoints = Checkpoints(run_dir, accelerator, config.checkpoint)
        stack.callback(checkpoints.close)
        newest, passed_over = broadcast_from_main(accelerator, checkpoints.find_newest)
        log_on_main(accelerator, *passed_over)
        if newest:
            check_shared(accelerator, run_dir, patience=together.times.look)
        split_file = run_dir / SPLIT_FILE if holds_run(run_dir) else None
        with oom_as_user_error():  # where the moving average or DDP's buckets are made, too
            run = build_run(config, accelerator, split_file=split_file, state=newest)
            if config.train.minutes and not run.state.num_steps:
                fit_to_minutes(run, begun=begun)
        together.health.files_of = run.files_of
        together.health.when_lost = partial(note_error, run_dir, accelerator.process_index)
        session = Session(
            run=run,
            run_dir=run_dir,
            checkpoints=checkpoints,
            preemption=together.preemption(accelerator, config.checkpoint),
            progress=Progress(run.plan.num_steps, run.state.step, enabled=accelerator.is_main_process),
            profiler=StepProfiler(config.debug, run_dir, accelerator, run.network),
        )
        if newest:
            session.restore(newest)
        _import_for_later(config, is_main=accelerator.is_main_process)
        _open_directory(session, lock, config)
        if not newest:
            check_shared(accelerator, run_dir, patience=together.times.look)
        stack.enter_context(session.progress)
        stack.enter_context(session.preemption)
        stack.enter_context(session.profiler)
        stack.enter_context(stricter(config.debug))
        yield session


_AT_AN_EPOCHS_END = ("accel_flowers.metrics.label_metrics", "torch.utils.serialization.config")
_AT_THE_END = ("scipy.optimize", "pyarrow.parquet")
_FOR_THE_REPORT = (
    "accel_flowers.report.draw", "accel_flowers.report.cam", "captum.attr", "cleanlab.filter", "scipy.stats",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "matplotlib.style.core",
)  # fmt: skip


def _import_for_later(config: Config, *, is_main: bool) -> None:
    """Import before the first step what only the end of an epoch or of the run asks for: what is missing or broken is
    told now, and an environment that changes meanwhile does no harm."""
    for name in (*_AT_AN_EPOCHS_END, *(_AT_THE_END if is_main else ())):
        importlib.import_module(name)
    if is_main and config.tracking.report:
        try:
            for name in _FOR_THE_REPORT:
                importlib.import_module(name)
        except ImportError as error:
            _log.info(f"there will be no report: {error}")


def _open_directory(session: Session, lock: RunDirLock, config: Config) -> None:
    """Write what the run directory holds from the start, and open the trackers; collective."""
    run, run_dir, accelerator = session.run, session.run_dir, session.run.accelerator
    environment = broadcast_from_main(accelerator, lambda: open_run_dir(run_dir, lock))
    parts = _parts(run.config)
    if holds_run(run_dir) and environment.get(PARTS_KEY, {}) != parts:
        log_on_main(accelerator, _changed(environment.get(PARTS_KEY), parts))

    environment |= {
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "launcher_precision": launched_precision(),
        "device": str(accelerator.device),
        **({PARTS_KEY: parts} if parts else {}),
    }
    asked, taken = run.config.train.global_batch_size, run.plan.global_batch_size
    if taken != asked:
        environment["pictures_in_a_step"] = f"{taken}, for train.global_batch_size {asked} is more than there are"

    def write() -> None:
        if told := read_error(run_dir):
            _log.info(f"this run ended before with: {told}")
            forget_error(run_dir)
        if not holds_run(run_dir):
            # The configuration comes last: from then on the directory holds a run, which nothing overwrites.
            save_split(run.split, run_dir / SPLIT_FILE)
            write_config(run_dir, config, environment)  # the recipe: how long it is follows from its pictures
        forget_after(run_dir / METRICS_FILE, run.state.step, scored=run.is_scored())

    broadcast_from_main(accelerator, write)
    values = config_to_dict(run.config)
    images = {part: len(found) for part, found in run.parts.items()}
    facts = {"environment": environment, "classes": list(run.spec.class_names), "images": images}
    start_trackers(accelerator, values, facts, run_id=environment["run_id"], next_step=run.state.step + 1)
    if run.config.train.on_nan == "rollback" and not run.state.step:
        save(session)  # something to go back to from the first epoch, too


def _parts(config: Config) -> dict[str, dict[str, str]]:
    """What a run relies on beside this program, its recipe and its photos: the user's own parts, and a teacher."""
    return own_parts(config) | described_teacher(config)


def _changed(before: object, now: Mapping[str, Mapping[str, str]]) -> str:
    """What to tell of parts of the user's own, or a teacher, that are others than when the run began."""
    known = before if isinstance(before, dict) else {}
    names = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    return f"changed since this run began, so it may not go on as it would have: {', '.join(names)}"


def _train_to_the_end(session: Session) -> dict[str, Scores]:
    """The loop and the final scores, again from the last checkpoint where a loss is no number and the recipe says so."""
    while True:
        try:
            with oom_as_user_error(), workers_as_user_error():
                loop(session)
            if session.watch:
                session.checkpoints.wait()
                return {}
            return finish(session)
        except Diverged as diverged:
            roll_back(session, diverged)


def _draw_report(run_dir: Path) -> None:
    from accel_flowers.report.draw import draw_report  # seconds of import

    try:
        _log.info(f"report: {draw_report(run_dir)}")
    # What a full disk, short memory, photos that vanish or a library may answer with; the run itself is done.
    except (OSError, RuntimeError, ValueError, LookupError, ImportError) as error:
        _log.info(f"no report ({error or type(error).__name__}): try again with accel-flowers report {run_dir}")
