"""What a recipe for several labels a picture leaves open, settled before anything is built: pure, from the recipe alone."""

from __future__ import annotations

from accel_flowers.config.schema import MULTILABEL, Config


def settle_labels(config: Config) -> tuple[Config, list[str]]:
    """The configuration with the task, loss and metric that several labels a picture ask for, where it names those of one.

    Columns that say several labels (data.label_separator, data.label_columns) say the task as well. Cross-entropy and
    accuracy are what a recipe has that says nothing, and mean nothing here: binary cross-entropy and mAP stand for them.

    Returns:
        The configuration, and a line for people where anything was taken.
    """
    columns = config.data.label_separator is not None or bool(config.data.label_columns)
    taken: dict[str, dict[str, str]] = {}
    if columns and config.loss.task == "classification":
        taken["loss"] = {"task": MULTILABEL}
    if (config.loss.task == MULTILABEL or taken) and config.loss.name == "cross_entropy":
        taken.setdefault("loss", {})["name"] = "bce"
    if (config.loss.task == MULTILABEL or columns) and config.train.best_metric == "accuracy":
        taken["train"] = {"best_metric": "map"}
    if not taken:
        return config, []
    # Anew, so that what several labels cannot go with is refused here, too.
    values = config.model_dump()
    settled = Config.model_validate({**values, **{name: {**values[name], **own} for name, own in taken.items()}})
    told = ", ".join(f"{section}.{name} {value}" for section, own in taken.items() for name, value in own.items())
    why = "the labels' columns say so" if columns else f"loss.task is {MULTILABEL}"
    return settled, [
        f"a picture may have several labels ({why}): {told} {'is' if told.count(',') == 0 else 'are'} taken"
    ]
