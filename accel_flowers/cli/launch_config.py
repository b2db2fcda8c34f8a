"""`launch-config`: where the configurations for `accelerate launch` lie, whether installed from a wheel or from a checkout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import accel_flowers
from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError, did_you_mean

_FOLDER = "accelerate_configs"


@dataclass(frozen=True)
class _LaunchConfigWords:
    """Print the path of a configuration for `accelerate launch`; without NAME, list them.

    accelerate launch --config_file "$(accel-flowers launch-config multi_gpu)" -m accel_flowers train ...
    """

    name: tyro.conf.Positional[str] = ""
    """One of the list, such as single_gpu; nothing = list them."""


def launch_config_command(words: Sequence[str]) -> int:
    asked = parse_words(_LaunchConfigWords, words, "launch-config")
    files = launch_configs()
    if not asked.name:
        width = max(map(len, files))
        for name, path in files.items():
            write_result(f"{name:<{width}}  {_first_remark(path)}")
        return 0
    file = files.get(asked.name.removesuffix(".yaml"))
    if file is None:
        raise UserError(
            f"There is no launch configuration '{asked.name}'.{did_you_mean(asked.name, tuple(files))} "
            f"Configurations: {', '.join(files)}. A file of your own goes to accelerate launch --config_file as it is."
        )
    write_result(str(file))
    return 0


def launch_configs() -> dict[str, Path]:
    """Name → file, sorted. A wheel carries them inside the package, a checkout has them beside it.

    Raises:
        UserError: there are none, so files of the installation are missing.
    """
    package = Path(accel_flowers.__file__).resolve().parent
    for folder in (package / _FOLDER, package.parent / _FOLDER):
        files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
        if files:
            return files
    raise UserError(f"The launch configurations are missing from {package}: install accel-flowers again.")


def _first_remark(file: Path) -> str:
    """What a file says of itself in its first line."""
    return file.read_text("utf-8").partition("\n")[0].removeprefix("#").strip()
