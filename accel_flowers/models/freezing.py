"""What of a network learns: its stages, freezing them, and the mode in which a partly frozen network trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import head_name

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def stage_names(network: nn.Module) -> list[tuple[str, ...]]:
    """The stages of the backbone from the image on, in the sense of `freeze`.

    Each child that has parameters is a stage, in the order of definition and without the family's classifier. A
    container with over nine tenths of the backbone (`features`, `encoder.layers`) stands for its children. A norm
    layer on its own belongs to the stage before it, parameters without a layer (ViT's class token) to the first.

    Returns:
        For each stage the paths of its modules and lone parameters.
    """
    classifier = head_name(network).partition(".")[0]
    size = sum(p.numel() for name, p in network.named_parameters() if not _is_inside(name, [classifier]))
    lone: list[str] = []
    stages: list[list[str]] = []

    def visit(parent: nn.Module, prefix: str) -> None:
        lone.extend(prefix + name for name, _ in parent.named_parameters(recurse=False))
        for name, child in parent.named_children():
            child_size = sum(p.numel() for p in child.parameters())
            if child_size == 0 or prefix + name == classifier:
                continue
            if child_size > 0.9 * size and any(child.children()):
                visit(child, f"{prefix}{name}.")
            elif isinstance(child, _NORMS) and stages:
                stages[-1].append(prefix + name)
            else:
                stages.append([prefix + name])

    visit(network, "")
    return [(*lone, *stages[0]), *(tuple(stage) for stage in stages[1:])]


def freeze(network: nn.Module, how: str | int) -> list[str]:
    """Say which parameters learn; `set_training_mode` then keeps the frozen part's norms and dropouts still.

    Args:
        network: From `build_network`.
        how: "none", "backbone" (everything but the head) or a number: so many first stages of `stage_names`.

    Returns:
        Names of the frozen parameters.

    Raises:
        UserError: another word, or a number that is negative or above the number of stages.
    """
    stages = stage_names(network)
    if isinstance(how, int) and 0 <= how <= len(stages):
        paths = [path for stage in stages[:how] for path in stage]
        frozen = [name for name, _ in network.named_parameters() if _is_inside(name, paths)]
    elif how in ("none", "backbone"):
        keep = [head_name(network)] if how == "backbone" else [""]
        frozen = [name for name, _ in network.named_parameters() if not _is_inside(name, keep)]
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


def _is_inside(name: str, paths: Sequence[str]) -> bool:
    """Whether a tensor's name lies at or below one of the paths; the empty path is the network itself."""
    return any(not path or name == path or name.startswith(f"{path}.") for path in paths)
