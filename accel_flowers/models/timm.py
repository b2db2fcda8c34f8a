"""Networks: timm's classifiers with a last layer for the user's classes, and their first weights.

timm is an extra of this package and takes seconds to import, so it is imported where a network of its is asked for.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from accel_flowers.core.errors import UserError, did_you_mean, error_text
from accel_flowers.core.registry import TIMM_PREFIX
from accel_flowers.models.backbone import NORMS, Backbone, Preprocessing, is_inside
from accel_flowers.models.weights import WeightsReport, read_weights

_NAME = re.compile(r"[a-z]\w*(\.\w+)?", re.IGNORECASE)
"""Of an architecture, and behind a point of one of its sets of weights; not `hf-hub:` and other places that timm reads."""
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""Words that torchvision's Resize takes for pictures, too; timm's others ("random") are for training."""


class TimmBackbone(Backbone):
    """A classifier of timm.

    Args:
        name: "timm/" and one of `timm.list_models()`, where wanted with a point and the name of a set of its weights:
            "timm/resnet50.a1_in1k".

    Raises:
        UserError: timm is not installed, or has no such model.
    """

    def __init__(self, name: str) -> None:
        self.name, self._known_as = name, name.removeprefix(TIMM_PREFIX)
        _check_name(self._known_as)

    def build(
        self, num_classes: int, *, dropout: float | None = None, weights: str = "none"
    ) -> tuple[nn.Module, WeightsReport]:
        """See `Backbone.build`.

        Args:
            num_classes: outputs of the head.
            dropout: timm's `drop_rate`: probability in front of the head; None leaves what the architecture has.
            weights: "imagenet" (timm's own download from the Hugging Face hub), "none" (random) or a file with timm's
                names.

        Raises:
            UserError: no download, a file that cannot be read or has nothing for this network, or a network that has
                another number of heads than one.
        """
        source, state = weights, None
        if weights == "imagenet":
            source, state = self._download()
        elif weights != "none":
            state = read_weights(weights)
        network = self._create(num_classes=num_classes, **({} if dropout is None else {"drop_rate": dropout}))
        return network, self.first_weights(network, source, state)

    def head(self, network: nn.Module) -> str:
        """As timm names it."""
        named = self._facts().classifier
        if isinstance(named, (tuple, list)):
            raise UserError(
                f"model.name: {self.name} has {len(named)} heads ({', '.join(named)}), one of them for distillation; "
                "networks with one head can be trained here."
            )
        return named if named in dict(network.named_modules()) else super().head(network)

    def stages(self, network: nn.Module) -> list[tuple[str, ...]]:
        """timm's own coarse groups of layers, where it has them; a norm layer on its own belongs to the group before."""
        matcher: Any = getattr(network, "group_matcher", None)
        if matcher is None:
            return super().stages(network)
        from timm.models import group_parameters

        head = self.head(network)
        groups = group_parameters(network, matcher(coarse=True))
        modules, stages = dict(network.named_modules()), list[list[str]]()
        for _, group in sorted(groups.items()):
            paths = _shortest(network, [name for name in group if not is_inside(name, [head])])
            if stages and all(isinstance(modules.get(path), NORMS) for path in paths):
                stages[-1] += paths
            else:
                stages.append(paths)
        return [tuple(paths) for paths in stages]

    def preprocessing(self) -> Preprocessing:
        """Of the weights that the name stands for."""
        facts = self._facts()
        height, width = facts.input_size[1:]
        return Preprocessing(
            mean=tuple(facts.mean),
            std=tuple(facts.std),
            size=(height, width),
            resize=math.floor(min(height, width) / facts.crop_pct),  # as timm's own evaluation rounds it
            interpolation=facts.interpolation if facts.interpolation in _INTERPOLATIONS else "bicubic",
        )

    def _facts(self) -> Any:
        """timm's `PretrainedCfg`."""
        return _timm().models.get_pretrained_cfg(self._known_as)

    def _create(self, **arguments: Any) -> nn.Module:
        try:
            network: nn.Module = _timm().create_model(self._known_as, pretrained=False, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"model.name: timm cannot build {self._known_as}: {error_text(error)}.") from None
        return network

    def _download(self) -> tuple[str, dict[str, Tensor]]:
        """The weights as timm loads them, in today's names, with the head that they were learned with."""
        facts = self._facts()
        source = f"timm's weights {facts.hf_hub_id or facts.url or self._known_as}"
        try:
            network = _timm().create_model(self._known_as, pretrained=True)
        # What huggingface_hub, torch.hub and timm answer with where there is no network, no such file or no weights.
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise UserError(
                f"The weights of {self.name} are not to be had: {error_text(error)}.\n"
                f"  wanted: {facts.hf_hub_id or facts.url or 'timm names none'}\n"
                "Give a file of weights with timm's names by `--model.weights PATH` (.safetensors or .pth), or start "
                "from random weights with `--model.weights none`."
            ) from None
        return source, network.state_dict()


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        broken = importlib.util.find_spec("timm") is not None
        why = f" cannot be imported ({error})" if broken else " is not installed"
        raise UserError(
            f"Networks of timm need it, and it{why}: pip install 'accel-flowers[timm]'. torchvision's go without it, as "
            "--model.name resnet18 does."
        ) from None
    return timm


def _check_name(name: str) -> None:
    models = _timm().models
    architecture, _, tag = name.partition(".")
    if not _NAME.fullmatch(name) or not models.is_model(architecture):
        near = did_you_mean(architecture, models.list_models())
        raise UserError(
            f"model.name: timm has no model '{architecture}'.{near} `python -c \"import timm; "
            f"print(*timm.list_models('*net*'))\"` lists those with a pattern in their names."
        )
    tags = [cfg.partition(".")[2] for cfg in models.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        allowed = f"It has: {', '.join(tags)}." if tags else "It has none."
        raise UserError(f"model.name: timm has no weights '{tag}' of {architecture}. {allowed}")


def _shortest(network: nn.Module, names: Iterable[str]) -> list[str]:
    """The fewest modules and lone parameters that hold exactly these parameters."""
    left = list(names)
    paths: list[str] = []
    everything = [name for name, _ in network.named_parameters()]

    def held_by(path: str) -> set[str]:
        return {name for name in everything if is_inside(name, [path])}

    while left:
        first = left[0]
        parents = (first.rsplit(".", depth)[0] for depth in range(first.count("."), 0, -1))  # the largest first
        paths.append(next((parent for parent in parents if held_by(parent) <= set(left)), first))
        left = [name for name in left if not is_inside(name, paths[-1:])]
    return paths
