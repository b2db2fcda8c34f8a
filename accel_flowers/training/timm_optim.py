"""timm's optimizers by their names there: Lion, Muon, LAMB and some seventy more.

timm is an extra of this package and takes seconds to import, so it is imported where one of its is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from accel_flowers.core.errors import UserError, did_you_mean, error_text

_REFUSED = {
    "kron": "draws chance that no checkpoint holds",
    "adafactor": "keeps a state of other shapes than its weights, which no checkpoint here puts back",
    "adahessian": "wants a second backward pass",
    "bnb": "comes from bitsandbytes, which is not tried here",
    "fused": "comes from APEX, which is not tried here",
}
"""Beginning of a name, after a "c" for the cautious ones → why a run with it could not go on exactly, or not begin."""


def build_timm_optimizer(
    name: str, groups: Sequence[Mapping[str, Any]], *, lr: float, momentum: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make one of timm's optimizers.

    Args:
        name: as `timm.optim.list_optimizers()` has it.
        groups: of parameters, with their `weight_decay`.
        lr: learning rate.
        momentum: for those that have one.
        options: more of its arguments.

    Raises:
        UserError: timm is not installed, has no such optimizer, or one that does not take the options or keep what is promised.
    """
    try:
        import timm.optim
    except ImportError as error:
        raise UserError(f"optim.name: timm/{name} needs timm ({error}): pip install 'accel-flowers[timm]'.") from None
    optim: Any = timm.optim
    names = [each for each in optim.list_optimizers() if why_refused(each) is None]
    if why := why_refused(name):
        raise UserError(f"optim.name: timm/{name} {why}. Allowed: {', '.join(names)}.")
    if name not in names:
        raise UserError(
            f"optim.name: timm has no optimizer '{name}'.{did_you_mean(name, names)} Allowed: {', '.join(names)}."
        )
    try:
        made: torch.optim.Optimizer = optim.create_optimizer_v2(
            [dict(group) for group in groups], opt=name, lr=lr, momentum=momentum, **options
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.options: timm/{name} does not take {dict(options)}: {error_text(error)}.") from error
    return made


def why_refused(name: str) -> str | None:
    """Why a run with an optimizer of timm would not keep what is promised; None = it would."""
    plain = (name, name.removeprefix("c"))
    return next((why for start, why in _REFUSED.items() if any(each.startswith(start) for each in plain)), None)
