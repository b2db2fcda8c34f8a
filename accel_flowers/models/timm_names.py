"""torchvision's networks as timm knows them: the same layers under timm's name, each tensor under timm's.

`model/` keeps tensors under these names, so that timm and transformers read it as it is, and files of timm's weights fit
torchvision's networks. Only text is dealt with here: timm need not be installed. That both networks then give the same
numbers is tried for every name by the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accel_flowers.core.order import natural_key

if TYPE_CHECKING:
    from torch import Tensor

Rename = Callable[[Iterable[str]], dict[str, str | None]]
"""torchvision's names of tensors → timm's; None = timm has no such tensor, as it works it out."""


@dataclass(frozen=True)
class TimmForm:
    """A network as timm builds it."""

    name: str
    """For `timm.create_model`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its other arguments."""
    rename: Rename = lambda names: {name: name for name in names}


def timm_form(architecture: str) -> TimmForm | None:
    """The same network in timm, so that both give the same scores from the same values; None where it has none, or where it is
    not known here.

    Args:
        architecture: torchvision's name.
    """
    return _FORMS.get(architecture)


def to_timm(state: Mapping[str, Tensor], form: TimmForm) -> dict[str, Tensor]:
    """A state under timm's names and in its shapes: of layers that are linear here and 1 x 1 convolutions there, and of scales
    that have extra sides of one."""
    found = {}
    for name, renamed in form.rename(state).items():
        if renamed is not None:
            found[renamed] = _in_shape_of_timm(renamed, state[name])
    return found


def from_timm(state: Mapping[str, Tensor], form: TimmForm, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse; a state that is not timm's comes back as it is.

    Args:
        state: under timm's names, or torchvision's.
        form: of the network.
        own: the network's own state: its names, and the shapes that tensors are brought into where they hold as many numbers.
            Of it comes what timm does not keep.
    """
    names = form.rename(own)
    if len(state.keys() & own.keys()) >= len(state.keys() & set(names.values())):
        return dict(state)
    timms = {renamed: name for name, renamed in names.items() if renamed is not None}
    found = {timms.get(name, name): tensor for name, tensor in state.items()}
    for name, like in own.items():
        if names[name] is None and name not in found:
            found[name] = like
        elif name in found and found[name].shape != like.shape and _same_but_for_ones(found[name], like):
            found[name] = found[name].reshape(like.shape)
    return found


def _same_but_for_ones(a: Tensor, b: Tensor) -> bool:
    """Shapes without their sides of one."""
    return [side for side in a.shape if side != 1] == [side for side in b.shape if side != 1]


def _in_shape_of_timm(name: str, tensor: Tensor) -> Tensor:
    if name == "conv_head.weight" and tensor.ndim == 2:
        return tensor[:, :, None, None].contiguous()
    return tensor.flatten() if name.endswith(".gamma") else tensor


# Families whose tensors need other names: rules (pattern, what becomes of it). All that fit a name are applied, in turn.


def _by_rules(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rename:
    patterns = [(re.compile(pattern), new) for pattern, new in rules]

    def rename(names: Iterable[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name in names:
            renamed = name
            for pattern, new in patterns:
                renamed = pattern.sub(new, renamed)
            found[name] = None if renamed.startswith(_LEFT_OUT) else renamed
        return found

    return rename


_LEFT_OUT = "-"
_VIT = _by_rules(
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
_STAGES = tuple((rf"^features\.{2 * stage + 1}\.(\d+)\.", rf"stages.{stage}.blocks.\1.") for stage in range(4))
_BETWEEN = tuple((rf"^features\.{2 * stage}\.", f"stages.{stage}.downsample.") for stage in (1, 2, 3))
_CONVNEXT = _by_rules(
    (r"^features\.0\.", "stem."),
    *_STAGES,
    *_BETWEEN,
    (r"\.layer_scale$", ".gamma"),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)
_SWIN = _by_rules(
    (r"^.*\.relative_position_index$", _LEFT_OUT),
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    *_STAGES,
    *_BETWEEN,
    (r"^stages\.", "layers."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
)
_REGNET = _by_rules(
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^fc\.", "head.fc."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda found: f"s{found[1]}.b{int(found[2]) + 1}."),
    (r"\.proj\.0\.", ".downsample.conv."),
    (r"\.proj\.1\.", ".downsample.bn."),
    (r"\.f\.se\.", ".se."),
    (r"\.f\.([abc])\.([01])\.", lambda found: f".conv{'abc'.index(found[1]) + 1}.{('conv', 'bn')[int(found[2])]}."),
)


# Networks of inverted residuals: what a layer of a block is called follows from how many layers the block has.

_BLOCK = re.compile(r"features\.(\d+)\.(?:(\d+)\.block|block|conv)\.(.+)\.\w+$")
_SQUEEZE = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
_LAYERS = {
    2: ("conv", "bn1"),
    4: ("conv_dw", "bn1", "conv_pw", "bn2"),
    6: ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
}
"""Convolutions and norms of a block, in their order."""
_FUSED_LAYERS = {2: ("conv", "bn1"), 4: ("conv_exp", "bn1", "conv_pwl", "bn2")}


def _of_inverted_residuals(
    ends: Mapping[str, str], *, repeats: Sequence[int] = (), fused: Collection[int] = ()
) -> Rename:
    """Args:
    ends: module outside of the blocks → timm's.
    repeats: blocks of each stage, where torchvision counts them through; else it names stage and block.
    fused: stages whose blocks have one convolution in place of the first two.
    """
    counted = [(stage, block) for stage, number in enumerate(repeats) for block in range(number)]

    def rename(names: Iterable[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        blocks: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for name in names:
            module, _, tensor = name.rpartition(".")
            inside = _BLOCK.match(name)
            if inside and module not in ends:
                first, second = int(inside[1]), inside[2]
                place = counted[first - 1] if second is None else (first - 1, int(second))
                blocks.setdefault(place, []).append((name, inside[3]))
            else:
                found[name] = f"{ends[module]}.{tensor}"
        for (stage, block), inner in blocks.items():
            layers = sorted({layer for _, layer in inner if layer[-3:] not in _SQUEEZE}, key=natural_key)
            called = (_FUSED_LAYERS if stage in fused else _LAYERS)[len(layers)]
            for name, layer in inner:
                timms = _SQUEEZE.get(layer[-3:]) or called[layers.index(layer)]
                found[name] = f"blocks.{stage}.{block}.{timms}.{name.rpartition('.')[2]}"
        return found

    return rename


def _ends(last: int, *, inside: int | None = None) -> dict[str, str]:
    """Args:
    last: number of the last convolution in torchvision.
    inside: the stage that timm counts it as; None = none.
    """
    stem = {"features.0.0": "conv_stem", "features.0.1": "bn1"}
    if inside is None:
        head = {f"features.{last}.0": "conv_head", f"features.{last}.1": "bn2", "classifier.1": "classifier"}
    else:
        head = {f"features.{last}.0": f"blocks.{inside}.0.conv", f"features.{last}.1": f"blocks.{inside}.0.bn1"}
        head |= {"classifier.0": "conv_head", "classifier.3": "classifier"}
    return stem | head


_WIDER = {"bn_eps": 1e-3}
_EFFICIENTNET = _of_inverted_residuals(_ends(8))
_FORMS: dict[str, TimmForm] = {
    **{name: TimmForm(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: TimmForm(name) for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{name: TimmForm(name) for name in ("wide_resnet50_2", "wide_resnet101_2")},
    **{name: TimmForm(name) for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
    "mobilenet_v2": TimmForm(
        "mobilenetv2_100", rename=_of_inverted_residuals(_ends(18), repeats=(1, 2, 3, 4, 3, 3, 1))
    ),
    "mobilenet_v3_large": TimmForm(
        "mobilenetv3_large_100", _WIDER, _of_inverted_residuals(_ends(16, inside=6), repeats=(1, 2, 3, 4, 2, 3))
    ),
    "mobilenet_v3_small": TimmForm(
        "mobilenetv3_small_100", _WIDER, _of_inverted_residuals(_ends(12, inside=5), repeats=(1, 2, 3, 2, 3))
    ),
    **{f"efficientnet_b{size}": TimmForm(f"efficientnet_b{size}", rename=_EFFICIENTNET) for size in range(5)},
    **{f"efficientnet_b{size}": TimmForm(f"efficientnet_b{size}", _WIDER, _EFFICIENTNET) for size in (5, 6, 7)},
    "efficientnet_v2_s": TimmForm("efficientnetv2_s", _WIDER, _of_inverted_residuals(_ends(7), fused=(0, 1, 2))),
    **{
        f"efficientnet_v2_{size}": TimmForm(
            f"efficientnetv2_{size}", _WIDER, _of_inverted_residuals(_ends(8), fused=(0, 1, 2))
        )
        for size in "ml"
    },
    **{
        f"convnext_{size}": TimmForm(f"convnext_{size}", rename=_CONVNEXT)
        for size in ("tiny", "small", "base", "large")
    },
    "vit_b_16": TimmForm("vit_base_patch16_224", rename=_VIT),
    "vit_b_32": TimmForm("vit_base_patch32_224", rename=_VIT),
    "vit_l_16": TimmForm("vit_large_patch16_224", rename=_VIT),
    "vit_l_32": TimmForm("vit_large_patch32_224", rename=_VIT),
    "vit_h_14": TimmForm("vit_huge_patch14_224", rename=_VIT),
    "swin_t": TimmForm("swin_tiny_patch4_window7_224", rename=_SWIN),
    "swin_s": TimmForm("swin_small_patch4_window7_224", rename=_SWIN),
    "swin_b": TimmForm("swin_base_patch4_window7_224", rename=_SWIN),
    "regnet_x_400mf": TimmForm("regnetx_004_tv", rename=_REGNET),
    "regnet_x_800mf": TimmForm("regnetx_008", rename=_REGNET),
    "regnet_x_1_6gf": TimmForm("regnetx_016", rename=_REGNET),
    "regnet_x_3_2gf": TimmForm("regnetx_032", rename=_REGNET),
    "regnet_x_8gf": TimmForm("regnetx_080", rename=_REGNET),
    "regnet_x_16gf": TimmForm("regnetx_160", rename=_REGNET),
    "regnet_x_32gf": TimmForm("regnetx_320", rename=_REGNET),
    "regnet_y_400mf": TimmForm("regnety_004", rename=_REGNET),
    "regnet_y_800mf": TimmForm("regnety_008_tv", rename=_REGNET),
    "regnet_y_1_6gf": TimmForm("regnety_016", rename=_REGNET),
    "regnet_y_3_2gf": TimmForm("regnety_032", rename=_REGNET),
    "regnet_y_8gf": TimmForm("regnety_080_tv", rename=_REGNET),
    "regnet_y_16gf": TimmForm("regnety_160", rename=_REGNET),
    "regnet_y_32gf": TimmForm("regnety_320", rename=_REGNET),
    "regnet_y_128gf": TimmForm("regnety_1280", rename=_REGNET),
}
"""torchvision's name → timm's. Not here: networks that timm has not, or computes otherwise (VGG at other sizes than 224 pixels,
Swin v2's attention, MNASNet, the Inceptions, MaxViT, ShuffleNet, SqueezeNet, AlexNet)."""
