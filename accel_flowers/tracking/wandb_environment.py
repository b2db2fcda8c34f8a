"""What the environment says about W&B, and where its files go: under the run directory, so that a copy of it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from accel_flowers.config.loading import read_config
from accel_flowers.config.schema import TrackingConfig
from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.tracking.run_dir import CONFIG_FILE, holds_run

DEFAULT_PROJECT = "accel-flowers"
_MODES: Mapping[str, Literal["off", "online", "offline"]] = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off",
}  # fmt: skip
"""W&B's words for the modes that a run of ours can have, the old ones (run, dryrun) included."""


def obey_environment(config: TrackingConfig, run_dir: Path) -> TrackingConfig:
    """The configuration with what the environment says of W&B, as W&B itself would take it; unchanged where W&B is off.

    WANDB_MODE goes over everything: whoever sets it wants it of every program on this machine. WANDB_PROJECT and WANDB_NAME
    stand in for what neither recipe nor flags name; a run that goes on keeps those with which it began.

    Raises:
        UserError: WANDB_MODE is no mode of W&B's.
    """
    if config.wandb == "off":
        return config
    mode = mode_of_environment() or config.wandb
    if mode == "off":
        return config.model_copy(update={"wandb": mode})
    before = _recorded(run_dir)
    return config.model_copy(
        update={
            "wandb": mode,
            "wandb_project": config.wandb_project or _variable("WANDB_PROJECT") or before.wandb_project or DEFAULT_PROJECT,
            "wandb_name": config.wandb_name or _variable("WANDB_NAME") or before.wandb_name,
        }
    )  # fmt: skip


def said_by_environment(asked: TrackingConfig, obeyed: TrackingConfig) -> list[str]:
    """What to tell where the environment has another mode than was asked for."""
    if asked.wandb == obeyed.wandb:
        return []
    return [f"W&B is {obeyed.wandb} and not {asked.wandb}, because WANDB_MODE is {_variable('WANDB_MODE')}"]


def mode_of_environment() -> Literal["off", "online", "offline"] | None:
    """What WANDB_MODE says; None where it says nothing.

    Raises:
        UserError: it is no mode of W&B's.
    """
    word = _variable("WANDB_MODE")
    if word is None:
        return None
    if word not in _MODES:
        raise UserError(
            f"WANDB_MODE is {word!r} in the environment, which is no mode of W&B's.{did_you_mean(word, tuple(_MODES))} "
            "Set it to online, offline or disabled, or remove it: unset WANDB_MODE"
        )
    return _MODES[word]


def _variable(name: str) -> str | None:
    """Its value; None where it is not set, or empty."""
    return os.environ.get(name, "").strip() or None


def _recorded(run_dir: Path) -> TrackingConfig:
    """Of the run in the directory, if any; a damaged one is told by whoever checks the directory."""
    try:
        return read_config(run_dir / CONFIG_FILE, what="").tracking if holds_run(run_dir) else TrackingConfig()
    except UserError:
        return TrackingConfig()


def wandb_root(run_dir: Path) -> Path:
    """The folder in which W&B makes its folder `wandb`: WANDB_DIR, else the run directory."""
    return Path(_variable("WANDB_DIR") or run_dir).expanduser().absolute()


@contextmanager
def files_under(root: Path, *, offline: bool) -> Iterator[None]:
    """Let W&B put under `root` what it would put into the home directory, unless the environment names a place.

    The model, tables and images wait there until they are uploaded. Online, W&B's cache stays where it is for all runs,
    as long as there is a home directory.
    """
    place = root / "wandb"
    names = {"WANDB_DATA_DIR": place / "data"}
    if offline or not _has_home():
        names["WANDB_CACHE_DIR"] = place / "cache"
    if not _has_home():
        names["WANDB_CONFIG_DIR"] = place / "config"
    ours = [name for name in names if name not in os.environ]
    os.environ.update({name: str(names[name]) for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _has_home() -> bool:
    """Not so for a user without an entry in the list of users, as containers run programs, where HOME is not set."""
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:
        return False
