"""What a run was set to: the fields that are not the default, or not the same in several runs, and how to repeat it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from accel_flowers.config.schema import Config, flat_fields
from accel_flowers.report.read import RunRecord
from accel_flowers.tracking.run_dir import CONFIG_FILE

_OF_NO_EFFECT = ("run_dir", "resume", "about.")


@dataclass(frozen=True)
class Settings:
    """What the page tells of a run's configuration.

    Attributes:
        changed: (dotted name, value) of each field that is not the default.
        text: config.yaml as it stands.
        environment: versions and hardware: name → value.
        command: what to type to have the same run again.
    """

    changed: tuple[tuple[str, str], ...]
    text: str
    environment: dict[str, str]
    command: str


def settings_of(run: RunRecord) -> Settings:
    """What a run was set to."""
    return Settings(
        changed=tuple((name, value) for name, (value, _) in differing(run.config, Config()).items()),
        text=run.config_text,
        environment={name: _plain(value) for name, value in run.environment.items()},
        command=repeat_command(run),
    )


def differing(*configs: Config) -> dict[str, tuple[str, ...]]:
    """Dotted name → the value in each, of the fields that are not the same in all."""
    values = [flat_fields(config) for config in configs]
    return {
        name: tuple(_typed(each[name]) for each in values)
        for name, first in values[0].items()
        if not name.startswith(_OF_NO_EFFECT) and any(each[name] != first for each in values)
    }


def _typed(value: Any) -> str:
    """A value as one would type it behind its flag: lists and mappings in YAML's flow style."""
    if isinstance(value, list):
        # A pair in a list is a mapping of its own without braces, too.
        bare = (_pairs(each) if isinstance(each, dict) and len(each) == 1 else _typed(each) for each in value)
        return f"[{', '.join(bare)}]"
    return f"{{{_pairs(value)}}}" if isinstance(value, dict) else _plain(value)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {_typed(each)}" for name, each in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items()) or "none"
    return "none" if value is None else str(value)


def repeat_command(run: RunRecord) -> str:
    """What to type to have the same run again, on as many processes and in the same precision."""
    processes, precision = run.environment.get("num_processes", 1), run.environment.get("precision", "no")
    on_cpu = run.environment.get("device") == "cpu"
    program = "accel-flowers"
    if processes != 1 or precision != "no":
        program = "accelerate launch"
        if processes != 1 and on_cpu:
            program += ' --config_file "$(accel-flowers launch-config cpu_2_processes)"'
        elif on_cpu:
            program += " --cpu"
        program += f" --num_processes {processes} --mixed_precision {shlex.quote(str(precision))} -m accel_flowers"
    again = run.run_dir.with_name(f"{run.run_dir.name}-again")
    own = []  # no trial that may end otherwise
    if on_cpu and precision == "bf16":
        own = ["--train.precision", "launcher"]
    elif processes == 1 and precision == "no" and run.config.train.precision == "auto":
        own = ["--train.precision", "no"]
    words = ["train", str(run.run_dir / CONFIG_FILE), "--run-dir", str(again), *own]
    return f"{program} {shlex.join(words)}"
