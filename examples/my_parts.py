"""One part of each kind of your own. Bring them in with `--import examples/my_parts.py`, then name them in a recipe:

    accel-flowers train quickstart --import examples/my_parts.py --data.path photos --optim.name my/lion --loss.name my/focal

What each kind takes and gives is told in docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from accel_flowers import register
from accel_flowers.data.sampler import random_key
from accel_flowers.data.transforms.batch import BatchContext
from accel_flowers.metrics.classification import Predictions
from accel_flowers.training.tasks import Output, TaskContext


@register("transform", "my/rain")
class Rain:
    """Bright vertical streaks. All chance comes from torch's generator, which is seeded for each image and epoch."""

    def __init__(self, drops: int = 20) -> None:
        self.drops = drops

    def __call__(self, image: Image.Image) -> Image.Image:
        wet = image.copy()
        for _ in range(self.drops):
            x = int(torch.randint(wet.width, ()).item())
            y = int(torch.randint(wet.height, ()).item())
            wet.paste((200, 200, 220), (x, y, x + 1, min(y + 6, wet.height)))
        return wet


@register("batch_transform", "my/mixup")
class PairMixup:
    """Mixup of neighbours in the stream, so that the result depends on the place alone: not on processes or micro-batches."""

    def __init__(self, context: BatchContext, alpha: float = 1.0) -> None:
        if context.micro_batch % 2:
            raise ValueError(f"it mixes pairs, so train.micro_batch_size must be even, not {context.micro_batch}")
        self.context, self.alpha = context, alpha

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        shares = []
        for place in range(first, first + len(targets), 2):
            chance = np.random.Generator(np.random.Philox(key=random_key(self.context.seed, "mix", place)))
            shares += [float(chance.beta(self.alpha, self.alpha))] * 2
        share = torch.tensor(shares, device=inputs.device)
        partner = torch.arange(len(targets), device=inputs.device) ^ 1
        hot = functional.one_hot(targets, self.context.num_classes).float()
        weight = share[:, None, None, None]
        return (
            weight * inputs + (1 - weight) * inputs[partner],
            share[:, None] * hot + (1 - share[:, None]) * hot[partner],
        )


@register("model", "my/tiny")
def tiny(num_classes: int, dropout: float | None = None) -> nn.Module:
    """A small network for small images; its last layer is the head."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout or 0.0),
        nn.Linear(32, num_classes),
    )


@register("loss", "my/focal")
def focal(gamma: float = 2.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy that counts what is right already for less."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(logits.float(), targets, reduction="none")
        return ((1 - (-each).exp()) ** gamma * each).mean()

    return loss


@register("task", "my/distill")
class Distill:
    """A teacher's probabilities beside the labels (Hinton et al., 2015)."""

    def __init__(self, context: TaskContext, teacher: str, alpha: float = 0.5, temperature: float = 2.0) -> None:
        from accel_flowers.models.saved import load_model

        saved = load_model(Path(teacher))
        if saved.spec.class_names != context.class_names:
            raise ValueError(f"the teacher knows {saved.spec.class_names}, the photos have {context.class_names}")
        self.teacher = saved.network.to(context.device).requires_grad_(False)
        self.criterion, self.alpha, self.temperature = context.criterion, alpha, temperature
        ours, theirs = (
            [torch.tensor(numbers, device=context.device).view(1, 3, 1, 1) for numbers in pair]
            for pair in ((context.mean, context.std), (saved.spec.mean, saved.spec.std))
        )
        self.scale, self.shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Output:
        with torch.no_grad():
            said = (self.teacher(inputs * self.scale + self.shift).float() / self.temperature).log_softmax(1)
        logits = model(inputs)
        hard = self.criterion(logits, targets)
        own = (logits.float() / self.temperature).log_softmax(1)
        soft = self.temperature**2 * functional.kl_div(own, said, reduction="batchmean", log_target=True)
        return Output(
            (1 - self.alpha) * hard + self.alpha * soft, logits, {"hard": hard.detach(), "soft": soft.detach()}
        )


@register("optimizer", "my/lion")
class Lion(torch.optim.Optimizer):
    """The sign of a momentum (Chen et al., 2023)."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            near, far = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_((momentum * near + parameter.grad * (1 - near)).sign(), alpha=-group["lr"])
                momentum.mul_(far).add_(parameter.grad, alpha=1 - far)


@register("metric", "my/worst_recall")
def worst_recall(predictions: Predictions) -> float:
    """Recall of the class that is recognised worst."""
    right = predictions.predicted == predictions.labels
    return float(min(right[predictions.labels == label].mean() for label in set(predictions.labels.tolist())))
