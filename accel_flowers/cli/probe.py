"""`probe`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_main_process

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ProbeWords:
    """See within a minute what a folder of photos is good for: features of a frozen network, a linear head on them, its accuracy
    by cross-validation, and a model that evaluate and predict take.

    Features are kept in the user's cache directory (XDG_CACHE_HOME) by the content of the photos: a second probe takes
    seconds, and one that was stopped goes on.
    """

    source: tyro.conf.Positional[str]
    """Folder with one sub-folder per class, a .zip of one, or hub:OWNER/NAME; a test part is left alone."""
    backbones: str = "auto"
    """Networks, with commas between them: resnet18,timm/tf_efficientnet_lite0; several are compared, and joined under one head. auto = the one that the weights are for, else a good one."""
    weights: str = "imagenet"
    """Of each network, with commas between them: imagenet (a download), a file, or none (random)."""
    size: str | None = None
    """Side of a picture in pixels, or auto: the network's own size or a third more, chosen by cross-validation (takes three times as long); None = the network's own."""
    mirror: Literal["auto", "yes", "no"] = "auto"
    """Whether mirror images are learned from and asked about, too; auto = chosen by cross-validation."""
    keep: str = "all"
    """Which of several networks the model, the page and the scores are of: its name, or all of them together."""
    folds: int = 5
    """Of the cross-validation; fewer where a class is too small."""
    seed: int = 0
    """Of the folds, and of whatever else is drawn."""
    out: Path | None = None
    """Folder for model/, report.html, predictions.parquet and probe.json; None = the table alone."""
    json: bool = False
    """Print all numbers as one JSON object."""
    label_column: str | None = None
    """Column of the classes of a dataset or a CSV; None = the one there is."""
    label_fixes: Path | None = None
    """A CSV of file and label, as `accel-flowers labels` writes it: an empty label leaves the picture out, a class is the picture's."""
    group_column: str | None = None
    """Column of a dataset or a CSV: pictures of which it says the same stay in one fold, as photos of one plant."""
    group_pattern: str | None = None
    r"""Regular expression that finds the same in the names of pictures that stay in one fold, as '(plant\d+)_'."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What becomes of photos that cannot be read: stop names them all, skip leaves them out."""
    num_workers: int | None = None
    """Loader worker processes; None = choose from the cores of this machine."""


_PROBE_ANSWERS = {
    "--data": "the folder comes without a flag: accel-flowers probe DIR",
    "--model": "networks are named by --backbones",
    "--batch-size": "it changes nothing but the last digits, and is always the same",
    "--epochs": "a probe trains a linear head until it is as good as it gets",
}


def probe_command(words: Sequence[str]) -> int:
    asked = parse_words(_ProbeWords, words, "probe", answers=_PROBE_ANSWERS)
    from accel_flowers.probe.probe import probe
    from accel_flowers.probe.text import in_words

    result = probe(
        asked.source,
        backbones=_named(asked.backbones),
        weights=_named(asked.weights),
        size=_size(asked.size),
        mirror=asked.mirror,
        keep=asked.keep,
        num_folds=asked.folds,
        seed=asked.seed,
        out=asked.out,
        label_column=asked.label_column,
        label_fixes=asked.label_fixes,
        group_column=asked.group_column,
        group_pattern=asked.group_pattern,
        on_bad_image=asked.on_bad_image,
        num_workers=asked.num_workers,
        owns_process=True,
    )
    if result is not None and is_main_process():
        write_result(json.dumps(result.as_json(), indent=1, ensure_ascii=False) if asked.json else in_words(result))
        if asked.out:
            _log.info(f"the page: {asked.out / 'report.html'}; the model: {asked.out / 'model'}")
        else:
            _log.info("add --out DIR for the model, the page with the pictures, and all numbers")
    return 0


def _named(words: str) -> list[str]:
    return [word for part in words.split(",") if (word := part.strip())]


def _size(word: str | None) -> int | Literal["auto"] | None:
    if word is None or word == "None":
        return None
    if word == "auto":
        return "auto"
    if not word.isdecimal():
        raise UserError(f"--size {word} is not allowed: it is auto, or a number of pixels such as 224.")
    return int(word)
