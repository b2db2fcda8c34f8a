"""What is asked of any network, whatever library or module of the user's it comes from: one adapter for each.

Two words mean the same throughout. The *head* is the one last layer (`Linear` or `Conv2d`) that makes the class scores;
the *backbone* is all the rest, so of VGG's three linear layers two belong to the backbone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from accel_flowers.core.errors import UserError, error_text
from accel_flowers.models.weights import WeightsReport, compare, copy_matching, read_weights, shorten_list

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Preprocessing:
    """How the images looked on which a network's weights were learned (default: what most ImageNet weights saw)."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of each channel, pixels scaled to 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: tuple[int, int] = (224, 224)
    """Height and width of the network's input, in pixels."""
    resize: int = 256
    """Pixels of the shorter side before the crop of `size` from the centre."""
    interpolation: str = "bilinear"
    """Of that resizing, in torchvision's words."""

    def enlarged(self, factor: float) -> Preprocessing:
        """The same with larger sides, in multiples of four pixels."""
        height, width = (4 * max(1, round(side * factor / 4)) for side in self.size)
        return replace(self, size=(height, width), resize=round(self.resize * min(height, width) / min(self.size)))


class Backbone(ABC):
    """A kind of network. Only `build` must be written; the rest has answers that fit most networks.

    `register("model", "my/net")` above a subclass makes `model.name: my/net` possible.
    """

    name: str = ""
    """What model.name says; `find_backbone` fills it in."""

    @abstractmethod
    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        """A classifier for float images [B, 3, H, W] that returns scores [B, num_classes].

        What stays at random is drawn from torch's global generator, whatever the weights: it is seeded before.

        Args:
            num_classes: outputs of the head.
            dropout: probability in front of the head; None = what the architecture has there.
            weights: "none", "imagenet", or a file; `first_weights` does all but "imagenet".

        Returns:
            The network on the CPU in training mode with everything trainable, and what became of the weights.

        Raises:
            UserError: what cannot be built, or weights that cannot be had.
        """

    def head(self, network: nn.Module) -> str:
        """Path of the head inside the network, such as "fc" or "classifier.6": the last `Linear` or `Conv2d`.

        Raises:
            UserError: there is none.
        """
        return last_layer(network)

    def stages(self, network: nn.Module) -> list[tuple[str, ...]]:
        """The stages of the backbone from the image on, for `model.freeze: 2`: of each the paths of its modules and
        lone parameters. Found by `stages_without`, which the head stays out of."""
        return stages_without(network, self.head(network))

    def preprocessing(self) -> Preprocessing:
        """How the images looked on which the library's own weights were learned."""
        return Preprocessing()

    def adapt_state(self, network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002 - for others
        """Bring a state of another version into today's form before it is compared and copied; where the state says
        for which size of image it is, the network may take that on.

        Args:
            network: that will get the state.
            state: tensors by name, from a file of weights or a saved model.
        """
        return dict(state)

    def first_weights(
        self, network: nn.Module, weights: str, state: Mapping[str, Tensor] | None = None
    ) -> WeightsReport:
        """Copy what fits of a file into a new network; for `build`.

        Args:
            network: at random.
            weights: "none", or the path of a `.safetensors`, `.pth`, `.pt` or `.bin` file. A part of the tensors will
                do; a head of the same number of classes is loaded, another is not.
            state: its tensors, where they were read before; `weights` is then their name for messages.

        Raises:
            UserError: "imagenet", a file that cannot be read, or one that has nothing for this backbone.
        """
        head = self.head(network)
        if weights == "none":
            return compare(network, {}, weights, head=head)
        name = self.name or type(network).__name__
        if state is None:
            if weights == "imagenet":
                raise UserError(
                    f"{name} brings no ImageNet weights: start from random ones with `--model.weights none`, or give a "
                    "file with `--model.weights PATH` (.safetensors or .pth)."
                )
            state = read_weights(weights)
        state = self.adapt_state(network, state)
        report = compare(network, state, weights, head=head)
        if set(report.loaded) <= set(report.head):
            raise UserError(
                f"{weights} has nothing for the backbone of {name}. It holds {shorten_list(list(state))}; "
                f"{name} wants {shorten_list(report.at_random)}. Is model.name the network that these weights belong to?"
            )
        copy_matching(network, state)
        if report.head_is_new:
            _narrow(network.get_submodule(head))
        return report


_TOO_WIDE = 2.0
"""Times as wide as torch's own first weights of a layer."""


def _narrow(head: nn.Module) -> None:
    """Draw a new head's first weights anew where they lie far wider than torch's own for such a layer.

    EfficientNets and MNASNets draw them within 1 / sqrt(classes), which was made for a thousand: with five, scores on pretrained
    features begin some ten wide, and the first hundreds of steps do nothing but unlearn them.

    Args:
        head: `Linear` or `Conv2d`; others, and one without values, stay as they are.
    """
    if not isinstance(head, (nn.Linear, nn.Conv2d)) or head.weight.is_meta or head.weight.numel() < 2:
        return
    torchs_own = 1 / math.sqrt(3 * head.weight[0].numel())  # deviation of what is even within 1 / sqrt(inputs)
    if head.weight.std() > _TOO_WIDE * torchs_own:
        head.reset_parameters()


def last_layer(network: nn.Module) -> str:
    """Path of the last `Linear` or `Conv2d` in the order of definition.

    Raises:
        UserError: there is none.
    """
    layers = [path for path, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise UserError(
            f"{type(network).__name__} has no Linear and no Conv2d layer that could be its head: a Backbone of your own "
            "can say in `head` which module makes the class scores."
        )
    return layers[-1]


def stages_without(network: nn.Module, classifier: str) -> list[tuple[str, ...]]:
    """The stages of a network, without one module of it.

    Each child that has parameters is a stage, in the order of definition. A container with over nine tenths of the
    backbone (`features`, `encoder.layers`), or with the classifier in it, stands for its children. A norm layer on its
    own belongs to the stage before it, parameters without a layer (ViT's class token) to the first.

    Args:
        network: the whole.
        classifier: path of the module that belongs to no stage.
    """
    size = sum(p.numel() for name, p in network.named_parameters() if not is_inside(name, [classifier]))
    lone: list[str] = []
    stages: list[list[str]] = []

    def visit(parent: nn.Module, prefix: str) -> None:
        lone.extend(prefix + name for name, _ in parent.named_parameters(recurse=False))
        for name, child in parent.named_children():
            child_size, path = sum(p.numel() for p in child.parameters()), prefix + name
            if child_size == 0 or path == classifier:
                continue
            if classifier.startswith(f"{path}.") or (child_size > 0.9 * size and any(child.children())):
                visit(child, f"{path}.")
            elif isinstance(child, NORMS) and stages:
                stages[-1].append(path)
            else:
                stages.append([path])

    visit(network, "")
    if not stages:
        return [tuple(lone)] if lone else []
    return [(*lone, *stages[0]), *(tuple(stage) for stage in stages[1:])]


def is_inside(name: str, paths: list[str]) -> bool:
    """Whether a tensor's name lies at or below one of the paths; the empty path is the network itself."""
    return any(not path or name == path or name.startswith(f"{path}.") for path in paths)


def check_input(network: nn.Module, image_shape: tuple[int, int, int], *, num_classes: int | None = None) -> None:
    """Run one black image through the network to see that it takes the size; modes and weights stay as they are.

    Args:
        network: From `Backbone.build`.
        image_shape: Channels, height and width of what the transforms make.
        num_classes: Scores that it must give; None = any number.

    Raises:
        UserError: with the size and the network's own words; or an answer that is no row of scores.
    """
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters())
    try:
        with torch.inference_mode():
            scores = network.eval()(torch.zeros((1, *image_shape), dtype=like.dtype, device=like.device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, height, width = image_shape
        raise UserError(
            f"{type(network).__name__} does not take pictures of {height} x {width} pixels and {channels} channels: "
            f"{error_text(error)}. The size comes from data.train_transforms and data.eval_transforms."
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(scores, Tensor) or scores.dim() != 2 or num_classes not in (None, scores.shape[1]):
        given = f"a tensor of shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(
            f"{type(network).__name__} answers one picture with {given}; what is needed is a tensor of scores "
            f"[1, {num_classes or 'classes'}]."
        )


def wants_channels_last(network: nn.Module) -> bool:
    """Whether the channels-last memory format speeds the network up: a convolution beyond the patch embedding."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 1
