"""Manifold mixup (Verma et al. 2019, arXiv 1806.05236): two pictures are mixed inside the network, at a stage drawn by chance.

Pairs are those of mixup: places 0 and 1, 2 and 3, ... of the run's stream, and all chance follows from the first one's place. The paper
draws one stage and one share for a batch; here each pair has its own, so that the result does not depend on how a batch is cut. A stage at
which a pair is not mixed hands both on as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import random_key
from accel_flowers.data.transforms.mixing import partners
from accel_flowers.training.losses import Criterion, check_number
from accel_flowers.training.tasks import Output, Task, TaskContext


class Draw(NamedTuple):
    """What is done to a pair: each picture keeps `share` of itself, behind so many stages."""

    stage: int
    """0 = the inputs themselves."""
    share: float


@dataclass(frozen=True)
class ManifoldMixup:
    """The task; see the module, and `manifold_mixup` for what makes it."""

    criterion: Criterion
    num_classes: int
    seed: int
    alpha: float
    ends: Sequence[nn.Module]
    """Modules of the network behind whose outputs pairs are mixed, from the picture on."""

    def at(self, first: int) -> Task:
        """The task for the micro-batch whose first image has this place in the run's stream."""

        def run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Output:
            if len(inputs) % 2:
                raise UserError(_odd(len(inputs)))
            draws = [self.draw(place) for place in range(first, first + len(inputs), 2)]
            hot = targets if targets.ndim == 2 else functional.one_hot(targets, self.num_classes).float()
            # Of each stage the pictures' own shares: one copy to the device for all that is drawn.
            own = torch.ones(len(self.ends) + 2, len(draws))
            for number, draw in enumerate(draws):
                own[draw.stage, number] = own[-1, number] = draw.share
            *kept, shares = own.repeat_interleave(2, dim=1).to(inputs.device, non_blocking=True)
            occurring = {draw.stage for draw in draws}
            with ExitStack() as stack:
                for stage, end in enumerate(self.ends, start=1):
                    if stage in occurring:
                        stack.enter_context(mixed_behind(end, kept[stage]))
                logits = model(mix(inputs, kept[0]) if 0 in occurring else inputs)
            loss = self.criterion(logits, torch.lerp(partners(hot), hot, shares[:, None]))
            return Output(loss, logits, mixed=True)

        return run

    def draw(self, place: int) -> Draw:
        """What chance gives to a pair.

        Args:
            place: of its first image in the run's stream.
        """
        rng = np.random.default_rng(random_key(self.seed, "manifold", place))
        return Draw(int(rng.integers(len(self.ends) + 1)), float(rng.beta(self.alpha, self.alpha)))


def mix(values: Tensor, shares: Tensor) -> Tensor:
    """Each row's share of itself, and the rest of its partner.

    Args:
        values: [B, ...], of any floating type.
        shares: float32 [B], equal in a pair.

    Returns:
        The same shape, type and memory layout; computed in float32.
    """
    own = values.float()
    mixed = torch.lerp(partners(own), own, shares.view(-1, *[1] * (values.ndim - 1))).to(values.dtype)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        mixed = mixed.contiguous(memory_format=torch.channels_last)
    return mixed


@contextmanager
def mixed_behind(module: nn.Module, shares: Tensor) -> Iterator[None]:
    """While the block lasts, what the module gives is mixed; afterwards nothing of it is left in the network or its copies."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        return mix(output, shares)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def find_cuts(network: nn.Module, ends: Mapping[str, nn.Module], size: tuple[int, int]) -> dict[str, nn.Module]:
    """Of these modules those through whose outputs all of a picture goes: two pictures that are exchanged there have exchanged
    answers. Of a stage that another way leads around, a part of the picture would not be mixed.

    Args:
        network: whose modules they are; modes, statistics and weights stay as they are.
        ends: name → module, from the picture on.
        size: height and width of the inputs.
    """
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters())
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(like)
    exchanged, found = torch.zeros(2, device=like.device), {}
    try:
        network.eval()
        with torch.no_grad():
            usual = network(pictures)
            apart = (usual - usual.flip(0)).abs().max()
            for name, end in ends.items():
                try:
                    with mixed_behind(end, exchanged):
                        answers = network(pictures)
                except torch.OutOfMemoryError:
                    raise
                except (AttributeError, TypeError, RuntimeError):
                    continue  # what it gives is no tensor with a row for each picture
                missed = (answers - usual.flip(0)).abs().max()
                if missed <= max(_ROUNDING * float(usual.abs().max()), _MISSED * float(apart)):
                    found[name] = end
    finally:
        for module, training in modes:
            module.training = training
    return found


_ROUNDING, _MISSED = 1e-5, 1e-2
"""Of the largest score, and of how far the pictures' scores are apart: what float32 and the order of its sums may change."""


def manifold_mixup(context: TaskContext, alpha: float = 2.0, stages: int = 3) -> ManifoldMixup:
    """Mix behind the inputs and the first stages, each as likely as another.

    Args:
        context: of the run, with its network.
        alpha: of Beta(alpha, alpha), from which a pair's share is drawn; the paper has 2.
        stages: how many of the network's first stages; those that model.freeze counts, and of which all of a picture goes through.
            The paper mixes a ResNet's inputs and its first two groups of blocks, which are stages 2 and 3 behind the stem.

    Raises:
        ValueError: a number out of range.
        UserError: an odd micro-batch, or a network without such a stage.
    """
    check_number("alpha", alpha, least=0.01, most=1000)
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ValueError(f"stages is a number of first stages, 1 or more, not {stages}")
    if (context.micro_batch or 0) % 2:
        raise UserError(_odd(context.micro_batch or 0))
    assert context.network is not None, "whoever builds a task has the network"
    assert context.image_size is not None
    first = dict(list(context.stages.items())[:stages])
    ends = find_cuts(context.network, first, context.image_size)
    if not ends:
        raise UserError(
            "loss.task: manifold_mixup mixes behind the stages of a network, and this one has none that a whole picture goes through: "
            "mix its inputs with --data.batch-transform mixup instead, or name its stages in the `stages` of its Backbone."
        )
    if left_out := [name for name in first if name not in ends]:
        context.tell(f"manifold_mixup: not behind {', '.join(left_out)}, which a part of a picture goes around")
    return ManifoldMixup(context.criterion, len(context.class_names), context.seed, alpha, tuple(ends.values()))


def _odd(size: int) -> str:
    return (
        f"loss.task: manifold_mixup mixes pairs of pictures, and a forward pass holds {size}: take an even --train.micro-batch-size (or "
        "train.global_batch_size for each process)."
    )
