"""What of a network learns, and the mode in which a partly frozen network trains."""

from __future__ import annotations

from torch import nn

from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import Backbone, is_inside


def freeze(network: nn.Module, how: str | int, backbone: Backbone) -> list[str]:
    """Say which parameters learn; `set_training_mode` then keeps the frozen part's norms and dropouts still.

    Args:
        network: From `backbone.build`.
        how: "none", "backbone" (everything but the head) or a number: so many first stages.
        backbone: says what the stages and the head are.

    Returns:
        Names of the frozen parameters.

    Raises:
        UserError: another word, or a number that is negative or above the number of stages.
    """
    stages = backbone.stages(network)
    if isinstance(how, int) and 0 <= how <= len(stages):
        paths = [path for stage in stages[:how] for path in stage]
        frozen = [name for name, _ in network.named_parameters() if is_inside(name, paths)]
    elif how in ("none", "backbone"):
        keep = [backbone.head(network)] if how == "backbone" else [""]
        frozen = [name for name, _ in network.named_parameters() if not is_inside(name, keep)]
    else:
        listed = "\n".join(f"  {number}: {', '.join(stage)}" for number, stage in enumerate(stages, start=1))
        raise UserError(
            f"model.freeze is none, backbone or a number of first stages up to {len(stages)}, not {how}. "
            f"The stages of this {type(network).__name__}:\n{listed}"
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return frozen


def set_training_mode(network: nn.Module) -> None:
    """`network.train()`, but what is frozen stays in eval mode, so that it computes the same in every step.

    Frozen are the modules with parameters of which none learns, batch norms among them. A dropout without company
    goes with the next layer behind it, so the one in front of the head stays active.
    """
    network.train()
    next_is_frozen = False
    for module in reversed(list(network.modules())):
        learns = {parameter.requires_grad for parameter in module.parameters()}
        if len(learns) == 1:
            next_is_frozen = learns == {False}
        if len(learns) < 2 and next_is_frozen:
            module.eval()
