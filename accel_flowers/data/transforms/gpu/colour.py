"""Colours on a device: what transforms do to the pixels of a batch in which each image has its own numbers.

The arithmetic is Pillow's, rounding for rounding, because Pillow's images are what the plain way is made of.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from accel_flowers.data.transforms.gpu.steps import Size, Step
from accel_flowers.data.transforms.random import Bernoulli, uniform

_log = logging.getLogger(__name__)

_MOST_THAT_DIFFERS = 1e-3
"""torch's own kernels may round a product and a sum once, and Pillow cuts fractions off: a level now and then."""
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Weights of red, green and blue in a grey; the sums stay exact in float32."""


class Painting(Step):
    """A step that computes new colours for images of one size."""

    def draw(self, height: int, width: int) -> tuple[list[float], int, int]:
        return self.numbers(), height, width

    @abstractmethod
    def numbers(self) -> list[float]:
        """The chance of one sample."""

    def takes(self, size: Size) -> bool:
        """Whether images of this size can be painted."""
        del size
        return True

    @abstractmethod
    def paint(self, pixels: Tensor, numbers: Tensor, *, compiled: bool = False) -> Tensor:
        """The images in their new colours.

        Args:
            pixels: uint8 [B, 3, H, W].
            numbers: float64 [B, num_columns].
            compiled: by torch.compile, where much is won by it.
        """


class ColorJitter(Painting):
    """torchvision's, in the order that chance gives. Columns: those of `jitter`."""

    _NEUTRAL = (1.0, 0.0, 0.0)

    def __init__(self, step: v2.ColorJitter) -> None:
        self._ranges = [step.brightness, step.contrast, step.saturation, step.hue]
        self._num_blends = sum(ends is not None for ends in self._ranges[:3])
        self._with_hue = step.hue is not None
        self.num_columns = 3 * self._num_blends * (2 if self._with_hue else 1) + self._with_hue

    def numbers(self) -> list[float]:
        order = torch.randperm(4).tolist()
        amounts = [None if ends is None else uniform(*ends) for ends in self._ranges]
        blends: list[float] = []
        hue_place = 0
        for kind in order:
            amount = amounts[kind]
            if amount is not None and kind == 3:
                hue_place = len(blends)
            elif amount is not None:
                blends += (amount, float(kind == 1), float(kind == 2))
        if amounts[3] is None:
            return blends
        # As many places before the hue as behind it; what an image does not use leaves it as it is.
        most = 3 * self._num_blends
        before, behind = blends[:hue_place], blends[hue_place:]
        before += self._NEUTRAL * ((most - len(before)) // 3)
        behind += self._NEUTRAL * ((most - len(behind)) // 3)
        return [*before, *behind, int(amounts[3] * 255) % 256]

    def paint(self, pixels: Tensor, numbers: Tensor, *, compiled: bool = False) -> Tensor:
        kinds = (self._ranges[1] is not None, self._ranges[2] is not None)
        change = _compiled_jitter() if compiled else quickest_jitter(pixels.device)
        tables = hsv_tables(pixels.device) if self._with_hue else None
        return change(pixels, numbers, tables, num_blends=self._num_blends, kinds=kinds)


class Grey(Painting):
    """RandomGrayscale, Grayscale (always). Column: 0 or 1."""

    num_columns = 1

    def __init__(self, probability: float | None) -> None:
        self._happens = None if probability is None else Bernoulli(probability)

    def numbers(self) -> list[float]:
        return [self._happens() if self._happens else 1.0]

    def paint(self, pixels: Tensor, numbers: Tensor, *, compiled: bool = False) -> Tensor:
        del compiled
        return grey_where(pixels, numbers[:, 0])


class Blur(Painting):
    """GaussianBlur. Column: sigma."""

    num_columns = 1

    def __init__(self, step: v2.GaussianBlur) -> None:
        self.size: Size = (step.kernel_size[0], step.kernel_size[1])
        self._sigma = step.sigma

    def takes(self, size: Size) -> bool:
        return size[0] > self.size[1] // 2 and size[1] > self.size[0] // 2  # what is mirrored at the edges

    def numbers(self) -> list[float]:
        return [uniform(self._sigma[0], self._sigma[1])]

    def paint(self, pixels: Tensor, numbers: Tensor, *, compiled: bool = False) -> Tensor:
        del compiled
        return blur(pixels, numbers[:, 0].float(), self.size)


def luma(pixels: Tensor) -> Tensor:
    """Grey of uint8 [B, 3, H, W], whole-numbered float32 [B, H, W]."""
    red, green, blue = pixels.unbind(1)
    total = torch.add(torch.tensor(0.5), red, alpha=_LUMA[0])
    return total.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).floor_()


def grey_where(pixels: Tensor, chosen: Tensor) -> Tensor:
    """uint8 [B, 3, H, W], grey where float64 `chosen` [B] is 1."""
    return torch.where(chosen.view(-1, 1, 1, 1) > 0, luma(pixels).to(torch.uint8)[:, None], pixels)


def blend(pixels: Tensor, amount: Tensor, contrast: Tensor | None, saturation: Tensor | None) -> Tensor:
    """One change of brightness, contrast or saturation: away from black, the mean grey or the own grey.

    Args:
        pixels: uint8 [B, 3, H, W].
        amount: float32 [B], torchvision's factor; 1 changes nothing.
        contrast, saturation: float32 [B], 1 where that is what happens; None = nowhere.

    Returns:
        uint8 [B, 3, H, W]
    """
    amount = amount.view(-1, 1, 1, 1)
    if contrast is None and saturation is None:
        return (pixels * amount).clamp_(0, 255).to(torch.uint8)
    grey = luma(pixels)
    if contrast is None:
        base = torch.zeros_like(amount)
    else:
        num_pixels = grey[0].numel()
        total = grey.sum(2).sum(1, dtype=torch.float64)  # exact, and no float64 copy of all pixels
        mean = torch.div(total + num_pixels / 2, num_pixels, rounding_mode="floor")
        base = (mean * contrast).float().view(-1, 1, 1, 1)
    if saturation is not None:
        base = torch.addcmul(base, grey[:, None], saturation.view(-1, 1, 1, 1))
    away = pixels - base
    return torch.addcmul(base, away, amount, out=away).clamp_(0, 255).to(torch.uint8)


def turn_hue(pixels: Tensor, shift: Tensor, tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Add `shift` (float32 [B], 0 … 255) to the hue of uint8 [B, 3, H, W], by way of Pillow's HSV, `hsv_tables`.

    Returns:
        uint8 [B, 3, H, W]
    """
    hues, saturations, shares = tables
    levels = pixels.short()
    red, green, blue = levels.unbind(1)
    value = levels.amax(1)
    others = torch.where(
        red == value, green - blue, torch.where(green == value, blue - red + 511, red - green + 2 * 511)
    )
    chroma = (value - levels.amin(1)).int()
    place = torch.add(chroma, others, alpha=256).add_(255 * 256)
    hue = hues.index_select(0, place.view(-1)).view_as(value) + shift.to(torch.uint8).view(-1, 1, 1)
    saturation = saturations.index_select(0, torch.add(chroma, value, alpha=256).view(-1)).view_as(value)
    place = hue[:, None] + 256 * torch.arange(3, device=pixels.device, dtype=torch.int32).view(3, 1, 1)
    share = shares.index_select(0, place.view(-1)).view_as(pixels)
    made = torch.addcmul((value + 0.5)[:, None], share, (value * saturation)[:, None], value=-1, out=share)
    return made.to(torch.uint8)


@cache
def hsv_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pillow's HSV, for all that it can follow from.

    Returns:
        uint8 [3 * 511 * 256]: hue, by the largest channel, the difference of the two behind it (in a circle) + 255, and
        chroma; float32 [256 * 256]: saturation, 0 … 1, by the largest level, and chroma; float32 [3 * 256]: how much of
        the saturation a channel feels, 0 … 1, by channel and hue.
    """
    # Pillow cuts fractions off, so a last digit decides over a level: the same precision as there, step by step.
    chroma = torch.arange(256, device=device)
    least = chroma.clamp(min=1)
    apart = torch.arange(-255, 256, device=device)[:, None]
    below = ((chroma - apart.abs()) / least).double()  # the largest minus the middle one; the smallest is 1 below
    sixth = (torch.where(apart < 0, below - 1, 1 - below) + 2 * torch.arange(3, device=device).view(3, 1, 1)).float()
    turn = sixth.double() / 6 + 1
    hues = ((turn - turn.floor()).float().double() * 255).to(torch.uint8) * (chroma > 0)
    saturations = ((chroma / least[:, None]).double() * 255).floor().float() / 255
    # Red, green and blue are the same function of the hue, 120 degrees apart.
    turned = (chroma * 6 / 255 + torch.arange(5, 0, -2, device=device)[:, None]).remainder(6)
    shares = torch.minimum(turned, 4 - turned).clamp(0, 1)
    return hues.view(-1), saturations.view(-1), shares.view(-1)


def jitter(
    pixels: Tensor,
    numbers: Tensor,
    tables: tuple[Tensor, Tensor, Tensor] | None,
    *,
    num_blends: int,
    kinds: tuple[bool, bool],
) -> Tensor:
    """Brightness, contrast, saturation and hue of each image, in its own order.

    One kernel serves the first three, so only the hue's place among them matters: the images pass `num_blends` blends, the
    turn of hue, and as many blends again, and what is not theirs leaves them as they are.

    Args:
        pixels: uint8 [B, 3, H, W].
        numbers: [B, K], for each blend (amount, contrast, saturation), and at the end the shift of hue.
        tables: `hsv_tables`; None = hues stay.
        kinds: whether contrast and saturation occur at all.

    Returns:
        uint8 [B, 3, H, W]
    """
    made, numbers = pixels, numbers.float()
    for number in range(2 * num_blends if tables else num_blends):
        if tables and number == num_blends:
            made = turn_hue(made, numbers[:, -1], tables)
        amount, contrast, saturation = numbers[:, 3 * number : 3 * number + 3].unbind(1)
        made = blend(made, amount, contrast if kinds[0] else None, saturation if kinds[1] else None)
    if tables and not num_blends:
        made = turn_hue(made, numbers[:, -1], tables)
    return made


@cache
def quickest_jitter(device: torch.device) -> Callable[..., Tensor]:
    """`jitter`, or the same in a few kernels, on a GPU where Triton can compile them and they give the same pixels.

    A GPU is waited for once, at the first call.
    """
    if device.type != "cuda":
        return jitter
    try:
        from accel_flowers.data.transforms.gpu import fused  # takes a while, and not every machine has Triton

        share = share_that_differs(fused.jitter, device)
    except Exception as error:  # noqa: BLE001 - no Triton, no C compiler, no place for its cache: whatever it is, there is a way
        reason = f"Triton does not work here: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        if share < _MOST_THAT_DIFFERS:
            return fused.jitter
        reason = f"Triton's give {share:.2%} other levels"
    _log.info(f"pixels: colours in a hundred kernels a batch, not in two, because {reason}")
    return jitter


def share_that_differs(change: Callable[..., Tensor], device: torch.device) -> float:
    """Of levels that `change` makes otherwise than `jitter`, on noise, greys and pure colours in all orders of the changes."""
    everything = ColorJitter(v2.ColorJitter(0.6, 0.6, 0.6, 0.5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = torch.randint(256, (48, 3, 40, 40), dtype=torch.uint8)
        numbers = torch.tensor([everything.numbers() for _ in pixels], dtype=torch.float64)
    pixels[:8] = pixels[:8, :1]
    pixels[8:16] = (pixels[8:16] > 127) * 255
    pixels, numbers = pixels.to(device), numbers.to(device)
    made = [way(pixels, numbers, hsv_tables(device), num_blends=3, kinds=(True, True)) for way in (change, jitter)]
    return float((made[0] != made[1]).float().mean())


@cache
def _compiled_jitter() -> Callable[..., Tensor]:
    return torch.compile(jitter, dynamic=False)


def blur(pixels: Tensor, sigma: Tensor, size: tuple[int, int]) -> Tensor:
    """Gaussian blur.

    Args:
        pixels: uint8 [B, 3, H, W].
        sigma: float32 [B], in torchvision's unit.
        size: of the kernel, across and down.
    """
    batch, channels, height, width = pixels.shape
    across, down = (_gaussian(sigma, length).repeat_interleave(channels, 0) for length in size)
    padding = (size[0] // 2, size[0] // 2, size[1] // 2, size[1] // 2)
    made = functional.pad(pixels.float(), padding, mode="reflect").view(1, batch * channels, *_padded(pixels, size))
    made = functional.conv2d(made, across[:, None, None, :], groups=batch * channels)
    made = functional.conv2d(made, down[:, None, :, None], groups=batch * channels)
    return made.round_().clamp_(0, 255).to(torch.uint8).view(batch, channels, height, width)


def _padded(pixels: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return pixels.shape[2] + size[1] // 2 * 2, pixels.shape[3] + size[0] // 2 * 2


def _gaussian(sigma: Tensor, length: int) -> Tensor:
    limit = (length - 1) / (2 * 2**0.5)
    place = torch.linspace(-limit, limit, length, device=sigma.device)
    return torch.softmax(-((place / sigma[:, None]) ** 2), dim=1)
