"""What was said to Accelerate's launcher and it does not pass on: whether to compute on the CPU.

The launcher of one process sets ACCELERATE_USE_CPU; that of several keeps `use_cpu` of its configuration to itself. Its processes
are its children, so they can read with which words it was started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from accelerate.commands.config.config_args import default_config_file

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_text
from accel_flowers.core.yaml_text import MAX_BYTES, parse_yaml

Asked = Literal["cpu", "gpu", "nothing"]

_LAUNCHERS = ("launch", "accelerate.commands.launch", "accelerate-launch")
_OF_CPU, _OF_GPU = ("--cpu", "--use_cpu"), ("--multi_gpu", "--gpu_ids")
_FILE, _PROGRAM = "--config_file", ("-m", "--module")


def words_of_launcher() -> list[str]:
    """Those with which this process's parent was started; empty where the system does not tell."""
    try:
        content = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in content.split(b"\0")[:-1]]


def asked_of(words: Sequence[str], default: str | os.PathLike[str] = default_config_file) -> Asked | None:
    """On what a launch is to compute.

    Args:
        words: of the launcher's process: "python", "-m", "accelerate.commands.launch", "--cpu", ...
        default: the configuration that it takes where no file is named.

    Returns:
        "nothing" where neither a flag nor a file says anything; None where these are no words of Accelerate's launcher, or its
        file cannot be read.
    """
    places = [place for place, word in enumerate(words) if os.path.basename(word) in _LAUNCHERS]
    if not places:
        return None
    own = list(words[places[0] + 1 :])
    end = next((place for place, word in enumerate(own) if word in _PROGRAM or word.endswith(".py")), len(own))
    own = [part for word in own[:end] for part in word.split("=", 1)]
    flags = {word.replace("-", "_").replace("__", "--", 1) for word in own}
    if flags & {*_OF_CPU}:
        return "cpu"
    named = own[own.index(_FILE) + 1 : own.index(_FILE) + 2] if _FILE in own else []
    if not named and not os.path.isfile(default):
        return "gpu" if flags & {*_OF_GPU} else "nothing"
    try:
        content = parse_yaml(
            read_text(Path(named[0] if named else default), max_bytes=MAX_BYTES), "the launch configuration"
        )
    except (OSError, UserError):
        return None
    return _asked_by(content) if isinstance(content, Mapping) else None


def _asked_by(content: Mapping[str, object]) -> Asked:
    on_cpu = content.get("use_cpu") is True or str(content.get("distributed_type")) == "MULTI_CPU"
    return "cpu" if on_cpu else "gpu"
