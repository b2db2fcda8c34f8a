"""A study: several runs of one recipe that differ in their seeds or in which images they hold out; and `study.json`, its file.

The file is written when the study begins and after each run, so that one that was interrupted goes on with the run that it was
at. Each run is a run like any other, in a directory of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accel_flowers.config.paths import with_absolute_paths
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import write_text_durably, writing
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.tracking.run_dir import fixed_fields

STUDY_FILE = "study.json"
SPLITS_DIR = "splits"
_FORMAT = 1
_MAX_BYTES = 2**28

Kind = Literal["seeds", "folds"]


@dataclass(frozen=True)
class Member:
    """One run of a study."""

    name: str
    """Of its directory, inside the study's: "seed-3", "fold-1"."""
    changes: Mapping[str, Any]
    """Dotted name → value, of what it has otherwise than the recipe."""
    result: Mapping[str, Any] | None = None
    """What it came to (see `result_of`); None = it has not ended."""


@dataclass(frozen=True)
class Study:
    """All of its runs."""

    kind: Kind
    recipe: Mapping[str, Any]
    """Dotted name → value of every field that makes a run this run."""
    members: tuple[Member, ...]
    told: tuple[str, ...] = field(default=())
    """What people should know of how the images were dealt out."""

    def with_result(self, name: str, result: Mapping[str, Any]) -> Study:
        """The same, where one run has ended."""
        members = tuple(
            Member(member.name, member.changes, result) if member.name == name else member for member in self.members
        )
        return Study(self.kind, self.recipe, members, self.told)


def recipe_of(config: Config) -> dict[str, Any]:
    """What of a configuration all runs of a study share; plain values."""
    shared = with_absolute_paths(config)
    fixed: dict[str, Any] = json.loads(json.dumps(fixed_fields(shared)))
    return fixed


def seed_members(seeds: Sequence[int]) -> tuple[Member, ...]:
    """A run for each seed, which the split follows from, too, where it is drawn."""
    return tuple(Member(f"seed-{seed}", {"train.seed": seed}) for seed in seeds)


def fold_members(num_folds: int, run_dir: Path) -> tuple[Member, ...]:
    """A run for each fold, whose split stands in the study's directory."""
    splits = run_dir.absolute() / SPLITS_DIR
    return tuple(
        Member(f"fold-{fold}", {"data.split": str(splits / f"fold-{fold}.json")}) for fold in range(1, num_folds + 1)
    )


def config_of(member: Member, config: Config, run_dir: Path) -> Config:
    """The configuration of one run."""
    train = config.train.model_copy(update=_of_section(member, "train"))
    data = config.data.model_copy(update=_of_section(member, "data"))
    # A report of each would take longer than it is looked at; the command `report` draws one of any run.
    tracking = config.tracking.model_copy(update={"report": False})
    update = {
        "train": train,
        "data": data,
        "tracking": tracking,
        "run_dir": str(run_dir / member.name),
        "resume": "auto",
    }
    return config.model_copy(update=update)


def _of_section(member: Member, section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in member.changes.items() if name.startswith(prefix)}


def save_study(run_dir: Path, study: Study) -> None:
    """Write the file.

    Raises:
        UserError: the disk refuses.
    """
    document = {
        "format": _FORMAT,
        "kind": study.kind,
        "told": list(study.told),
        "recipe": dict(study.recipe),
        "members": {
            member.name: {"changes": dict(member.changes), "result": member.result} for member in study.members
        },
    }
    with writing(f"'{run_dir / STUDY_FILE}'", "Make room and go on with --resume auto."):
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text_durably(run_dir / STUDY_FILE, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def holds_study(run_dir: Path) -> bool:
    """Whether a study was begun here."""
    return os.path.isfile(run_dir / STUDY_FILE)


def load_study(run_dir: Path) -> Study:
    """Read the file.

    Raises:
        UserError: it is missing or damaged.
    """
    path = run_dir / STUDY_FILE
    try:
        document = parse_json(read_text(path, max_bytes=_MAX_BYTES))
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f"this version reads format {_FORMAT}")
        kind, recipe, members = document["kind"], document["recipe"], document["members"]
        if kind not in ("seeds", "folds") or not isinstance(recipe, dict) or not isinstance(members, dict):
            raise ValueError("kind, recipe or members are not of this form")
        found = tuple(Member(name, dict(each["changes"]), each["result"]) for name, each in members.items())
        if any(Path(member.name).name != member.name for member in found):
            raise ValueError("a run's name is a path")
        return Study(kind, recipe, found, tuple(map(str, document.get("told", ()))))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no study of this program: {error}.") from None
