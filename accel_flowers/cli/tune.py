"""`tune`."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import check_recipe_first
from accel_flowers.config.loading import config_from_flags, load_recipe
from accel_flowers.config.schema import Config
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import launched_place

_WORKER = "ACCEL_FLOWERS_TUNE_WORKER"
"""Of a process that another one has started to search with it: the trials that it goes on with, as JSON."""


@dataclass(frozen=True)
class _TuneWords:
    """Search for better values of a recipe: trials that are scored on validation, the hopeless ones ended early, by Optuna.

    The best becomes RUN_DIR/best.yaml, a recipe. All flags of `train` can follow. The test part stays untouched. `--resume auto` goes
    on with a search.
    """

    trials: int = 20
    """Trials, those of an earlier call counted."""
    minutes: float | None = None
    """Most that this call takes; the trial that is under way then ends with its epoch."""
    search: tuple[str, ...] = ()
    """A field and where it is searched, as optim.lr=1e-4:1e-1 or loss.label_smoothing=0,0.1, several where wanted; none = rate, weight decay and label smoothing around the recipe's own."""
    workers: int | None = None
    """Processes that search together, each with a GPU of its own; None = as many as there are GPUs, one on a CPU."""
    json: bool = False
    """Print all trials as one JSON object."""


def tune_command(words: Sequence[str]) -> int:
    program = "accel-flowers tune RECIPE"
    check_recipe_first(_TuneWords, words, program)
    if launched_place()[1] > 1:
        raise UserError(
            "tune is not started by a launcher of several processes: it starts one for each GPU itself. Type accel-flowers tune ... alone."
        )
    asked, rest = tyro.cli(_TuneWords, args=words[1:], prog=program, return_unknown_args=True)
    config = config_from_flags(load_recipe(words[0]), rest, program=program)
    if config.run_dir is None:
        config = config.model_copy(update={"run_dir": f"runs/{Path(words[0]).stem}-tune"})
    from accel_flowers.study.space import default_space, parse_space
    from accel_flowers.study.tune import begin_search, read_search, tune, write_best

    space = parse_space(asked.search, config) if asked.search else default_space(config)
    if _WORKER in os.environ:
        share = json.loads(os.environ[_WORKER])
        tune(config, space, trials=asked.trials, minutes=asked.minutes, share=share, owns_process=True)
        return 0
    workers = asked.workers if asked.workers is not None else max(1, _num_gpus())
    if workers < 1:
        raise UserError(f"--workers {workers} is not allowed: 1 or more.")
    if workers == 1:
        found = tune(config, space, trials=asked.trials, minutes=asked.minutes, owns_process=True)
    else:
        assert config.run_dir is not None
        left_over = begin_search(config, space, Path(config.run_dir))
        _search_together(words, config, [left_over[number::workers] for number in range(workers)])
        found = read_search(config, Path(config.run_dir), asked.trials)
        if found.best:
            write_best(config, found)
    trials = [dataclasses.asdict(trial) for trial in found.trials]
    write_result(json.dumps({"metric": found.metric, "trials": trials}, indent=1) if asked.json else found.in_words())
    return 0


def _num_gpus() -> int:
    import torch  # seconds of import

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _search_together(words: Sequence[str], config: Config, shares: Sequence[Sequence[int]]) -> None:
    """Start a process for each share of trials that go on, and wait for all.

    Raises:
        UserError: one has failed; it has said why.
    """
    run_dir = Path(config.run_dir or "")
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    devices = visible or [str(number) for number in range(_num_gpus())]
    started = []
    for number, share in enumerate(shares):
        place = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
        environment = {**os.environ, **place, _WORKER: json.dumps(list(share))}
        command = [sys.executable, "-m", "accel_flowers", "tune", *words, "--run-dir", str(run_dir), "--resume", "auto"]
        started.append(subprocess.Popen(command, env=environment))
    try:
        codes = [process.wait() for process in started]
    except BaseException:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        raise
    if any(codes):
        raise UserError(
            f"{sum(map(bool, codes))} of {len(shares)} searching processes failed; what they said stands above."
        )
