"""`push`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import is_left_out


@dataclass(frozen=True)
class _PushWords:
    """Write a model folder to the Hugging Face hub: weights, config.json and the model card, and nothing else of the run.

    It needs a token of yours (hf auth login). What lies there can be read by `accel-flowers predict hub:OWNER/NAME`, by timm and by
    transformers.
    """

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    name: tyro.conf.Positional[str]
    """OWNER/NAME on the hub; it is made where it is not there yet."""
    private: bool = False
    """Whether a new one is for its owner alone."""
    licence: str | None = None
    """Licence of the model as the hub names it, for the card: apache-2.0, cc-by-4.0, ...; None = the card's own, or none."""


_PUSH_ANSWERS = {"--license": "--licence"}


def push_command(words: Sequence[str]) -> int:
    asked = parse_words(_PushWords, words, "push", answers=_PUSH_ANSWERS)
    if is_left_out():
        return 0
    from accel_flowers.models.card import model_card
    from accel_flowers.models.hub import is_on_hub, own_card, push_model, with_licence
    from accel_flowers.models.saved import load_spec, model_folder

    if is_on_hub(asked.model_dir):
        raise UserError(f"'{asked.model_dir}' is on the hub already: give a folder of this machine, RUN_DIR/model.")
    spec = load_spec(asked.model_dir)
    directory = model_folder(asked.model_dir)
    card = own_card(directory) or model_card(spec)
    if asked.licence:
        card = with_licence(card, asked.licence)
    write_result(push_model(directory, asked.name, private=asked.private, card=card))
    return 0
