"""What trains when: the new head alone at first, then everything, at once or stage by stage from the top.

A pure function of the epochs that lie behind, as the learning rate is, so that a resumed run and any number of processes
change at the same step. What does not train yet gets no gradient, and so no state in the optimizer and no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from accel_flowers.config.schema import TrainConfig


def num_training_at(epoch: float, config: TrainConfig, num_layers: int) -> int:
    """How many layers train, counted from the head.

    Args:
        epoch: epochs that lie behind; a fraction inside an epoch.
        config: `head_epochs` and `unfreeze_every_epochs`.
        num_layers: those that ever train, the head among them.

    Returns:
        1 … num_layers.
    """
    if epoch < config.head_epochs:
        return min(1, num_layers)
    if config.unfreeze_every_epochs is None:
        return num_layers
    return min(num_layers, 2 + math.floor((epoch - config.head_epochs) / config.unfreeze_every_epochs))


def head_is_trained_at(epoch: float, config: TrainConfig) -> bool:
    """Whether the head's epochs lie behind, once so many epochs do."""
    return epoch >= config.head_epochs


@dataclass
class Phases:
    """The layers of a run, and how many of them train now."""

    config: TrainConfig
    layers: Sequence[Sequence[nn.Parameter]]
    """Parameters that ever train, of each layer from the image on, the head last; layers without any are left out."""
    num_training: int = 0
    """From the head; 0 = nothing was said yet."""

    def enter(self, epoch: float) -> bool:
        """Let that train, and nothing else, which trains once so many epochs lie behind.

        Returns:
            Whether it is something else than before.
        """
        before, self.num_training = self.num_training, num_training_at(epoch, self.config, len(self.layers))
        if self.num_training == before:
            return False
        for below, layer in enumerate(reversed(self.layers)):
            for parameter in layer:
                parameter.requires_grad_(below < self.num_training)
        return True


def build_phases(network: nn.Module, layers: Sequence[Sequence[str]], config: TrainConfig) -> Phases:
    """The phases of a run; nothing is changed yet.

    Args:
        network: frozen as `model.freeze` says: that stays so in all phases.
        layers: names of parameters, from the image on; of `layers_of`.
        config: says when.
    """
    trains = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    found = [[trains[name] for name in names if name in trains] for names in layers]
    return Phases(config, [layer for layer in found if layer])
