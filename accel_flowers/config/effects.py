"""Settings that change nothing, because another one decides: told at the start, so that nobody waits for their effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from accel_flowers.config.schema import LOSSES, MULTILABEL, Config, flat_fields
from accel_flowers.core import registry
from accel_flowers.core.errors import UserError

_LAUNCHER = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--gradient_accumulation_steps", "--train.micro-batch-size"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--dynamo_backend", "--train.compile"),
}
"""Variable of the launcher → what it is unless somebody says otherwise, the launcher's flag, and what is meant here."""


def _of_optimizer(*names: str) -> Callable[[Config], str]:
    def why(config: Config) -> str:
        return (
            "" if config.optim.name in names else f"optim.name is {config.optim.name}; it is for {' and '.join(names)}"
        )

    return why


def _not_of_torch(why: Callable[[Config], str]) -> Callable[[Config], str]:
    return lambda config: "" if config.optim.name.startswith(registry.TIMM_PREFIX) else why(config)


def _of_schedule(*names: str) -> Callable[[Config], str]:
    def why(config: Config) -> str:
        name = config.schedule.name
        return "" if name in names else f"schedule.name is {name}; it is for {' and '.join(names)}"

    return why


def _of_own_parts(*names: Callable[[Config], str]) -> Callable[[Config], str]:
    def why(config: Config) -> str:
        taken = any(registry.is_own_name(name(config)) for name in names)
        return "" if taken else f"{names[0](config)} takes no options; they are for parts of your own"

    return why


def _of_own_loss(config: Config) -> str:
    return "" if config.loss.name in LOSSES else f"loss.name is {config.loss.name}, which has its own options"


def _of_task(config: Config) -> str:
    return (
        ""
        if config.loss.task not in ("classification", MULTILABEL)
        else f"loss.task is {config.loss.task}, which takes none"
    )


def _of_loss(config: Config) -> str:
    if config.loss.name != "cross_entropy" or config.loss.options_of_task:
        return ""
    return "loss.name is cross_entropy, which takes none"


def _of_decay(config: Config) -> str:
    return "" if config.optim.weight_decay else "optim.weight_decay is 0"


def _of_backbones(config: Config) -> str:
    return "model.freeze is backbone: the head alone trains in all epochs" if config.model.freeze == "backbone" else ""


def _of_projects(config: Config) -> str:
    tracking = config.tracking
    return "tracking.wandb is off" if tracking.wandb == "off" and not tracking.also else ""


def _of_wandb(config: Config) -> str:
    return "tracking.wandb is off" if config.tracking.wandb == "off" else ""


def _of_cache(config: Config) -> str:
    way = config.data.pixels_from
    return f"data.pixels_from is {way}" if way in ("reference", "files") else ""


_CONDITIONS: dict[str, Callable[[Config], str]] = {
    "data.cache_dir": _of_cache,
    "data.cache_gib": _of_cache,
    "loss.options": _of_loss,
    "loss.task_options": _of_task,
    "loss.label_smoothing": _of_own_loss,
    "loss.class_weights": _of_own_loss,
    "optim.options": _not_of_torch(_of_own_parts(lambda config: config.optim.name)),
    "optim.momentum": _not_of_torch(_of_optimizer("sgd", "rmsprop")),
    "optim.decay_norms_and_biases": _of_decay,
    "optim.layer_decay": _of_backbones,
    "schedule.step_epochs": _of_schedule("step"),
    "schedule.milestones": _of_schedule("multistep"),
    "schedule.gamma": _of_schedule("step", "multistep"),
    "schedule.min_factor": _of_schedule("cosine", "one_cycle"),
    "train.head_epochs": _of_backbones,
    "train.unfreeze_every_epochs": _of_backbones,
    "tracking.wandb_project": _of_projects,
    "tracking.wandb_name": _of_wandb,
    "tracking.wandb_registry": _of_wandb,
}
"""Field → why it has no effect; empty where it has one."""


def settings_without_effect(config: Config, environment: Mapping[str, str]) -> list[str]:
    """A line for each setting that is not the default and changes nothing.

    Args:
        config: resolved.
        environment: what the launcher has set.
    """
    values, defaults = flat_fields(config), flat_fields(Config())
    lines = [
        f"without effect: {name} {values[name]}, because {why}"
        for name, condition in _CONDITIONS.items()
        if values[name] != defaults[name] and (why := condition(config))
    ]
    for variable, (usual, flag, here) in _LAUNCHER.items():
        value = environment.get(variable, usual)
        if value.lower() != usual:
            lines.append(f"without effect: {flag} {value.lower()} of accelerate launch; here that is {here}")
    return lines


_SHARE_OF_WARMUP = 0.2
"""Of a run that is no longer than the warm-up of its recipe; that of quickstart, 3 of 15 epochs."""


def warmup_that_fits(warmup: float, epochs: float) -> float:
    """A warm-up that ends before so many epochs do: as asked, or a fifth of them."""
    return warmup if warmup < epochs else round(_SHARE_OF_WARMUP * epochs, 1)  # 0.6, not 0.6000000000000001


def fit_warmup(config: Config) -> tuple[Config, list[str]]:
    """The configuration with a warm-up that ends before the run does, and a line where it had to be cut.

    Raises:
        UserError: the head alone would train until the end.
    """
    head, epochs = config.train.head_epochs, config.train.epochs
    if head >= epochs:
        raise UserError(
            f"train.head_epochs {head:g} is no less than train.epochs {epochs}, so nothing but the head would ever train: give "
            "fewer (--train.head-epochs 0 for none), or say so with --model.freeze backbone."
        )
    asked, left = config.schedule.warmup_epochs, epochs - head
    if asked < left:
        return config, []
    fits = warmup_that_fits(asked, left)
    run = f"train.epochs {config.train.epochs}" + (f" without train.head_epochs {head:g}" if head else "")
    line = f"schedule.warmup_epochs {asked:g} is no shorter than the run ({run}): {fits:g} is taken"
    schedule = config.schedule.model_copy(update={"warmup_epochs": fits})
    return config.model_copy(update={"schedule": schedule}), [line]
