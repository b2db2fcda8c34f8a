"""The layers of a network as training tells them apart: its stages from the image on, and its head."""

from __future__ import annotations

from torch import nn

from accel_flowers.core.errors import UserError
from accel_flowers.models.backbone import Backbone, is_inside

HEAD = "head"


def layers_of(network: nn.Module, backbone: Backbone, *, stages_for: str | None = None) -> dict[str, list[str]]:
    """All parameters of a network, layer by layer.

    Args:
        network: from `backbone.build`.
        backbone: says what the stages and the head are; the stages are those that `model.freeze` counts.
        stages_for: the setting that cannot do without stages, as one types it; None = there is none.

    Returns:
        Name → names of parameters: `stage_1` (at the image), `stage_2`, …, `head`. What lies between the last stage and the
        head goes with that stage: VGG's first linear layers, ConvNeXt's last norm. A network without stages has one, all but
        the head; a stage without parameters is left out.

    Raises:
        UserError: there are no stages, and a setting needs them.
    """
    stages, head = backbone.stages(network), backbone.head(network)
    if stages_for and not stages:
        raise UserError(
            f"{stages_for} goes by the stages of the network, and {backbone.name or type(network).__name__} says of none where "
            "they are: leave it out, or name them in the `stages` of its Backbone."
        )
    digits = len(str(len(stages)))
    names = [f"stage_{number:0{digits}}" for number in range(1, max(1, len(stages)) + 1)]
    layers: dict[str, list[str]] = {name: [] for name in [*names, HEAD]}
    for parameter, _ in network.named_parameters():
        if is_inside(parameter, [head]):
            layers[HEAD].append(parameter)
            continue
        inside = (name for name, paths in zip(names, stages, strict=False) if is_inside(parameter, list(paths)))
        layers[next(inside, names[-1])].append(parameter)
    return {name: parameters for name, parameters in layers.items() if parameters}


def ends_of_stages(network: nn.Module, backbone: Backbone) -> dict[str, nn.Module]:
    """The last module of each stage, through which the stage hands its output on.

    Args:
        network: from `backbone.build`.
        backbone: says what the stages are.

    Returns:
        `stage_1` (at the image), `stage_2`, … → module; none where the network has no stages.
    """
    modules = dict(network.named_modules())
    ends = ([path for path in stage if path in modules] for stage in backbone.stages(network))
    return {f"stage_{number}": modules[paths[-1]] for number, paths in enumerate(ends, start=1) if paths}
