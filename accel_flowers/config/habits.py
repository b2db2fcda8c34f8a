"""Flags as people know them from other programs: taken for ours where they mean the same, else answered in a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from accel_flowers.config.schema import About, Config
from accel_flowers.core.errors import UserError, did_you_mean

_ALIASES = {
    "--data": "--data.path",
    "--data-dir": "--data.path",
    "--split": "--data.split",
    "--workers": "--data.num-workers",
    "--num-workers": "--data.num-workers",
    "--model": "--model.name",
    "--arch": "--model.name",
    "--weights": "--model.weights",
    "--epochs": "--train.epochs",
    "--num-train-epochs": "--train.epochs",
    "--batch-size": "--train.global-batch-size",
    "--seed": "--train.seed",
    "--compile": "--train.compile",
    "--precision": "--train.precision",
    "--lr": "--optim.lr",
    "--learning-rate": "--optim.lr",
    "--weight-decay": "--optim.weight-decay",
    "--momentum": "--optim.momentum",
    "--optimizer": "--optim.name",
    "--scheduler": "--schedule.name",
    "--output-dir": "--run-dir",
    "--out": "--run-dir",
    "--wandb": "--tracking.wandb",
    "--fast-dev-run": "--debug.fast-dev-run",
}
_ANSWERS = {
    "--device": "the launcher says on what: CUDA_VISIBLE_DEVICES=0 in front, or accelerate launch --cpu",
    "--gpus": "the launcher says on how many: accelerate launch --num_processes N",
    "--report-to": "--tracking.wandb online, or --tracking.tensorboard",
    "--fp16": "--train.precision fp16",
    "--bf16": "--train.precision bf16",
}


def as_ours(words: Sequence[str]) -> list[str]:
    """Words of a command line with flags known from elsewhere under their names here.

    Raises:
        UserError: a flag that there is not, in a line, with what to type instead.
    """
    known = set(_flags(Config))
    taken: list[str] = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if flag == "--resume":
            _check_resume(value if equals else next(iter(words[place + 1 : place + 2]), ""))
        if not word.startswith("--") or flag in known or flag == "--help":
            taken.append(word)
        elif flag in _ALIASES:
            taken.append(f"{_ALIASES[flag]}{equals}{value}")
        elif flag in _ANSWERS:
            raise UserError(f"There is no flag {name} here: {_ANSWERS[flag]}.")
        else:
            raise UserError(
                f"There is no flag {name}.{did_you_mean(flag, sorted(known))} accel-flowers train --help tells all."
            )
    return taken


def _check_resume(value: str) -> None:
    if value not in ("auto", "never"):
        where = value if value and not value.startswith("-") else "DIR"
        raise UserError(f"--resume takes auto or never. Go on with a run by --run-dir {where} --resume auto.")


def _flags(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every flag, those that switch off too."""
    for name, field in section.model_fields.items():
        inner, dashed = field.annotation, name.replace("_", "-")
        if inner is About:
            continue  # what a recipe is; no flag says that
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _flags(inner, f"{prefix}{dashed}.")
            continue
        yield f"--{prefix}{dashed}"
        if inner is bool:
            yield f"--{prefix}no-{dashed}"
