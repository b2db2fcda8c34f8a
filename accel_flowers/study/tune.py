"""`tune`: trials of a recipe with other values, chosen by Optuna from what the trials before gave; the best becomes a recipe.

Trials are scored on validation alone: the test part stays untouched until the recipe that is chosen is trained. Each trial is a run in
a directory of its own; which values it gets follows from the seed, its number and the trials before, so a search that was killed
goes on as it would have, in the middle of the trial that it was at.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from accel_flowers.config.loading import with_overrides
from accel_flowers.config.schema import Config, config_to_dict
from accel_flowers.core.errors import Diverged, UserError
from accel_flowers.core.files import write_text_durably, writing
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.core.yaml_text import dump_yaml
from accel_flowers.data.sampler import random_key
from accel_flowers.data.split import load_split
from accel_flowers.metrics.classification import lower_is_better
from accel_flowers.study.members import recipe_of
from accel_flowers.study.space import Range, Space, as_flags, holds, in_words
from accel_flowers.tracking.run_dir import SPLIT_FILE, holds_run
from accel_flowers.training.build_data import check_source
from accel_flowers.training.epoch import SeenEnough
from accel_flowers.training.train import train

_log = logging.getLogger(__name__)

TUNE_FILE, JOURNAL_FILE, BEST_FILE = "tune.json", "optuna.jsonl", "best.yaml"
_FORMAT = 1
_MAX_BYTES = 2**24
_STARTUP = 5
"""Trials that nothing is concluded from yet, neither values nor which to end early."""


@dataclass(frozen=True)
class Trial:
    """One that has ended."""

    number: int
    values: Mapping[str, Any]
    score: float | None
    """Of its best epoch, on validation; None where it came to nothing."""
    how: str
    """complete, pruned or failed"""


@dataclass(frozen=True)
class Tuned:
    """What a search came to."""

    run_dir: Path
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None
    """None = no trial has come to its end."""
    num_val: int
    """Pictures that the score is of."""

    def in_words(self) -> str:
        """The best trials, what to type for a run of the best one, and how far its score flatters."""
        ended = [trial for trial in self.trials if trial.score is not None]
        ranked = sorted(ended, key=_rank(self.metric))
        lines = [f"{'trial':>5}  {self.metric:>10}  "]
        lines += [f"{trial.number:>5}  {trial.score:10.4f}  {in_words(trial.values)}" for trial in ranked[:10]]
        pruned = sum(trial.how == "pruned" for trial in self.trials)
        failed = sum(trial.how == "failed" for trial in self.trials)
        lines.append(f"{number_of(len(self.trials), 'trial')}, {pruned} of them ended early, {failed} failed")
        if self.best is None:
            return "\n".join(
                [*lines, "No trial has come to its end: give more --trials or --minutes and --resume auto."]
            )
        recipe = shlex.quote(str(self.run_dir / BEST_FILE))
        lines.append(f"the best as a recipe: {self.run_dir / BEST_FILE} ({' '.join(as_flags(self.best.values))})")
        lines.append(f"train it: accel-flowers train {recipe} --run-dir {shlex.quote(str(self.run_dir / 'best'))}")
        return "\n".join([*lines, self.how_far_it_flatters()])

    def how_far_it_flatters(self) -> str:
        """What choosing among so many does to the score of the one that was chosen."""
        count = sum(trial.score is not None for trial in self.trials)
        if self.metric != "accuracy" or self.best is None or self.best.score is None or count < 2 or not self.num_val:
            return f"its {self.metric} is the best of {number_of(count, 'trial')}, so it flatters: only the test part says what the recipe is worth"
        lift = expected_lift(self.best.score, self.num_val, count)
        return (
            f"its accuracy is the best of {count} on the same {number_of(self.num_val, 'picture')}, so it flatters: trials that were all "
            f"equally good would differ enough by chance for the best to look up to {100 * lift:.1f} points better than it is. Only the test "
            "part, which no trial has seen, says what the recipe is worth."
        )


def expected_lift(accuracy: float, num_images: int, trials: int) -> float:
    """How far the best of equally good, independent trials is expected above their mean, by the chance of few images alone.

    The expected largest of n normal values (Blom 1958) times the binomial standard error; trials on the same images are alike in
    part, so it is an upper bound.
    """
    from scipy.stats import norm  # a second of import

    highest = float(norm.ppf((trials - 0.375) / (trials + 0.25)))
    return highest * math.sqrt(accuracy * (1 - accuracy) / num_images)


def tune(
    config: Config,
    space: Space,
    *,
    trials: int = 20,
    minutes: float | None = None,
    share: Sequence[int] | None = None,
    owns_process: bool = False,
) -> Tuned:
    """Search until so many trials have ended, or the time is over.

    Args:
        config: the recipe, resolved; `run_dir` (the search's) and `data.path` are set.
        space: what is searched.
        trials: those of an earlier call counted.
        minutes: from now; a trial that is under way then ends with its epoch.
        share: of several processes that search together: what `begin_search` has given to this one; None = there are no others.
        owns_process: as of `train`.

    Raises:
        UserError: a mistake in the recipe or the folder; another search, or a run, is there; Optuna is not installed.
        Interrupted: a signal; the same call goes on.
    """
    optuna = import_optuna()
    if trials < 2 or (minutes is not None and minutes <= 0):
        raise UserError(
            f"--trials {trials}, --minutes {minutes}: allowed are 2 trials or more, and more than 0 minutes."
        )
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    left_over = begin_search(config, space, run_dir) if share is None else share
    study = _study(optuna, config, run_dir)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    for number in left_over:
        known = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, known._trial_id)
        _try(optuna, study, trial, config, space, run_dir, deadline, owns_process)
    while deadline is None or time.monotonic() < deadline:
        study.sampler = _sampler(optuna, config, len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        if trial.number >= trials:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            break
        _try(optuna, study, trial, config, space, run_dir, deadline, owns_process)
    found = read_search(config, run_dir, trials)
    if found.best and share is None:
        write_best(config, found)
    return found


def import_optuna() -> ModuleType:
    """Optuna, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("tune needs Optuna, and it is not installed: pip install 'accel-flowers[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def begin_search(config: Config, space: Space, run_dir: Path) -> list[int]:
    """Open the directory, put the recipe as it stands in front of all trials, and see what a call that was killed has left.

    Returns:
        Numbers of trials that are to go on; no other process may search yet.

    Raises:
        UserError: as of `open_search`.
    """
    open_search(config, space, run_dir)
    optuna = import_optuna()
    study = _study(optuna, config, run_dir)
    trials = study.get_trials(deepcopy=False)
    if not trials and (own := holds(space, config)):
        study.enqueue_trial(own)  # what is chosen then beats the recipe, or is it
    return [trial.number for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]


def open_search(config: Config, space: Space, run_dir: Path) -> None:
    """Begin a search in its directory, or see that it is the one that is there.

    Raises:
        UserError: a run, or another search, is there; the directory cannot be made.
    """
    check_source(config.data)
    if holds_run(run_dir):
        raise UserError(
            f"'{run_dir}' holds a single run, and nothing is overwritten: give another directory with --run-dir DIR."
        )
    document = {
        "format": _FORMAT,
        "recipe": recipe_of(config),
        "space": {name: _plain(values) for name, values in space.items()},
    }
    path = run_dir / TUNE_FILE
    if not path.is_file():
        with writing(f"The directory '{run_dir}'", "Give another one with --run-dir DIR."):
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text_durably(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        return
    if config.resume != "auto":
        raise UserError(
            f"'{run_dir}' holds a search already, and nothing is overwritten: go on with it by --resume auto, or give another "
            "directory with --run-dir DIR."
        )
    try:
        there = parse_json(read_text(path, max_bytes=_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from None
    if there != document:
        raise UserError(
            f"The search in '{run_dir}' was begun with another recipe or --search ({path} has them). Go on with the same words, or begin "
            "another one with --run-dir DIR."
        )


def _plain(values: Range | tuple[Any, ...]) -> Any:
    return (
        {"low": values.low, "high": values.high, "whole": values.whole} if isinstance(values, Range) else list(values)
    )


def _study(optuna: ModuleType, config: Config, run_dir: Path) -> Any:
    """Optuna's study in the directory; all processes that search together append to one file."""
    journal = optuna.storages.journal
    file = str(run_dir / JOURNAL_FILE)
    storage = optuna.storages.JournalStorage(
        journal.JournalFileBackend(file, lock_obj=journal.JournalFileOpenLock(file))
    )
    return optuna.create_study(
        storage=storage,
        study_name="tune",
        load_if_exists=True,
        direction="minimize" if lower_is_better(config.train.best_metric) else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=1),
    )


def _sampler(optuna: ModuleType, config: Config, number: int) -> Any:
    """Of one trial: its chance follows from its number, not from how many were drawn since the program began."""
    seed = random_key(config.train.seed, "tune", number) % 2**32
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)


def _try(
    optuna: ModuleType,
    study: Any,
    trial: Any,
    config: Config,
    space: Space,
    run_dir: Path,
    deadline: float | None,
    owns_process: bool,
) -> None:
    """Train one trial, and tell Optuna what it came to."""
    state = optuna.trial.TrialState
    values = suggest(trial, space)
    told: set[int] = {int(step) for step in study.get_trials(deepcopy=False)[trial.number].intermediate_values}
    _log.info(f"--- trial {trial.number}: {in_words(values)}")

    def watch(epoch: int, value: float) -> bool:
        if epoch not in told:
            trial.report(value, epoch)
        if deadline is not None and time.monotonic() > deadline:
            return True
        return bool(trial.should_prune())

    try:
        found = train(trial_config(config, values, run_dir, trial.number), owns_process=owns_process, watch=watch)
    except SeenEnough:
        study.tell(trial, state=state.PRUNED)
        _log.info(f"trial {trial.number} ended early")
    except UserError as error:
        if not isinstance(error.__context__, Diverged):
            raise
        study.tell(trial, state=state.FAIL)
        _log.info(f"trial {trial.number} failed: {error.__context__}")
    else:
        study.tell(trial, found.best_value)


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The values of a trial."""
    values: dict[str, Any] = {}
    for name, each in space.items():
        if not isinstance(each, Range):
            values[name] = trial.suggest_categorical(name, each)
        elif each.whole:
            values[name] = trial.suggest_int(name, int(each.low), int(each.high), log=each.log)
        else:
            values[name] = trial.suggest_float(name, each.low, each.high, log=each.log)
    return values


def trial_config(config: Config, values: Mapping[str, Any], run_dir: Path, number: int) -> Config:
    """The configuration of one trial."""
    config = with_overrides(config, values, what=f"The values of trial {number}")
    tracking = config.tracking.model_copy(update={"report": False})
    update = {"run_dir": str(run_dir / f"trial-{number}"), "resume": "auto", "tracking": tracking}
    return config.model_copy(update=update)


def read_search(config: Config, run_dir: Path, trials: int) -> Tuned:
    """What a search has come to so far."""
    optuna = import_optuna()
    state = optuna.trial.TrialState
    names = {state.COMPLETE: "complete", state.PRUNED: "pruned", state.FAIL: "failed"}
    found = []
    for frozen in _study(optuna, config, run_dir).get_trials(deepcopy=False):
        if frozen.state in names and frozen.number < trials:
            scores = [*frozen.intermediate_values.values(), *(frozen.values or [])]
            best = (min if lower_is_better(config.train.best_metric) else max)(scores, default=None)
            found.append(Trial(frozen.number, dict(frozen.params), best, names[frozen.state]))
    complete = [trial for trial in found if trial.how == "complete"]
    best_trial = min(complete, key=_rank(config.train.best_metric), default=None)
    num_val = len(load_split(run_dir / "trial-0" / SPLIT_FILE).files_of("val")) if found else 0
    return Tuned(run_dir, config.train.best_metric, tuple(found), best_trial, num_val)


def _rank(metric: str) -> Callable[[Trial], tuple[float, int]]:
    """Best first; of equal ones the earlier."""
    sign = 1 if lower_is_better(metric) else -1
    return lambda trial: (sign * (trial.score if trial.score is not None else math.inf), trial.number)


def write_best(config: Config, found: Tuned) -> None:
    """Write the best trial as a recipe.

    Raises:
        UserError: the disk refuses.
    """
    assert found.best is not None
    values = config_to_dict(with_overrides(config, found.best.values))
    values |= {"run_dir": None, "resume": "never"}
    about = {**values["about"], "summary": f"{values['about']['summary']} ({in_words(found.best.values)})".strip()}
    head = [
        f"# The best of {number_of(len(found.trials), 'trial')} by validation {found.metric}; {found.how_far_it_flatters()}.".replace(
            "\n", " "
        ),
    ]
    with writing(f"'{found.run_dir / BEST_FILE}'", "Make room and go on with --resume auto."):
        text = dump_yaml({**values, "about": about})
        write_text_durably(found.run_dir / BEST_FILE, "\n".join([*head, text]))
