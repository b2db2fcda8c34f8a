"""The run directory: the interface between training and everything that looks at it later.

config.yaml          the resolved configuration, and the versions and hardware that it ran on
split.json           every image with its part
metrics.jsonl        losses, rates and scores, one object a line
checkpoints/         step-N, each whole by itself, to go on from; last and best point to two of them
model/               best weights, class names, preprocessing: all that evaluate and predict need
predictions.parquet  what the best weights say of every image of validation and test
report.html          all of it as one page; plots/ holds its figures
label_fixes.csv      what the run was told of wrong labels, where it was told anything
last_error.txt       why the processes that were left ended, where one was lost; until the run goes on
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import secrets
import shlex
import stat
import tempfile
import time
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from accel_flowers import __version__
from accel_flowers.config.loading import ENVIRONMENT_KEY, read_config
from accel_flowers.config.paths import with_absolute_paths
from accel_flowers.config.schema import Config, config_to_dict, flat_fields
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import remove_entry, write_text_durably, writing
from accel_flowers.core.machine import available_cores, cpu_name
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.core.yaml_text import MAX_BYTES, dump_yaml, parse_yaml
from accel_flowers.data.label_fixes import MAX_BYTES as MAX_FIXES_BYTES
from accel_flowers.data.label_fixes import read_label_fixes
from accel_flowers.distributed.environment import num_restarts
from accel_flowers.distributed.launch import identify_launcher, is_restart_of

CONFIG_FILE, SPLIT_FILE, METRICS_FILE, MODEL_DIR = "config.yaml", "split.json", "metrics.jsonl", "model"
LABEL_FIXES_FILE = "label_fixes.csv"
_LOCK_FILE = ".lock"
_DIFFERENCES = 5
"""Pictures that an error names whose label fixes have changed."""
_BEGAN_JUST_NOW = "Another run began in '{}' just now: give another directory with --run-dir DIR."
_LAUNCHER_KEY = "launcher"
_MAX_METRICS_BYTES = 2**30
_MAX_RUN_ID, _NOT_IN_RUN_IDS = 128, "/\\#?%:;,'"
"""W&B's own limits."""
_MAY_CHANGE = (
    "run_dir", "resume", "about", "data.num_workers", "data.path", "data.cache_dir", "data.cache_gib", "tracking",
    "checkpoint", "train.cuda_graph", "train.log_every_steps", "train.on_nan", "train.precision", "debug.profile", "debug.detect_anomaly",
)  # fmt: skip
"""Fields that do not change what is learned, so that a resumed run may set them anew. (train.precision is among them
because the launcher may give a resumed run another precision, too: on a GPU a run from a CPU need not stay in float32.)"""


_FIXES = "data.label_fixes"


def holds_run(run_dir: Path) -> bool:
    """Whether a run was begun here."""
    return os.path.exists(run_dir / CONFIG_FILE)


def check_run_dir(run_dir: Path, config: Config, lock: RunDirLock) -> None:
    """See that nothing would be overwritten, and that a resumed run is the same run.

    The run that this launcher's earlier processes began goes on unasked. One that did no step gives way, and so does a
    debug.fast_dev_run to the next one.

    Raises:
        UserError: the directory holds a run and resuming was not asked for, another configuration is given, or the run
            is still going on.
    """
    if os.path.exists(run_dir) and not run_dir.is_dir():
        raise UserError(f"The run directory '{run_dir}' is a file. Give another one with --run-dir DIR.")
    lock.holds_run = holds_run(run_dir)
    if not lock.holds_run:
        _check_writable(run_dir)
        check_run_id(os.environ.get("WANDB_RUN_ID") or "made")
        return
    goes_on = config.resume == "auto" or (
        num_restarts() > 0 and is_restart_of(_read_environment(run_dir / CONFIG_FILE).get(_LAUNCHER_KEY))
    )
    begun = _has_begun(run_dir)
    what = f"'{run_dir / CONFIG_FILE}'"
    if not goes_on:
        is_trial = config.debug.fast_dev_run and read_config(run_dir / CONFIG_FILE, what=what).debug.fast_dev_run
        if begun and not is_trial:
            raise UserError(
                f"'{run_dir}' holds a run already, and nothing is overwritten: go on with it by --resume auto, "
                "or give another directory with --run-dir DIR."
            )
        _give_way(run_dir, lock, is_trial=begun)
        return
    changed = _changed_fields(_with_own_fixes(read_config(run_dir / CONFIG_FILE, what=what), run_dir), config)
    if changed and not begun:
        _give_way(run_dir, lock, is_trial=False)
        return
    if changed:
        raise UserError(
            f"The run in '{run_dir}' was begun with another configuration:\n"
            + "\n".join(f"  {name}: {old!r} then, {new!r} now" for name, (old, new) in changed.items())
            + f"\nGo on with its own ({run_dir / CONFIG_FILE}), or begin a new run with --run-dir DIR"
            + how_to_build_on(run_dir)
            + "."
        )
    lock.take(run_dir)


def how_to_build_on(run_dir: Path) -> str:
    """What to add to a new run so that it begins with what this one has learned; empty where that is nothing yet."""
    weights = run_dir / MODEL_DIR / "model.safetensors"
    return f", which learns on from here with\n--model.weights {shlex.quote(str(weights))}" if weights.is_file() else ""


def _changed_fields(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name → value then and now, of what makes a run this run."""
    old, new = (fixed_fields(with_absolute_paths(each)) for each in (before, now))
    changed = {name: (old[name], new[name]) for name in sorted(old) if old[name] != new[name]}
    if _FIXES in changed and before.data.label_fixes and now.data.label_fixes:
        differences = read_label_fixes(before.data.label_fixes).differences(read_label_fixes(now.data.label_fixes))
        del changed[_FIXES]
        named = list(differences)[:_DIFFERENCES]
        changed |= {f"{_FIXES}, {name}": differences[name] for name in named}
        if more := len(differences) - len(named):
            changed[f"{_FIXES}, {number_of(more, 'picture')} more"] = ("other labels", "other labels")
    return changed


def _with_own_fixes(config: Config, run_dir: Path) -> Config:
    """A run's configuration with the label fixes that it keeps itself, wherever its directory is now."""
    if config.data.label_fixes is None:
        return config
    data = config.data.model_copy(update={"label_fixes": str(run_dir / LABEL_FIXES_FILE)})
    return config.model_copy(update={"data": data})


def _has_begun(run_dir: Path) -> bool:
    """Whether there is anything to lose: a checkpoint after a step, a model, a line of numbers. A run that failed in its
    start left none, for example because nobody was logged in."""
    steps = [path.name.rpartition("-")[2] for path in run_dir.glob("checkpoints/*step-*")]
    metrics = run_dir / METRICS_FILE
    return (
        any(step.strip("0") for step in steps)
        or os.path.exists(run_dir / MODEL_DIR)
        or (os.path.exists(metrics) and metrics.stat().st_size > 0)
    )


def _give_way(run_dir: Path, lock: RunDirLock, *, is_trial: bool) -> None:
    """Remove what a run left that was a trial, or did no step; last of all what makes it one. Files of others stay."""
    lock.take(run_dir)
    if not is_trial and _has_begun(run_dir):  # it was in its start, and its process has come further meanwhile
        raise UserError(_BEGAN_JUST_NOW.format(run_dir))
    for name in ("checkpoints", MODEL_DIR, "plots", "profile", "tensorboard"):
        remove_entry(run_dir / name)
    for name in (METRICS_FILE, "predictions.parquet", "report.html", LABEL_FIXES_FILE, CONFIG_FILE):
        with writing(f"The run directory '{run_dir}'", "Give another one with --run-dir DIR."):
            (run_dir / name).unlink(missing_ok=True)
    lock.holds_run = False


def _check_writable(run_dir: Path) -> None:
    """Before anything is computed that could then not be written."""
    existing = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if os.path.exists(folder))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(run_dir)  # a name that no directory can have fails in another way
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"The run directory '{run_dir}' cannot be made: {error.strerror} ('{existing}'). "
            "Give another one with --run-dir DIR."
        ) from None


def fixed_fields(config: Config) -> dict[str, Any]:
    """What makes a run this run and no other: dotted name → value; of label fixes, the digest of what they say.

    Raises:
        UserError: the file of label fixes cannot be read.
    """
    flat = {
        name: value
        for name, value in flat_fields(config).items()
        if not any(name == free or name.startswith(f"{free}.") for free in _MAY_CHANGE)
    }
    if flat["data.pixels_from"] == "cache":
        flat["data.pixels_from"] = "files"  # the same pixels to the bit
    if config.data.label_fixes is not None:
        flat[_FIXES] = f"fixes {read_label_fixes(config.data.label_fixes).digest}"
    return flat


class RunDirLock:
    """Keeps a run directory for one run at a time; the operating system frees it when the process ends, however.

    fcntl and not the library filelock: the file tells whoever comes second who the first is, and on a file system without
    locks there is none, where filelock would leave a marker file that outlives a killed process.

    Args:
        patience_seconds: for a run that was killed just now.
    """

    def __init__(self, patience_seconds: float = 10.0) -> None:
        self._patience_seconds = patience_seconds
        self._file: FileIO | None = None
        self.holds_run: bool | None = None
        """Whether the directory held a run when it was looked at; None = it was not."""

    def take(self, run_dir: Path) -> None:
        """Take it, or keep it where it was taken before.

        Raises:
            UserError: another run has it.
        """
        if self._file is not None:
            return
        file = _open_lock(run_dir / _LOCK_FILE)
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break  # a file system without locks: as good as none
                if time.monotonic() > deadline:
                    holder = file.read(200).decode(errors="replace").strip()
                    file.close()
                    raise UserError(
                        f"'{run_dir}' is being trained by {holder or 'another process'}: wait for it, end it, or give "
                        "another directory with --run-dir DIR."
                    ) from None
                time.sleep(0.1)
        with contextlib.suppress(OSError):  # a full disk: whoever comes second is refused all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        self._file = file

    def __enter__(self) -> RunDirLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _open_lock(path: Path) -> FileIO:
    """The lock's file, made where it is not there.

    Raises:
        UserError: the directory cannot be written to, or what has the name is no regular file.
    """
    with writing(f"The run directory '{path.parent}'", "Give another one with --run-dir DIR."):
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "r+")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"'{path}' is no regular file, so no run can be kept from another by it: remove it.")
    return file


def open_run_dir(run_dir: Path, lock: RunDirLock) -> dict[str, Any]:
    """Make the directory where it is not there, and keep it for this run.

    Returns:
        What the run's config.yaml says of its environment, or will say: `run_id` (the same after a resume), the
        launcher that began it, versions and hardware.

    Raises:
        UserError: the directory cannot be made, or another run began in it just now.
    """
    held_run = holds_run(run_dir) if lock.holds_run is None else lock.holds_run
    with writing(f"The run directory '{run_dir}'", "Give another one with --run-dir DIR."):
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock.take(run_dir)
    # Between the look and this moment lie minutes, in which another run may have begun, and even ended.
    if holds_run(run_dir) != held_run:
        raise UserError(_BEGAN_JUST_NOW.format(run_dir))
    if held_run:
        return _read_environment(run_dir / CONFIG_FILE)
    launcher = identify_launcher()
    return {
        # The agent of a W&B sweep has named the run already.
        "run_id": check_run_id(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)),
        **({_LAUNCHER_KEY: launcher} if launcher else {}),
        **_versions_and_hardware(),
    }


def _read_environment(file: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_text(file, max_bytes=MAX_BYTES), str(file))
    except OSError as error:
        raise UserError(f"'{file}' cannot be read: {error.strerror}.") from None
    environment = values.get(ENVIRONMENT_KEY) if isinstance(values, dict) else None
    run_id = environment.get("run_id") if isinstance(environment, dict) else None
    if not isinstance(environment, dict) or not _is_run_id(str(run_id or "")):
        raise UserError(f"'{file}' does not tell the run_id of the run under '{ENVIRONMENT_KEY}': letters and digits.")
    return {**environment, "run_id": str(run_id)}


def check_run_id(run_id: str) -> str:
    """The identity that the environment gives the run.

    Raises:
        UserError: W&B would not take it, so that the run could not be found again there.
    """
    if not _is_run_id(run_id):
        raise UserError(
            f"WANDB_RUN_ID is {run_id[:200]!r} in the environment, which is no id of a W&B run: 1 to {_MAX_RUN_ID} characters, "
            f"none of {_NOT_IN_RUN_IDS} and no space at an end. Give another one, or remove it: unset WANDB_RUN_ID"
        )
    return run_id


def _is_run_id(run_id: str) -> bool:
    ok = run_id.isprintable() and run_id == run_id.strip() and not set(run_id) & set(_NOT_IN_RUN_IDS)
    return ok and 0 < len(run_id) <= _MAX_RUN_ID


def recorded_precision(run_dir: Path, launched: str) -> str | None:
    """The precision in which a run goes on: that in which it began, as long as the launcher says what it said then.

    Args:
        run_dir: holds a run.
        launched: the launcher's precision now.

    Returns:
        None where the launcher said something else, or nothing is known.
    """
    environment = _read_environment(run_dir / CONFIG_FILE)
    precision = environment.get("precision")
    same = environment.get("launcher_precision") == launched
    return precision if same and precision in (launched, "no", "bf16", "fp16") else None


def write_config(run_dir: Path, config: Config, environment: dict[str, Any]) -> None:
    """Write config.yaml, with absolute paths: from here on the directory holds a run. It keeps a file of label fixes as it is now.

    Raises:
        UserError: it cannot be written.
    """
    values = config_to_dict(with_absolute_paths(config))
    with writing(f"The run directory '{run_dir}'", "Make room, or give another one with --run-dir DIR."):
        if config.data.label_fixes is not None:
            own = run_dir / LABEL_FIXES_FILE
            write_text_durably(own, read_text(config.data.label_fixes, max_bytes=MAX_FIXES_BYTES))
            values["data"]["label_fixes"] = os.path.abspath(own)
        write_text_durably(run_dir / CONFIG_FILE, dump_yaml({**values, ENVIRONMENT_KEY: environment}))


def versions() -> dict[str, str]:
    """Of this program and of what its numbers may depend on."""
    packages = ("torch", "torchvision", "accelerate", "datasets", "evaluate", "numpy", "pillow")
    return {
        "accel_flowers": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def _versions_and_hardware() -> dict[str, Any]:
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_cores": available_cores(),
        "threads_per_process": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that was cut off by a crash is left out.

    Raises:
        UserError: the file cannot be read, or a line is none that a run wrote; the message says which.
    """
    try:
        lines = read_text(path, max_bytes=_MAX_METRICS_BYTES).split("\n") if os.path.exists(path) else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return [_parse_line(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def _parse_line(line: str, place: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place} is damaged ({error}). Remove the line, or mend it.") from None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise UserError(f"{place} is no line of a run's scores: it needs a 'step'. Remove the line, or mend it.")
    odd = [name for name, value in values.items() if not _is_quantity(value)]
    if odd:
        raise UserError(f"{place} is damaged: '{odd[0]}' is no number. Remove the line, or mend it.")
    return values


def _is_quantity(value: object) -> bool:
    """Also nan and infinity, which Python writes so, and nothing; an integer that no float can hold is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return False
    return not isinstance(value, int) or abs(value) < 2**63
